"""How long one step of the engine takes, beside the time below which it cannot fall.

    unmask bench step fast-dllm-v2-7b --shapes 1x1,8x32,32x32 --out bench/results/step.json

A step is all of it: plan, forward, scores, commit, on a GPU in one CUDA graph. Window 1 is autoregressive decoding; a
wider window is one block of that size of which a forward decides one token (Fast-dLLM v2 at threshold 1), so that every
step has the same shape: the last of a block makes its keys permanent and gives the next one's first token.

The floor is the larger of two times, for ceilings measured in the same run:

    bytes:       the weights of the layers and of the head, read once / bandwidth of a large copy (read plus written)
    operations:  2 per weight and token, and those of attention / rate of a large square product

Keys, values and activations are not in the bytes; attention counts the context as it is before the first timed step.
With float8 weights all but those of attention count at the rate of a float8 product.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from time import perf_counter
from typing import Any

import torch

from unmask.bench.kernels import by_kernel
from unmask.bench.roofline import Ceilings, work
from unmask.decoding.method import round_up
from unmask.engine.batch import Used
from unmask.engine.engine import Engine
from unmask.engine.runner import Runner
from unmask.lm import LM
from unmask.schema import each, number, one_of, optional, whole

WARM = 12  # steps before the timed ones
SPARE = 8  # steps that may follow them
MOST = 1_000_000

ENTRY = {
    "batch": whole(1, MOST),
    "window": whole(1, MOST),
    "context": whole(1, MOST),
    "steps": whole(1, MOST),
    "milliseconds": number(0.0),
    "gpu": optional(number(0.0)),
    "host_share": optional(number(0.0, 1.0)),
    "floor": number(0.0),
    "bound": one_of(("bytes", "operations")),
    "ratio": number(0.0),
    "bytes": number(0.0),
    "operations": number(0.0),
    "walls": each(number(0.0), least=1),
    "gpus": optional(each(number(0.0), least=1)),
}
"""Fields of `StepTime.as_dict`."""


@dataclass(frozen=True)
class StepTime:
    """One shape; times in milliseconds.

    Attributes:
        batch, window: tokens of a step are batch * window. context: prompt tokens of each row.
        steps: how many were timed.
        milliseconds: a step, wall time: the mean.
        gpu: a step, device alone: the mean of the times between its beginning and its end there. None off the GPU.
        host_share: 1 - gpu / milliseconds, the part of the wall time in which the device waited for the host.
        floor, bound: the time below which no step falls, and what it comes from.
        bytes, operations: what the floor counts.
        walls, gpus: all single steps. A wall time is that from one launch to the next, which the host may be ahead of.
        kernels: see `bench.kernels`; None where nobody asked.
    """

    batch: int
    window: int
    context: int
    steps: int
    milliseconds: float
    gpu: float | None
    host_share: float | None
    floor: float
    bound: str
    bytes: float
    operations: float
    walls: list[float]
    gpus: list[float] | None
    kernels: list[dict[str, Any]] | None = None

    @property
    def ratio(self) -> float:
        """Step time over floor."""
        return self.milliseconds / self.floor

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        own = asdict(self) | {"ratio": round(self.ratio, 4)}
        return {name: value for name, value in own.items() if name != "kernels" or value is not None}


class Timed:
    """A runner whose next `steps` steps are timed on the device, from the beginning of each to its end; off the GPU
    only their shapes are noted: rows, columns and tokens."""

    def __init__(self, runner: Runner, device: torch.device, steps: int) -> None:
        self.runner = runner
        self.cuda = device.type == "cuda"
        self.shapes: list[tuple[int, int, int]] = []
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * steps * self.cuda)]
        for event in events:
            event.record()  # makes it, for which the device would have to wait later
        self._spans = list(zip(events[::2], events[1::2]))

    def __call__(self, rows: int, width: int, used: Used, tokens: int | None = None) -> None:
        self.shapes.append((rows, width, rows * width if tokens is None else tokens))
        if not self.cuda:
            self.runner(rows, width, used, tokens)
            return
        begin, end = self._spans[len(self.shapes) - 1]
        begin.record()
        self.runner(rows, width, used, tokens)
        end.record()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)

    def milliseconds(self) -> list[float] | None:
        """Of each step, which the device must have done; None off the GPU."""
        done = self._spans[: len(self.shapes)]
        return [round(begin.elapsed_time(end), 4) for begin, end in done] if self.cuda else None


@contextmanager
def timed(engine: Engine, steps: int) -> Iterator[Timed]:
    """Times the next steps of an engine."""
    own = engine.runner
    engine.runner = timer = Timed(own, engine.device, steps)  # type: ignore[assignment]
    try:
        yield timer
    finally:
        engine.runner = own


def run(engine: Engine, steps: int) -> tuple[list[float], Timed]:
    """So many steps: wall milliseconds of each, the last one until the device is done, and what the device says."""
    with timed(engine, steps) as timer:
        synchronise(engine.device)
        stamps = [perf_counter()]
        for _ in range(steps):
            engine.step()
            stamps.append(perf_counter())
    synchronise(engine.device)
    stamps[-1] = perf_counter()
    return [round(1000 * (b - a), 4) for a, b in pairwise(stamps)], timer


def synchronise(device: torch.device) -> None:
    """Waits until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def host_share(wall: float, gpu: float | None) -> float | None:
    """The part of the wall time in which the device waited for the host; None where its time is not known."""
    return None if gpu is None else max(0.0, 1 - gpu / wall)


