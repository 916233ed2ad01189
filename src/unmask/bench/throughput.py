"""Tokens per second of the engine: methods side by side on the same prompts, at several batch sizes.

    unmask bench throughput fast-dllm-v2-7b --methods autoregressive,fast_dllm_v2 --replay fast_dllm_v2=2.64

For each method and batch size that many prompts arrive at once in an engine of as many rows, and are decoded to their
ends: once so that every kind of step exists, then again, measured. Of that run:

    decode tok/s   positions decided / wall time, from the moment at which all rows are past their prefill and first
                   step, for as many steps as there are before the first row ends; the device is waited for at both ends
    batch / step   rows / wall time of a step, in that time: the decode rate of one token a row and step, which is what
                   autoregressive decoding has
    total tok/s    tokens returned / wall time from the arrival of the prompts to the last token, prefill included
    TPF            tokens returned / forwards but prefill, sums over all rows
    TTFT           from the arrival of all prompts to the first token of one, the median
    host share     1 - GPU time / wall time of the steps in the decode time, GPU time from the beginning of each step on
                   the device to its end; prefill is not in it
    x AR           decode tok/s beside that of autoregressive decoding with the same batch in the same run

Prompts are random token ids, and a model then has no end token; with a task they are its problems, and texts end where
they end. Where acceptance is replayed (`bench.replay`) TPF is what was asked for, not what a model found.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from typing import Any

import torch

from unmask.bench.steps import host_share, random_ids, run, synchronise
from unmask.decoding.counters import Counters
from unmask.decoding.method import Method
from unmask.engine.engine import LAG, Engine
from unmask.engine.request import Request
from unmask.errors import UnmaskError
from unmask.lm import LM
from unmask.schema import count, each, number, optional, record, scalar, table, text, whole

MOST = 100_000_000
TRIES = 5

ENTRY = {
    "method": text,
    "options": table(scalar),
    "replayed_tpf": optional(number(0.0)),
    "batch": whole(1, MOST),
    "reason": optional(text),
}
"""Fields of every entry. reason: why nothing was measured, null where it was."""
MEASURED = {
    "decode_tokens_per_second": optional(number(0.0)),
    "batch_over_step": optional(number(0.0)),
    "total_tokens_per_second": number(0.0),
    "tpf": number(0.0),
    "ttft_ms": number(0.0),
    "step_ms": optional(number(0.0)),
    "gpu_step_ms": optional(number(0.0)),
    "host_share": optional(number(0.0, 1.0)),
    "x_autoregressive": optional(number(0.0)),
    "tokens": count(MOST),
    "forwards": table(count(MOST)),
    "seconds": number(0.0),
    "decode": record,
    "ttfts": each(number(0.0), least=1),
    "walls": each(number(0.0)),
    "gpus": optional(each(number(0.0))),
    "shapes": each(each(whole(1, MOST))),
}
"""Fields of an entry that was measured. walls, gpus: milliseconds of each step in the decode time; shapes: its rows,
columns and tokens; ttfts: milliseconds, one a request."""
DECODE = {"steps": count(MOST), "tokens": count(MOST), "seconds": number(0.0)}
"""Fields of `decode`: what was done in the decode time."""


@dataclass(frozen=True)
class Contender:
    """A method with the options it was asked for with. tpf: its replayed acceptance, None: its own."""

    method: Method[Any]
    options: dict[str, Any]
    tpf: float | None = None

    def about(self, batch: int) -> dict[str, Any]:
        """The fields of every entry."""
        simple = (bool, int, float, str, type(None))
        options = {k: v if isinstance(v, simple) else str(v) for k, v in self.options.items()}
        named = {"method": self.method.name, "options": options, "replayed_tpf": self.tpf}
        return named | {"batch": batch, "reason": None}


def prompts_of(lm: LM, batch: int, length: int, task: str | None = None) -> list[list[int]]:
    """Random prompts of one length, or the first problems of a task."""
    if task is None:
        draw = random.Random(0)
        return [random_ids(draw, lm, length) for _ in range(batch)]
    from unmask.tasks import get_task

    return [lm.encode(problem.question) for problem in get_task(task).generate("test", batch)]


def measure(lm: LM, contender: Contender, prompts: Sequence[list[int]], new_tokens: int, **more: Any) -> dict[str, Any]:
    """One entry: a method at a batch size. Where the memory does not suffice the entry says so.

    Args:
        new_tokens: of each prompt at most; where acceptance is replayed, exactly.
        more: further arguments of the engine; by_load where the method takes notice of the load.
    """
    free_memory(lm.model.device)
    about = contender.about(len(prompts))
    try:
        return about | _measured(lm, contender.method, prompts, new_tokens, more)
    except torch.OutOfMemoryError as error:
        reason = f"out of memory: {str(error).splitlines()[0]}"
    return about | {"reason": reason}


def reaches(lm: LM, method: Method[Any], new_tokens: int) -> bool:
    """Whether a method takes notice of the load."""
    return len(method.bind(lm.family, new_tokens).reaches(new_tokens)) > 1


def free_memory(device: torch.device) -> None:
    """Gives back what engines that are gone have held on a GPU."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def beside(entries: list[dict[str, Any]]) -> None:
    """Sets `x_autoregressive` of the entries that were measured."""
    rate = "decode_tokens_per_second"
    base = {e["batch"]: e[rate] for e in entries if e["method"] == "autoregressive" and e["reason"] is None}
    for entry in entries:
        if entry["reason"] is None and entry[rate] and base.get(entry["batch"]):
            entry["x_autoregressive"] = round(entry[rate] / base[entry["batch"]], 4)


