"""Replays of Jacobi decoding: the official scripts' blocks, their multi-block kernel, the engine's window, and the
trajectories recorded for training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from given_drafts import Given, of_blocks, placed
from replay import Case, Replay, Trace, prompts_of, run
from unmask.decoding.loop import Row, TraceStep
from unmask.decoding.trajectory import Trajectories
from unmask.models.checkpoint import Checkpoint, load_model


def blocks(checkpoint: Checkpoint, case: Case) -> Replay:
    """Plain blocks."""
    return _in_blocks(checkpoint, case, "jacobi", {"schedule": "block"})


def recycling(checkpoint: Checkpoint, case: Case) -> Replay:
    """One block at a time beside recycled candidates."""
    keys = ("K", "r", "n_gram_pool_size", "lookahead_start_ratio", "min_candidates", "pool_scope")
    return _in_blocks(checkpoint, case, "jacobi_blocks", {k: case["options"][k] for k in keys})


def _in_blocks(checkpoint: Checkpoint, case: Case, method: str, options: dict[str, Any]) -> Replay:
    """The official scripts count a token when it has been run, so whole blocks and one token more are decoded here."""
    o = case["options"]
    size, eos = o["n_token_seq_len"], _eos(o)
    new_tokens = -(-o["max_new_tokens"] // size) * size
    options |= {
        "block_size": size,
        "prefill_draft": "update",
        "drafts": of_blocks(case["drafts"], size),
        "early_exit": False,
    }
    (row,) = run(checkpoint, case, method, options, new_tokens=new_tokens + 1, eos=eos, mask=-1)
    trace = _late(row.trace, new_tokens, eos)
    return Replay([[t for _, _, ids in trace for t in ids]], [trace], _kinds(trace))


def _late(steps: list[TraceStep], new_tokens: int, eos: tuple[int, ...]) -> Trace:
    """The trace with the token behind an accepted run counted one forward later, if it is no end token."""
    trace: Trace = []
    waiting: list[tuple[int, int]] = []
    for step in steps:
        found = waiting + list(zip(step.positions, step.tokens))
        if step.kind == "prefill":
            waiting = found
            continue
        stop = next((i for i, (_, token) in enumerate(found) if token in eos), None)
        final, waiting = (found[:-1], found[-1:]) if stop is None else (found[: stop + 1], [])
        trace.append([step.forward, *map(list, zip(*((p, t) for p, t in final if p < new_tokens)))])
        if stop is not None:
            break
    return trace


def engine(checkpoint: Checkpoint, case: Case) -> Replay:
    """Rows end when they have their own max_tokens; the engine looks after each forward and cuts nothing."""
    o, prompts = case["options"], prompts_of(case)
    size, eos, batch = o["jacobi_block_len"], _eos(o), isinstance(case["prompt"][0], list)
    wanted = o["max_tokens"] if batch else [o["max_tokens"]]
    options = {"block_size": size, "schedule": "engine", "drafts": _fills(case, size)}
    rows = run(checkpoint, case, "jacobi", options, new_tokens=max(wanted) + size, eos=eos, mask=-1)
    traces = [_until(row, count) for row, count in zip(rows, wanted)]
    assert len(traces) == len(prompts)
    longest = max(traces, key=len)
    return Replay([[t for _, _, ids in trace for t in ids] for trace in traces], traces, _kinds(longest))


def _fills(case: Case, size: int) -> Given:
    """The ids that fill the window, in the order in which the engine draws them: a row whose text ends draws none."""
    batch = isinstance(case["prompt"][0], list)
    first = case["prefill_drafts"] if batch else [case["prefill_drafts"]]
    traces = case["expect"]["trace"] if batch else [case["expect"]["trace"]]
    drawn = [list(ids[: size - 1]) for ids in first]
    left = iter(case["fill_ids"])
    for forward in range(1, max(map(len, traces))):
        for ids, trace in zip(drawn, traces):
            if forward < len(trace):
                ids += next(left)
    return Given(tuple(placed([(0, ids)]) for ids in drawn))


def _until(row: Row, wanted: int) -> Trace:
    trace: Trace = []
    for step in row.trace:
        if step.positions and sum(len(ids) for _, _, ids in trace) < wanted:
            trace.append([step.forward, step.positions, step.tokens])
    return trace


def _kinds(trace: Trace) -> list[str]:
    return ["prefill"] + ["denoise"] * len(trace)


def _eos(options: dict[str, Any]) -> tuple[int, ...]:
    return () if options["eos_token_id"] is None else (options["eos_token_id"],)


def trajectory(folder: Path, case: Case) -> str:
    """The states of every block; what is made of them for training is not part of decoding."""
    o, e = case["options"], case["expect"]
    size, count = o["n_token_seq_len"], o["blocks"]
    drafts = Given((placed([(i * size + 1, tail) for i, tail in enumerate(case["tails"])]),))
    options = {"block_size": size, "schedule": "block", "prefill_draft": "none", "drafts": drafts}
    checkpoint = load_model(folder / "models" / case["model"], device="cpu", dtype=torch.float32)
    seen = Trajectories(1, size)
    (row,) = run(checkpoint, case, "jacobi", options, new_tokens=size * count + 1, eos=(), mask=-1, observe=seen)
    if row.canvas[:-1] != e["tokens"]:
        return f"tokens differ: expected {e['tokens']}, got {row.canvas[:-1]}"
    for number, (block, states) in enumerate(zip(e["blocks"], seen.states[0][:-1], strict=True)):
        # The official recorder writes the fixed point twice where the last forward confirms more than one token.
        expected = block["states"][:-1] if block["states"][-2:-1] == block["states"][-1:] else block["states"]
        if states != expected:
            return f"block {number}: expected the states {expected}, got {states}"
        if block["forwards"] != len(states):
            return f"block {number}: expected {block['forwards']} forwards, got {len(states)}"
    return ""


REPLAYS = {"jacobi-causal": blocks, "jacobi-mr": recycling, "jacobi-window": engine}
TRAJECTORIES = {"jacobi-trajectory": trajectory}
