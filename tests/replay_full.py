"""Replays of the methods on full-attention models with approximate caches: Fast-dLLM v1, dParallel, dInfer.

The official batches run in lock-step: a block takes as many forwards as its slowest row. Here rows are independent, so
the schedule of the batch is rebuilt from the forwards that each row spent on each block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from replay import Case, Replay, Trace, in_step, prompts_of, run
from unmask.decoding.loop import Row, TraceStep
from unmask.models.checkpoint import Checkpoint

NAMES = {"denoise": "full", "refresh": "refresh", "window": "denoise"}
Blocks = dict[int, list[TraceStep]]


def blocks_of(row: Row, size: int, origin: int) -> Blocks:
    """The forwards spent on each block of `size`; the grid begins `origin` positions before the end of the prompt."""
    out: Blocks = {}
    left = list(range(len(row.canvas)))
    for step in row.trace:
        out.setdefault((left[0] + origin) // size, []).append(step)
        left = [p for p in left if p not in step.positions]
    return out


def lockstep(rows: list[Row], size: int) -> Replay:
    """The batch in lock-step: forward i of a block is the same one for every row."""
    places = [blocks_of(r, size, 0) for r in rows]
    kinds: list[str] = []
    traces: list[Trace] = [[] for _ in rows]
    for block in range(max(max(p) for p in places) + 1):
        steps = [p.get(block, []) for p in places]
        for trace, own in zip(traces, steps):
            trace += [[len(kinds) + i, s.positions, s.tokens] for i, s in enumerate(own) if s.positions]
        kinds += [NAMES[s.kind] for s in max(steps, key=len)]
    return Replay([r.canvas for r in rows], traces, kinds)


def fast_dllm_llada(checkpoint: Checkpoint, case: Case) -> Replay:
    o = case["options"]
    rule = {k: o[k] for k in ("threshold", "factor") if o[k] is not None} or {"steps": o["steps"]}
    options = {"cache": o["cache"], "block_length": o["block_length"], "early_exit": False} | rule
    rows = run(
        checkpoint,
        case,
        "fast_dllm",
        options,
        new_tokens=o["gen_length"],
        eos=(),
        mask=o["mask_id"],
        temperature=o["temperature"],
    )
    return lockstep(rows, o["block_length"])


def fast_dllm_dream(checkpoint: Checkpoint, case: Case) -> Replay:
    """Without a cache the official code knows no blocks: one over everything, and a pool that grows by step."""
    o = case["options"]
    options: dict[str, Any] = {"early_exit": False}
    if o["use_cache"]:
        options |= {"block_length": o["block_length"], "cache": "dual" if o["dual_cache"] else "prefix"}
    else:
        options |= {"block_length": o["max_new_tokens"], "pool_steps": o["steps"]}
    if o["alg"] == "confidence_threshold":
        options |= {"threshold": o["threshold"]}
    else:
        options |= {"steps": o["steps"], "eps": o["eps"]}
    rows = run(
        checkpoint,
        case,
        "fast_dllm",
        options,
        new_tokens=o["max_new_tokens"],
        eos=(),
        mask=o["mask_token_id"],
        temperature=o["temperature"],
        top_p=o["top_p"] or 1.0,
    )
    return in_step(rows, {"denoise": "full", "refresh": "refresh", "window": "window"})


def dparallel(checkpoint: Checkpoint, case: Case) -> Replay:
    """Threshold none is the plain plan of steps. Dream's options alg_temp and top_p are accepted and ignored there."""
    o = case["options"]
    rule = {"steps": o["steps"]} if o["threshold"] is None else {"threshold": o["threshold"]}
    rows = run(
        checkpoint,
        case,
        "dparallel",
        {"cache": o.get("cache", "none"), "block_length": o["block_length"], "early_exit": False} | rule,
        new_tokens=o["gen_length"] if "gen_length" in o else o["max_new_tokens"],
        eos=(),
        mask=o["mask_id"] if "mask_id" in o else o["mask_token_id"],
        temperature=o["temperature"],
    )
    return lockstep(rows, o["block_length"])


