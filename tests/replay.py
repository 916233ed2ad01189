"""How a recorded case of the official code is run here: one small function a file family, used by conform.py alone.

Each takes the loaded checkpoint and the case, decodes, and returns a `Replay`: what our code did, in the terms of the
record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from unmask.decoding import build
from unmask.decoding.forward import Facts
from unmask.decoding.loop import Observer, Row, TraceStep, decode
from unmask.decoding.sampling import Draw
from unmask.models.checkpoint import Checkpoint

Case = dict[str, Any]
Trace = list[list[Any]]


@dataclass
class Replay:
    """tokens and trace of each row, forwards by kind, and the kind of each forward in order."""

    tokens: list[list[int]]
    trace: list[Trace]
    kinds: list[str]
    by_kind: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.by_kind = self.by_kind or dict(Counter(self.kinds))


@dataclass(frozen=True)
class Ran:
    """What a call of `run` took: method, tokens up to the first end token, forwards, and the prefills among them."""

    method: str
    tokens: int
    forwards: int
    prefills: int


# For forwards.py: what ran, and whether replays run without the settings that make us spend the forwards of a record.
RAN: list[Ran] = []
OWN_DEFAULTS = False
PRESETS = {"early_exit", "fused_commit", "verify", "eager", "eos_block", "own_prefill", "prefill_draft"}


def prompts_of(case: Case) -> list[list[int]]:
    """The rows of a case, left padding taken off."""
    rows = case["prompt"] if isinstance(case["prompt"][0], list) else [case["prompt"]]
    masks = case["options"].get("attention_mask")
    if masks is None:
        return rows
    return [[t for t, keep in zip(row, mask) if keep] for row, mask in zip(rows, masks)]


def run(
    checkpoint: Checkpoint,
    case: Case,
    method: str,
    options: dict[str, Any],
    *,
    new_tokens: int,
    eos: tuple[int, ...],
    mask: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    observe: Observer | None = None,
) -> list[Row]:
    """Decodes the case's rows as one batch with everything traced."""
    prompts = prompts_of(case)
    if OWN_DEFAULTS:
        options = {key: value for key, value in options.items() if key not in PRESETS}
        new_tokens = min(new_tokens, len(case["expect"]["tokens"]))
    family = checkpoint.family.override(mask_token_id=mask) if mask >= 0 else checkpoint.family
    rows = len(prompts)
    draw = Draw(
        torch.full((rows,), temperature),
        torch.full((rows,), top_p),
        torch.full((rows,), top_k),
        torch.zeros(rows, dtype=torch.long),
    )
    bound = build(method, options).bind(family, new_tokens)
    facts = Facts(mask, eos, family.shift)
    out = decode(
        checkpoint.model,
        bound,
        prompts,
        facts=facts,
        draw=draw,
        new_tokens=new_tokens,
        trace=True,
        observe=observe,
    )
    forwards = [r.counters.forwards for r in out]
    tokens = sum(len(cut(r.canvas[:new_tokens], eos)) for r in out)
    RAN.append(Ran(bound.name, tokens, sum(sum(f.values()) for f in forwards), sum(f["prefill"] for f in forwards)))
    return out


def trace_of(steps: list[TraceStep]) -> Trace:
    return [[s.forward, s.positions, s.tokens] for s in steps if s.positions]


def in_step(rows: list[Row], names: dict[str, str], tokens: list[list[int]] | None = None) -> Replay:
    """Rows that run in step: forward numbers of a row are those of the batch."""
    longest = max(rows, key=lambda r: len(r.trace))
    return Replay(
        tokens or [r.canvas for r in rows],
        [trace_of(r.trace) for r in rows],
        [names[s.kind] for s in longest.trace],
    )


def cut(ids: list[int], eos: tuple[int, ...]) -> list[int]:
    stop = next((i for i, t in enumerate(ids) if t in eos), None)
    return ids if stop is None else ids[: stop + 1]