@dataclass
class _Pass:
    """One run over the prompts. window: steps between the first of all rows and the last before one ends. whole: no row
    is known to have ended in the steps that were measured."""

    requests: list[Request]
    window: int
    whole: bool = True
    seconds: float = 0.0
    decided: int = 0
    walls: list[float] | None = None
    gpus: list[float] | None = None
    shapes: Sequence[tuple[int, int, int]] = ()


def _measured(
    lm: LM, method: Method[Any], prompts: Sequence[list[int]], new_tokens: int, more: dict[str, Any]
) -> dict[str, Any]:
    sizes = {"rows": len(prompts), "max_prompt": max(map(len, prompts)), "max_new_tokens": new_tokens}
    more = more | {"by_load": more.get("by_load", False) and reaches(lm, method, new_tokens)}
    engine = Engine(lm, method, **sizes, share_prefixes=False, **more)
    done = _settled(engine, prompts)
    counters, walls = _counted(lm, done.requests), done.walls or []
    wall = sum(walls) / 1000
    gpu = None if done.gpus is None or not walls else sum(done.gpus) / len(walls)
    step = 1000 * wall / len(walls) if walls else None
    ttfts = [1000 * t for r in done.requests if (t := r.time_to_first_token) is not None]
    return {
        "decode_tokens_per_second": done.decided / wall if walls else None,
        "batch_over_step": None if step is None else 1000 * len(prompts) / step,
        "total_tokens_per_second": counters.tokens / done.seconds,
        "tpf": counters.tpf,
        "ttft_ms": median(ttfts),
        "step_ms": step,
        "gpu_step_ms": gpu,
        "host_share": None if step is None else host_share(step, gpu),
        "x_autoregressive": None,
        "tokens": counters.tokens,
        "forwards": {name: n for name, n in counters.forwards.items() if n},
        "seconds": done.seconds,
        "decode": {"steps": len(walls), "tokens": done.decided, "seconds": wall},
        "ttfts": ttfts,
        "walls": walls,
        "gpus": done.gpus,
        "shapes": [list(shape) for shape in done.shapes],
    }


def _settled(engine: Engine, prompts: Sequence[list[int]]) -> _Pass:
    """A run in which no kind of step was new, measured for as long as all rows decode. What the host knows of the rows
    when it chooses a width is a matter of time, so runs may differ by a few steps."""
    window = max(_pass(engine, prompts).window, 0)
    for _ in range(TRIES):
        kinds = len(engine.runner.captured)
        done = _pass(engine, prompts, window)
        if done.whole and len(engine.runner.captured) == kinds:
            return done
        if not done.whole:
            # As a load becomes known rows may be told another thing, and there are far fewer steps.
            known = window if engine.load is None else _pass(engine, prompts).window
            window = max(min(window - max(LAG, window // 16), known), 0)
    return _pass(engine, prompts)


def _pass(engine: Engine, prompts: Sequence[list[int]], window: int = 0) -> _Pass:
    """Decodes the prompts; measures `window` steps of all rows, or counts how many there are."""
    synchronise(engine.device)
    begun = perf_counter()
    requests = [engine.add(ids, seed=i) for i, ids in enumerate(prompts)]
    while len(engine.scheduler.running) < len(prompts) and not _ended(requests):
        engine.step()
    done, before = _Pass(requests, -LAG), engine.steps
    if window and not _ended(requests):
        decided = _decided(engine)
        done.walls, timer = run(engine, window)
        done.gpus, done.shapes = timer.milliseconds(), timer.shapes
        done.decided = _decided(engine) - decided
        done.whole = not _ended(requests)
    while not _ended(requests):
        engine.step()
    done.window += engine.steps - before  # an end is known LAG steps late
    engine.run()
    synchronise(engine.device)
    done.seconds = perf_counter() - begun
    failed = [r.error for r in requests if r.error is not None]
    if failed:
        raise UnmaskError(failed[0])
    return done


def _ended(requests: list[Request]) -> bool:
    return any(r.status.ended for r in requests)


def _decided(engine: Engine) -> int:
    """Positions that all rows have decided so far. Waits for the device."""
    named = engine.batch.named
    index = torch.arange(named["open"].shape[1], device=engine.device)
    inside = (index >= named["prompt"][:, None]) & (index < named["end"][:, None])
    return int((~named["open"] & inside).sum())


def _counted(lm: LM, requests: list[Request]) -> Counters:
    """Tokens up to the first end token, and forwards: sums."""
    total = Counters()
    for request in requests:
        ids = request.canvas[: request.max_new_tokens]
        stop = next((i + 1 for i, token in enumerate(ids) if token in lm.facts.eos_ids), len(ids))
        assert request.counters is not None
        total.add(replace(request.counters, tokens=stop))
    return total