def random_ids(draw: random.Random, lm: LM, count: int) -> list[int]:
    """Token ids that are neither the mask nor end tokens."""
    special = {lm.facts.mask_id, *lm.facts.eos_ids}
    found: list[int] = []
    while len(found) < count:
        token = draw.randrange(lm.model.config.vocab_size)
        found += [token] * (token not in special)
    return found


def engine_for(lm: LM, batch: int, window: int, context: int, steps: int, **more: Any) -> Engine:
    """An engine whose steps are `batch` rows of `window` tokens; all rows begin at once, and none ends before `steps`
    steps are done."""
    new_tokens = round_up(steps, window) + window
    # All prompts before the first step: no kind of step is made that is not measured.
    sizes = {"rows": batch, "max_prompt": context, "max_new_tokens": new_tokens, "prefill_tokens": batch * context}
    if window == 1:
        return Engine(lm, "autoregressive", **sizes, share_prefixes=False, **more)
    options = {"block_size": window, "sub_block_size": window, "threshold": 1.0}
    return Engine(lm, "fast_dllm_v2", **sizes, **options, share_prefixes=False, **more)


def measure(
    lm: LM,
    can: Ceilings,
    batch: int,
    window: int,
    *,
    context: int = 1024,
    steps: int = 200,
    kernels: bool = False,
    **more: Any,
) -> StepTime:
    """Times `steps` steps of a full batch.

    Args:
        lm: its family must be one that both methods work with (a model without end tokens, or rows may end).
        can: the device's ceilings, measured in the same run.
        kernels: then look at some more steps kernel by kernel.
        more: further arguments of the engine.
    """
    config = lm.model.config
    item = torch.finfo(lm.model.dtype).bits // 8
    need = work(config, batch, window, context, window, item, more.get("quantise") is not None)
    engine = engine_for(lm, batch, window, context, WARM + steps + SPARE, **more)
    draw = random.Random(0)
    for _ in range(batch):
        engine.add(random_ids(draw, lm, context))
    for _ in range(WARM):
        engine.step()
    walls, timer = run(engine, steps)
    if timer.shapes != [(batch, window, batch * window)] * steps:
        raise RuntimeError(f"{steps} steps of {batch} x {window} asked for, {len(timer.shapes)} run: {timer.shapes}")
    gpus = timer.milliseconds()
    wall, gpu = sum(walls) / steps, None if gpus is None else sum(gpus) / steps
    facts = (wall, gpu, host_share(wall, gpu), need.floor(can) * 1000, need.bound(can))
    found = by_kernel(engine.step, SPARE // 2, engine.device) if kernels else None
    operations = need.operations + need.operations8
    return StepTime(batch, window, context, steps, *facts, need.bytes, operations, walls, gpus, found)