def autoregressive(checkpoint: Checkpoint, case: Case) -> Replay:
    o = case["options"]
    eos = () if o["eos_token_id"] is None else (o["eos_token_id"],)
    rows = run(checkpoint, case, "autoregressive", {}, new_tokens=o["max_new_tokens"], eos=eos, mask=-1)
    names = {"prefill": "prefill", "denoise": "decode"}
    return in_step(rows, names, [cut(r.canvas, eos) for r in rows])


def llada(checkpoint: Checkpoint, case: Case) -> Replay:
    o = case["options"]
    keys = ("steps", "block_length", "cfg_scale", "remasking", "logits_eos_inf", "confidence_eos_eot_inf")
    options = {k: o[k] for k in keys} | {"early_exit": False}
    rows = run(
        checkpoint,
        case,
        "masked",
        options,
        new_tokens=o["gen_length"],
        eos=(o["eos_id"], o["eot_id"]),
        mask=o["mask_id"],
        temperature=o["temperature"],
    )
    return in_step(rows, {"denoise": "denoise"})


def dream(checkpoint: Checkpoint, case: Case) -> Replay:
    o = case["options"]
    options = {"steps": o["steps"], "alg": o["alg"], "eps": o["eps"], "alg_temp": o["alg_temp"] or 0.0}
    rows = run(
        checkpoint,
        case,
        "masked",
        options | {"early_exit": False},
        new_tokens=o["max_new_tokens"],
        eos=(o["eos_token_id"],),
        mask=o["mask_token_id"],
        temperature=o["temperature"],
        top_p=o["top_p"] or 1.0,
        top_k=o["top_k"] or 0,
    )
    return in_step(rows, {"denoise": "denoise"})


def sdar(checkpoint: Checkpoint, case: Case) -> Replay:
    """generate.py takes the probability after filtering, the evaluation copy (it has `threshold`) the one before."""
    o = case["options"]
    options = {
        "block_length": o["block_length"],
        "denoising_steps": o["denoising_steps"],
        "early_exit": False,
        "fused_commit": False,
    }
    if "threshold" in o:
        strategy = "static" if o["threshold"] >= 1 else "dynamic"
        options |= {"strategy": strategy, "threshold": o["threshold"], "confidence": "raw"}
    else:
        options |= {
            "remasking_strategy": o["remasking_strategy"],
            "confidence_threshold": o["confidence_threshold"],
            "confidence": "filtered",
        }
    rows = run(
        checkpoint,
        case,
        "block_diffusion",
        options,
        new_tokens=o["gen_length"],
        eos=tuple(o["stopping_criteria_idx"] or ()),
        mask=o["mask_id"],
        temperature=0.0 if o.get("greedy") else o["temperature"],
        top_k=o["top_k"],
        top_p=o["top_p"],
    )
    return in_step(rows, {k: k for k in ("prefill", "denoise", "commit")})


V2_KINDS = {"prefill": "prefill", "denoise": "full", "window": "sub", "commit": "commit"}


def _v2_options(o: dict[str, Any]) -> dict[str, Any]:
    return {k: o[k] for k in ("block_size", "small_block_size", "use_block_cache")} | {
        "threshold": float(o["threshold"])
    }


def fast_dllm_v2(checkpoint: Checkpoint, case: Case) -> Replay:
    """The official loop counts blocks; its text ends with the token that the last commit gives."""
    o, eos = case["options"], (case["options"]["stop_token"],)
    block = o["block_size"]
    new_tokens = o["max_new_tokens"] // block * block - len(case["prompt"]) % block + 1
    if new_tokens < 1:  # not one block fits: the official loop prefills and returns nothing
        return Replay([[]], [[]], ["prefill"] if len(case["prompt"]) >= block else [])
    rows = run(checkpoint, case, "fast_dllm_v2", _v2_options(o), new_tokens=new_tokens, eos=eos, mask=o["mask_id"])
    return in_step(rows, V2_KINDS, [cut(rows[0].canvas[:new_tokens], eos)])


