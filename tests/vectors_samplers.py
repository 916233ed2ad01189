"""Recorded sampler steps of MDLM and DiDi-Instruct against ours, for conform.py and the tests.

The official steps are laws or draws from given random numbers, not texts; what is compared are the parts our samplers
are made of.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from unmask.decoding.didi import candidate_scores, reward_gradient, scores_of
from unmask.decoding.mdlm import noise_level, reveal_chance, subs, time_at
from unmask.layout import full
from vectors_dit import call, discriminator, network, record_mask

Case = dict[str, Any]
Tensors = dict[str, Tensor]


def law(probs: Tensor, tokens: Tensor, mask: int, chance: float | Tensor) -> Tensor:
    """The law [B, W, V] of a step, mask included, from token probabilities that give the mask none."""
    out = probs * chance
    out[..., mask] = 1 - chance
    return torch.where((tokens == mask)[..., None], out, torch.nn.functional.one_hot(tokens, out.shape[-1]).float())


def _moments(case: Case) -> tuple[Tensor, Tensor]:
    t = torch.tensor(case["inputs"]["t"], dtype=torch.float64)
    return t, t - case["inputs"]["dt"]


def _posterior(folder: Path, case: Case, official: Tensors) -> None:
    tokens, mask = torch.tensor(case["inputs"]["tokens"]), case["options"]["mask_token_id"]
    logits = call(network(folder), tokens, full(tokens.shape[1]))
    torch.testing.assert_close(logits, official["logits"], atol=1e-4, rtol=0)
    chance = reveal_chance(*_moments(case))
    ours = law(subs(logits, tokens, mask).exp(), tokens, mask, chance)
    assert abs(float(chance) - case["expect"]["reveal"]) < 5e-4
    torch.testing.assert_close(ours, official["probs"], atol=5e-4, rtol=0, check_dtype=False)


def _race(folder: Path, case: Case, official: Tensors) -> None:
    """The official float32 race between vocabulary and mask, run on our law: what our two draws replace."""
    o, mask = case["options"], case["options"]["mask_token_id"]
    model = network(folder)
    tokens = torch.full((case["inputs"]["rows"], case["inputs"]["length"]), mask)
    layout = full(tokens.shape[1])
    seen = []
    for i in range(o["steps"] + 1):
        seen.append(tokens.tolist())
        rows = subs(call(model, tokens, layout), tokens, mask)
        if i == o["steps"]:
            tokens = rows.argmax(-1)
            break
        t, s = (time_at(torch.tensor(k), o["steps"]) for k in (i, i + 1))
        race = 1e-10 - (official["uniforms"][i] + 1e-10).log()
        tokens = (law(rows.exp(), tokens, mask, reveal_chance(t, s)) / race).argmax(-1)
    assert seen == case["expect"]["trace_inputs"], "the canvases differ"
    assert tokens.tolist() == case["expect"]["tokens"], f"tokens differ: {tokens.tolist()}"


def _student(folder: Path, case: Case, tokens: Tensor, t: Tensor) -> Tensor:
    """The logits [B, W, V] a step works on, by the recorded way of calling the student."""
    layout = full(tokens.shape[1])
    if case["options"]["student_call"].startswith("sigma 0"):
        masked = torch.full_like(tokens, record_mask(folder))
        return subs(call(network(folder), tokens, layout), masked, record_mask(folder))
    return call(network(folder), tokens, layout, noise_level(t))


def _step_law(logits: Tensor, tokens: Tensor, mask: int, t: Tensor, s: Tensor) -> Tensor:
    probs = law(logits.softmax(-1), tokens, mask, reveal_chance(t, s))
    return probs / probs.sum(-1, keepdim=True)


def _tilt(folder: Path, case: Case, official: Tensors) -> None:
    tokens, mask = torch.tensor(case["inputs"]["tokens"]), case["options"]["mask_token_id"]
    t, s = _moments(case)
    logits, judge = _student(folder, case, tokens, t).detach(), discriminator(folder)
    every = torch.arange(tokens.shape[1]).expand_as(tokens)
    judged = scores_of(judge, full(tokens.shape[1]).batch(len(tokens)), noise_level(t).expand(len(tokens)))
    is_open = tokens == mask
    gradient = reward_gradient(judged, judge.embed, tokens, every, is_open, logits)
    soft = torch.where(is_open[..., None], logits, 1e9 * torch.nn.functional.one_hot(tokens, logits.shape[-1]))
    score = float(judged(judge.embed(soft))[is_open].sum())
    assert abs(score - case["expect"]["score"]) < 1e-4 * max(1, abs(score)), f"score {score}"
    torch.testing.assert_close(gradient, official["grad_clipped"], atol=1e-4, rtol=1e-4)
    ours = _step_law(logits + case["options"]["h"] * gradient, tokens, mask, t, s)
    torch.testing.assert_close(ours, official["probs"], atol=5e-4, rtol=0, check_dtype=False)


def _rerank(folder: Path, case: Case, official: Tensors) -> None:
    tokens, mask = torch.tensor(case["inputs"]["tokens"]), case["options"]["mask_token_id"]
    t, s = _moments(case)
    ours = _step_law(_student(folder, case, tokens, t), tokens, mask, t, s)
    torch.testing.assert_close(ours, official["probs"], atol=5e-4, rtol=0, check_dtype=False)
    canvas = torch.tensor(case["inputs"]["candidates"]).transpose(0, 1)
    layout = full(tokens.shape[1]).batch(len(tokens))
    scores = candidate_scores(discriminator(folder), layout, noise_level(s).expand(len(tokens)), canvas)
    torch.testing.assert_close(scores, torch.tensor(case["expect"]["candidate_rewards"]), atol=1e-3, rtol=1e-4)
    share = scores.softmax(-1)
    torch.testing.assert_close(share, torch.tensor(case["expect"]["rerank_probs"]), atol=5e-4, rtol=0)


KINDS: dict[str, Callable[[Path, Case, Tensors], None]] = {
    "posterior": _posterior,
    "sample-race": _race,
    "rgas-tilt": _tilt,
    "rgas-rerank": _rerank,
}


def _check(file: str) -> Callable[[Path, Case], str]:
    def check(folder: Path, case: Case) -> str:
        """Empty if the step is the recorded one, else what differs."""
        with safe_open(folder / file, framework="pt") as held:
            official = {name: held.get_tensor(key) for name, key in case["tensors"].items()}
        try:
            with torch.no_grad():
                KINDS[case["kind"]](folder / "models" / case["model"], case, official)
        except AssertionError as error:
            return " ".join(str(error).split())[:300] or "differs"
        return ""

    return check


SAMPLERS = {name: _check(f"{name}.safetensors") for name in ("mdlm-sampler", "didi-rgas")}
