"""Replays of FreeDave's records. The baselines (static, threshold) are depth 1 without the official detours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from replay import Case, Replay, Trace, in_step, prompts_of, run, trace_of
from unmask.decoding.loop import Row, TraceStep
from unmask.models.checkpoint import Checkpoint

NAMES = {"prefill": "prefill", "refresh": "refresh", "commit": "commit"}


def _decode(checkpoint: Checkpoint, case: Case, more: dict[str, Any]) -> tuple[list[Row], list[list[int]]]:
    """The rows and their tokens; what an early exit leaves open is filled with the end token."""
    o = case["options"]
    drafts = {"verify": "official", "draft_steps": o["draft_steps"]} if "draft_steps" in o else {"draft_steps": 1}
    options = {
        "verify": "block",
        "block_length": o["block_length"],
        "confidence_threshold": o["confidence_threshold"],
        "leftmost": o["alg_temp"] == -1,
        "eos_block": o["early_exit"],
        "early_exit": False,
    }
    eos, mask = o["eos_token_id"], o["mask_token_id"]
    all_options = options | drafts | more
    rows = run(checkpoint, case, "freedave", all_options, new_tokens=o["max_gen_length"], eos=(eos,), mask=mask)
    return rows, [[eos if is_open else t for t, is_open in zip(r.canvas, r.open)] for r in rows]


def block(checkpoint: Checkpoint, case: Case) -> Replay:
    """The record books the fill of an early exit under the last forward; it covers what eager drafts had decided."""
    o = case["options"]
    rows, tokens = _decode(checkpoint, case, {"eager": o.get("eager_acceptance_mode", False)})
    drafts = "draft_steps" in o
    names = {"denoise": "first", "draft": "verify"} if drafts else {"denoise": "denoise"}
    replay = in_step(rows, NAMES | names, tokens)
    filled = [p for p, is_open in enumerate(rows[0].open) if is_open]
    if filled:
        replay.trace[0].append([len(replay.kinds) - 1, filled, [o["eos_token_id"]] * len(filled)])
        last = rows[0].trace[-1]
        stop = last.first + last.span
        tokens[0][stop:] = [o["eos_token_id"]] * (len(tokens[0]) - stop)
    return replay


def _cache(case: Case) -> dict[str, Any]:
    return {"cache": "dual" if case["options"]["dual_cache"] else "prefix"}


def llada(checkpoint: Checkpoint, case: Case) -> Replay:
    """The record lists a token taken without a forward behind the entry of the forward before it."""
    rows, tokens = _decode(checkpoint, case, _cache(case))
    name = "verify" if case["options"]["mode"] == "freedave" else "denoise"
    replay = in_step(rows, NAMES | {"window": name, "draft": name}, tokens)
    replay.trace = [_split_as(case["expect"]["trace"], t) for t in replay.trace]
    return replay


def _split_as(expected: Trace, got: Trace) -> Trace:
    """Entries of `got` cut in two where `expected` has two for one forward."""
    last = {n: positions for n, positions, _ in expected}
    count = Counter(n for n, _, _ in expected)
    out: Trace = []
    for n, positions, tokens in got:
        parts: list[list[tuple[int, int]]] = [[], []]
        for p, t in zip(positions, tokens):
            parts[count[n] > 1 and p in last[n]].append((p, t))
        out += [[n, *map(list, zip(*part))] for part in parts if part]
    return out


def dream(checkpoint: Checkpoint, case: Case) -> Replay:
    """A recorded batch moves in lock-step: a block takes as many forwards as its slowest row."""
    rows, tokens = _decode(checkpoint, case, _cache(case))
    names = NAMES | {"window": "window", "draft": "window"}
    if len(prompts_of(case)) == 1:
        return in_step(rows, names, tokens)
    blocks = [_by_block(r.trace) for r in rows]
    kinds: list[str] = []
    traces: list[Trace] = [[] for _ in rows]
    for together in zip(*blocks):
        for i, steps in enumerate(together):
            traces[i] += [[len(kinds) + n, p, t] for n, p, t in trace_of(steps)]
        kinds += [names[s.kind] for s in max(together, key=len)]
    return Replay(tokens, traces, kinds)


def _by_block(steps: list[TraceStep]) -> list[list[TraceStep]]:
    """The forwards of each block, numbered from 0 in it."""
    out: list[list[TraceStep]] = []
    for step in steps:
        if step.kind == "refresh":
            out.append([])
        out[-1].append(step)
    for block_ in out:
        for i, step in enumerate(block_):
            block_[i] = replace(step, forward=i)
    return out


REPLAYS: dict[str, Callable[[Checkpoint, Case], Replay]] = {
    "freedave-block": block,
    "freedave-llada": llada,
    "freedave-dream": dream,
}