KEYS = (
    "decoder",
    "cache",
    "block_length",
    "threshold",
    "early_stop",
    "start_block_align",
    "cache_update_freq",
    "low_threshold",
    "credit_alpha",
    "boost_gamma",
    "decay_beta",
    "prefix_look",
    "after_look",
    "warmup_steps",
)


def dinfer(checkpoint: Checkpoint, case: Case) -> Replay:
    """The rows of a ragged batch are filled up to the end of the batch's canvas, each from its own prompt on."""
    o = case["options"]
    smoothing = o.get("smoothing") or {"cont_weight": 0.0}
    options = {k: o[k] for k in KEYS if k in o} | smoothing | {"early_exit": False}
    ragged = o.get("ragged", False)
    given = prompts_of(case)
    end = max(map(len, given)) + o["gen_length"]
    prompts = [[t for t in p if t != o["mask_id"]] if ragged else p for p in given]
    rows: list[Row] = []
    for prompt in prompts:
        alone = case | {"prompt": prompt}
        rows += run(
            checkpoint,
            alone,
            "dinfer",
            options,
            new_tokens=end - len(prompt),
            eos=(o["eos_id"],),
            mask=o["mask_id"],
            temperature=float(o["temperature"]),
        )
    kinds, traces = Official(o, rows, [len(p) if o["start_block_align"] else 0 for p in prompts]).schedule()
    tokens = [[o["eos_id"] if is_open else t for t, is_open in zip(r.canvas, r.open)] for r in rows]
    if ragged:
        tokens = [p + t for p, t in zip(prompts, tokens)]
        traces = [[[n, [q + len(p) for q in at], ids] for n, at, ids in t] for p, t in zip(prompts, traces)]
    return Replay(tokens, traces, kinds)


class Official:
    """dInfer's schedule, rebuilt: it decides how often to iterate from the masks it saw last, so some iterations find
    the block complete; and after a refresh a cached forward follows in the same iteration, needed or not. Those
    forwards change nothing and exist only here."""

    def __init__(self, options: dict[str, Any], rows: list[Row], origins: list[int]) -> None:
        self.o, self.rows = options, rows
        self.places = [blocks_of(r, options["block_length"], n) for r, n in zip(rows, origins)]
        self.origins = origins
        self.kinds: list[str] = []
        self.traces: list[Trace] = [[] for _ in rows]
        self.iteration = 0

    def schedule(self) -> tuple[list[str], list[Trace]]:
        for block in sorted({b for p in self.places for b in p}):
            self._block(block)
        return self.kinds, self.traces

    def _block(self, block: int) -> None:
        size = self.o["block_length"]
        steps = [p.get(block, []) for p in self.places]
        left = sum(len(s.positions) for own in steps for s in own)
        begin, self.entered = len(self.kinds), False
        while left:
            for _ in range(min(max(left // self.o["expected_tpf"], 1), self.o["maximum_unroll"])):
                for kind in self._iterate():
                    at = len(self.kinds) - begin
                    for trace, own in zip(self.traces, steps):
                        if at < len(own):
                            assert NAMES[own[at].kind] == kind, f"block {block} of {size}, forward {at}"
                            trace.append([len(self.kinds), own[at].positions, own[at].tokens])
                            left -= len(own[at].positions)
                    self.kinds.append(kind)

    def _iterate(self) -> list[str]:
        """The forwards of one iteration."""
        o, number = self.o, self.iteration
        vicinity = o["cache"] == "vicinity"
        if o["cache"] == "none" or (vicinity and number < o["warmup_steps"]):
            self.iteration += 1
            return ["full"]
        extra = o["cache_update_freq"] is not None and number % o["cache_update_freq"] == 0
        refresh = not self.entered or extra
        self.entered = True
        self.iteration += 2 if refresh and (vicinity or o.get("smoothing")) else 1
        return ["refresh", "denoise"] if refresh else ["denoise"]


REPLAYS: dict[str, Callable[[Checkpoint, Case], Replay]] = {
    "fast-dllm-v1-llada": fast_dllm_llada,
    "fast-dllm-v1-dream": fast_dllm_dream,
    "dparallel-": dparallel,
    "dinfer-": dinfer,
}