def fast_dllm_v2_batch(checkpoint: Checkpoint, case: Case) -> Replay:
    """Our rows run independently; the official batch moves in lock-step, so its schedule is rebuilt from our rows.

    In lock-step a sub-block takes as many forwards as its slowest row, and all rows share the commit of a block.
    """
    o, eos = case["options"], (case["options"]["stop_token"],)
    block, sub = o["block_size"], o["small_block_size"]
    prompts = prompts_of(case)
    lengths = [len(p) for p in prompts]
    stop = o["max_new_tokens"] // block + max(lengths) // block
    wanted = [stop * block + 1 - n for n in lengths]
    # The official batch finishes the block in which a row ends.
    options = _v2_options(o) | {"early_exit": False}
    rows = run(checkpoint, case, "fast_dllm_v2", options, new_tokens=max(wanted), eos=eos, mask=o["mask_id"])
    places = [_v2_places(r, n, block, sub, stop) for r, n in zip(rows, lengths)]
    begin = min(lengths) // block
    kinds = ["prefill"] if begin else []
    index: dict[tuple[int, int, int], int] = {}
    for k in range(begin, stop):
        for s in range(block // sub):
            count = max(sum(1 for p in places_ if p[:2] == (k, s)) for places_ in places)
            for i in range(count):
                index[k, s, i] = len(kinds)
                kinds.append("full")
        index[k, -1, 0] = len(kinds)
        kinds.append("commit")
        if all(not any(p[0] > k for p in places_) for places_ in places):
            break
    tokens, traces = [], []
    for row, place, n, length in zip(rows, places, wanted, lengths):
        ids = cut(row.canvas[:n], eos)
        if ids[-1] in eos:  # the rest of the block and its bridge token are the tokenizer's pad token
            place = [p for p in place if p[1] >= 0 or p[3].positions[0] < len(ids)]
            ids += [o["pad_token_id"]] * (-(length + len(ids)) % block + 1)
        tokens.append(ids)
        first = [[0, s.positions, s.tokens] for s in row.trace if s.kind == "prefill" and s.positions]
        traces.append(first + [[index[p[:3]], p[3].positions, p[3].tokens] for p in place if p[3].positions])
    return Replay(tokens, traces, kinds)


def _v2_places(row: Row, prompt: int, block: int, sub: int, stop: int) -> list[tuple[int, int, int, TraceStep]]:
    """Block, sub-block (-1 = commit) and number inside it of each forward of a row."""
    out: list[tuple[int, int, int, TraceStep]] = []
    for step in row.trace:
        if step.kind == "prefill":
            continue
        k = (step.first + prompt) // block
        s = -1 if step.kind == "commit" else (step.positions[0] + prompt) % block // sub
        if k < stop:
            out.append((k, s, sum(1 for p in out if p[:2] == (k, s)), step))
    return out


def d2f(checkpoint: Checkpoint, case: Case) -> Replay:
    o = case["options"]
    keys = (
        "block_size",
        "block_add_threshold",
        "decoded_token_threshold",
        "skip_threshold",
        "sampling_strategy",
    )
    rows = run(
        checkpoint,
        case,
        "d2f",
        {k: o[k] for k in keys} | {"early_exit": False},
        new_tokens=o["max_new_tokens"] // o["block_size"] * o["block_size"],
        eos=(o["eos_token_id"],),
        mask=o["mask_token_id"],
        temperature=o["temperature"],
        top_p=o["top_p"] or 1.0,
        top_k=o["top_k"] or 0,
    )
    # Blocks that were never appended are not part of the official canvas.
    tokens = [[t for t, is_open in zip(r.canvas, r.open) if not is_open] for r in rows]
    replay = in_step(rows, {k: k for k in ("prefill", "denoise", "commit")}, tokens)
    if "with_cache_update" in case["expect"]["forwards_by_kind"]:
        stored = sum(1 for k in replay.kinds if k != "denoise")
        replay.by_kind = {"with_cache_update": stored, "without_cache_update": len(replay.kinds) - stored}
    return replay


# Longest stem first: a file is replayed by the first entry its name begins with.
REPLAYS: dict[str, Callable[[Checkpoint, Case], Replay]] = {
    "fast-dllm-v2-batch-block": fast_dllm_v2_batch,
    "fast-dllm-v2-block": fast_dllm_v2,
    "vanilla-llada": llada,
    "vanilla-dream": dream,
    "sdar-block": sdar,
    "d2f-": d2f,
    "ar-causal": autoregressive,
}
