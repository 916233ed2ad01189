"""Recorded training steps of DiDi-Instruct's official code against the recipe, for conform.py and the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import vectors_samplers
from unmask.training.objective import Objective
from unmask.training.policy_gradient import advantages, log_odds, rewards
from unmask.training.recipes.base import Batch, Supervised, Terms, View
from unmask.training.recipes.didi_instruct import DidiInstruct
from unmask.training.two_step import Draws, Score, rollout
from vectors_dit import network

Case = dict[str, Any]
CLOSE = 1e-5
"""Relative; the record itself promises 1e-4."""


def recipe_of(options: dict[str, Any]) -> DidiInstruct:
    """The recipe with the official options of a recorded step."""
    law = {"beta11": (1, 1), "beta22": (2, 2)}[options["tau_mode"]]
    return DidiInstruct(
        mask_id=options["mask_token_id"],
        group=options["num_samples_per_prompt"],
        norm="mean_std",
        shared_tau=False,
        tau_law=law,
        tau_range=(options["tau_min_eps"], 1 - options["sampling_eps"]),
        t0=options["t0_eps"],
        importance_weight=options["importance_weight"],
        weight_range=(options["omega_min"], options["omega_max"]),
        remask_prob=options["remask_prob"],
        reward_clip=options["reward_clip_val"],
        advantage_clip=options["advantage_clip_val"],
        log_odds_eps=options["log_odds_eps"],
        label_smoothing=options["label_smoothing"],
        kl_beta=options["kl_beta"],
        kl_steps=(options["kl_hi_coef"], options["kl_lo_coef"]),
        entropy_beta=options["entropy_beta"],
    )


def draws_of(inputs: dict[str, Any], recipe: DidiInstruct) -> Draws:
    """The noise of a recorded step, its tokens in place of uniform numbers."""
    tau = torch.tensor(inputs["tau"]).clamp(*recipe.tau_range)
    z, x = torch.tensor(inputs["x_tau"]), torch.tensor(inputs["x"])
    shown = torch.tensor(inputs.get("x_tau_before_remask", inputs["x_tau"]))
    return Draws(
        tau=tau,
        time=tau,
        shown=shown != recipe.mask_id,
        hidden=z == recipe.mask_id,
        left=x == recipe.mask_id,
        first=torch.where(shown == recipe.mask_id, 0, shown),
        second=torch.where(x == recipe.mask_id, 0, x),
        fake=torch.tensor(inputs["mask_fake"]).bool(),
        real=torch.tensor(inputs["mask_real"]).bool(),
    )


def objective_of(folder: Path, recipe: DidiInstruct) -> Objective:
    """Student, teacher and discriminator of the record; spectral-norm vectors fixed, as recorded."""
    objective = Objective(network(folder), recipe, network(folder, "teacher.safetensors"))
    weights = load_file(folder / "discriminator.safetensors")
    weights.pop("rotary_emb.inv_freq")
    objective.module("discriminator").load_state_dict(weights)
    return objective.eval()


def step_of(case: Case) -> tuple[DidiInstruct, View]:
    """The recipe and view of a recorded step."""
    recipe = recipe_of(case["options"])
    data = torch.tensor(case["inputs"]["x_real"])[:: recipe.group]
    return recipe, recipe.view_of(Batch.of(data, data.clone()), draws_of(case["inputs"], recipe))


def _near(name: str, ours: Any, theirs: Any, rtol: float = CLOSE) -> None:
    a, b = (torch.as_tensor(v, dtype=torch.float32) for v in (ours, theirs))
    assert torch.allclose(a, b, rtol=rtol, atol=1e-7), f"{name}: {a.tolist()}, expected {b.tolist()}"


def _reward(folder: Path, case: Case) -> None:
    """Rewards and advantages of given logits."""
    del folder
    options, expect = case["options"], case["expect"]
    logits, corrupted = (torch.tensor(case["inputs"][n]) for n in ("discriminator_logits", "mask_fake"))
    clip, eps, group = options["reward_clip_val"], options["log_odds_eps"], options["G"]
    reward = rewards(logits, corrupted.bool(), clip, eps)
    torch.testing.assert_close(reward, torch.tensor(expect["reward"]), rtol=CLOSE, atol=2e-7)
    limit = options["advantage_clip_val"]
    ours = [advantages(reward, group, "mean_std", c) for c in (0.0, limit)]
    if "ill-conditioned" in case["notes"]:
        assert bool(ours[1].isfinite().all()) and float(ours[1].abs().max()) <= limit
    else:
        for got, name in zip(ours, ("advantage", "advantage_clipped")):
            torch.testing.assert_close(got, torch.tensor(expect[name]), rtol=CLOSE, atol=1e-6)
    clipped = log_odds(logits, eps).abs() >= clip
    _near("fraction_clipped", clipped[corrupted.bool()].float().mean(), expect["fraction_clipped"])


def _step(folder: Path, case: Case) -> None:
    """A whole step: what the student's and the discriminator's losses are made of, and their gradients."""
    recipe, view = step_of(case)
    objective, parts = objective_of(folder / "models" / case["model"], recipe), case["expect"]["parts"]
    ready = Supervised.of(view)
    terms: Terms = objective(ready)
    mean = {name: value / view.normalisers[name] for name, value in terms.sums.items()}
    with torch.no_grad():
        written = rollout(objective, ready, Score(recipe.mask_id), teacher=False)
    assert written.z.tolist() == case["inputs"]["x_tau"], "z differs"
    assert written.tokens.tolist() == case["inputs"]["x"], "x differs"
    extra = view.extra
    nothing = torch.zeros_like(extra["first_shown"]), torch.zeros_like(extra["second_counted"])
    _near("logp_step1", written.log_prob(extra["first_shown"], nothing[1]), parts["logp_step1_changed_only"])
    _near("logp_step2", written.log_prob(nothing[0], extra["second_counted"]), parts["logp_step2_changed_only"])
    _near("w", extra["weight"], parts["w"])
    _near("loss_pg", mean["policy"].detach(), parts["loss_pg_changed_only"])
    _near("loss_d_real", 2 * mean["real"].detach(), parts["loss_d_real"])
    _near("loss_d_fake", 2 * mean["fake"].detach(), parts["loss_d_fake"])
    _near("loss_kl", (mean["kl_first"] + mean["kl_second"]).detach(), recipe.kl_beta * parts["loss_kl"])
    entropy = (mean["entropy_first"] + mean["entropy_second"]).detach()
    _near("entropy", -entropy, recipe.entropy_beta * parts["entropy"])
    total = torch.stack(list(mean.values())).sum()
    discriminator = mean["real"] + mean["fake"]
    _near("loss", (total - discriminator).detach(), parts["loss_changed_only"])
    _near("loss_d", discriminator.detach(), parts["loss_d"])
    total.backward()
    expected = case["expect"]["grad_norm"]
    for trained, name in ((objective.network, "student"), (objective.module("discriminator"), "discriminator")):
        gradients = {n: p.grad for n, p in trained.named_parameters()}
        for weight, norm in expected[name].items():
            gradient = gradients[weight]
            assert gradient is not None, f"{weight} has no gradient"
            _near(f"gradient of {weight}", gradient.norm(), norm, 1e-3)


def _sampler(folder: Path, case: Case) -> None:
    """A step of the guided sampler, which the record holds beside the training steps."""
    with safe_open(folder / "training-didi.safetensors", framework="pt") as held:
        official: dict[str, Tensor] = {name: held.get_tensor(key) for name, key in case["tensors"].items()}
    with torch.no_grad():
        vectors_samplers.KINDS[case["kind"]](folder / "models" / case["model"], case, official)


KINDS: dict[str, Callable[[Path, Case], None]] = {"reward": _reward, "step": _step}


def check_didi(folder: Path, case: Case) -> str:
    """Empty if the recorded step is ours, else what differs."""
    try:
        KINDS.get(case["kind"], _sampler)(folder, case)
    except AssertionError as error:
        return " ".join(str(error).split())[:300] or "differs"
    return ""
