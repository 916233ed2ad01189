"""How fast a recipe trains: time of an update, tokens per second, share of the device's arithmetic it uses (MFU).

    unmask bench train qwen2.5-1.5b --recipe fast_dllm_v2 --row-tokens 2048 --rows 16 --rows-per-forward 4

Updates are those of a run (`training.trainer`), on packed rows of random tokens. Operations of an update are counted
as the model needs them, for places that are not padding, of all the copies that a recipe puts into its rows:

    6 * (parameters - embedding - head) * tokens  +  6 * vocabulary * hidden * supervised rows
    + 12 * layers * heads * head size * (query, key) pairs that the layout lets see each other

that is 2 a multiplication and addition, once forward and twice backward; attention is two products of queries, keys and
values. Recomputation, masked-out pairs, padding, a teacher's forwards and a recipe's own networks are not counted, so
MFU can only be understated. Peaks are those of the makers for dense bfloat16; `of_product` compares with the rate of a
large matrix product measured in the same run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from unmask.bench.kernels import by_kernel
from unmask.bench.roofline import Ceilings
from unmask.errors import UnmaskError
from unmask.layout import PAD, Layout, visible
from unmask.lm import LM
from unmask.models.config import DiTConfig, ModelConfig
from unmask.schema import Check, each, number, one_of, optional, text, whole
from unmask.training.build import objective_of
from unmask.training.config import TrainConfig
from unmask.training.data import Format, Packed, Samples
from unmask.training.ranks import Ranks
from unmask.training.recipes import make_recipe
from unmask.training.recipes.base import Recipe, Supervised
from unmask.training.step import Share, Source, Step, prefetch
from unmask.training.trainer import Trainer

PEAKS = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989.4e12),
    ("GH200", 989.4e12),
    ("H200", 989.4e12),
    ("B200", 2250e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("RTX 4090", 165.2e12),
)
"""Dense bfloat16 operations a second that the makers state, by a part of the device's name; the first match counts."""
WARM = 3
"""Updates before the clock starts: compilation, allocation, first moments."""

_flag = Check("true or false", lambda v: isinstance(v, bool))
ASKED = {
    "recipe": text,
    "row_tokens": whole(1, 1 << 30),
    "rows": whole(1, 1 << 30),
    "rows_per_forward": whole(1, 1 << 30),
    "per_row": whole(1, 1 << 30),
    "steps": whole(1, 1 << 30),
    "precision": one_of(("fp32", "bf16")),
    "attention": one_of(("dense", "flex")),
    "compile": _flag,
    "recompute": _flag,
    "shard": _flag,
}
"""Fields of `asked`."""
ENTRY = {
    "processes": whole(1, 1 << 30),
    "tokens": number(0.0),
    "forward_tokens": number(0.0),
    "supervised": number(0.0),
    "operations": number(0.0),
    "ms": number(0.0),
    "tokens_per_second": number(0.0),
    "achieved": number(0.0),
    "peak": optional(number(0.0)),
    "mfu": optional(number(0.0)),
    "of_product": number(0.0),
    "peak_bytes": optional(whole(0, 1 << 60)),
    "walls": each(number(0.0)),
}
"""Fields of `Timing.as_dict`. tokens: of the data, padding left out, an update; forward_tokens: what the network sees
of them; ms: the median of an update; achieved: operations per second of one process; walls: seconds of each update."""


@dataclass(frozen=True)
class Work:
    """What an update does, on average over those that were timed, in all processes."""

    tokens: float
    forward_tokens: float
    supervised: float
    operations: float


@dataclass(frozen=True)
class Timing:
    """What was measured."""

    work: Work
    walls: list[float]
    processes: int
    peak: float | None
    product: float
    peak_bytes: int | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; see `ENTRY`."""
        wall = median(self.walls)
        achieved = self.work.operations / wall / self.processes
        return {
            "processes": self.processes,
            "tokens": self.work.tokens,
            "forward_tokens": self.work.forward_tokens,
            "supervised": self.work.supervised,
            "operations": self.work.operations,
            "ms": 1000 * wall,
            "tokens_per_second": self.work.tokens / wall,
            "achieved": achieved,
            "peak": self.peak,
            "mfu": None if self.peak is None else achieved / self.peak,
            "of_product": achieved / self.product,
            "peak_bytes": self.peak_bytes,
            "walls": self.walls,
        }


def measure(
    lm: LM, config: TrainConfig, ranks: Ranks, can: Ceilings, *, steps: int, per_row: int, kernels: bool = False
) -> dict[str, Any]:
    """Times updates of a recipe.

    Args:
        lm: the model, in float32; it is trained.
        config: recipe, rows, precision, attention and the like; its files are not read.
        can: of the device, in the dtype in which matrices are multiplied.
        steps: updates that are timed.
        per_row: samples in each row, of different lengths.
        kernels: then look at some more updates kernel by kernel (`bench.kernels`).

    Returns:
        `Timing.as_dict`, and `kernels` if they were asked for.

    Raises:
        UnmaskError: a network that MFU is not defined for, or rows too short for so many samples.
    """
    sizes = lm.model.config
    if sizes.moe is not None or isinstance(sizes, DiTConfig):
        raise UnmaskError(f"MFU is defined for dense transformers, not for family {sizes.family!r}")
    mask = lm.family.mask_id if lm.family.mask_id is not None else sizes.vocab_size - 1
    recipe = make_recipe(config.recipe, mask_id=mask)
    trainer = Trainer(config, ranks, objective_of(lm.model.requires_grad_(True).train(), recipe, config))
    source = _source(config, recipe, ranks, sizes, mask, steps, per_row)
    seen: list[Step] = []
    marks = []
    if ranks.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(ranks.device)
    for step in prefetch(source.steps(0), depth=4):
        if step.number >= WARM:
            marks.append(_mark(ranks.device))
        if step.number == WARM + steps:
            break
        trainer.update(step, config.learning_rate)
        if step.number >= WARM:
            seen.append(step)
    trainer.guard.settle()
    peak_bytes = torch.cuda.max_memory_allocated(ranks.device) if ranks.device.type == "cuda" else None
    work = _work(seen, source, sizes, lm.model.count_parameters(), ranks)
    peak = peak_of(ranks.device) if config.precision == "bf16" else None
    timing = Timing(work, _walls(marks), ranks.count, peak, can.product, peak_bytes).as_dict()
    if kernels:
        timing["kernels"] = by_kernel(lambda: trainer.update(seen[-1], config.learning_rate), 2, ranks.device)
        trainer.guard.settle()
    return timing


def peak_of(device: torch.device) -> float | None:
    """The stated peak of a device, None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS if part in name), None)


def _source(
    config: TrainConfig, recipe: Recipe, ranks: Ranks, sizes: ModelConfig, mask: int, steps: int, per_row: int
) -> Source:
    share = Share.of(config.rows_per_step, config.rows_per_forward, ranks.index, ranks.count)
    rows = config.rows_per_step * (WARM + steps + 1)
    samples = random_samples(rows, config.row_tokens, recipe.block, per_row, sizes.vocab_size, recipe.needs_drafts)
    form = Format(config.row_tokens, recipe.block, mask, None, False, anchored=recipe.anchored)
    packed = Filled(samples, form, config.rows_per_step, config.seed)
    return Source(config.seed, recipe, packed, packed, share, pinned=ranks.device.type == "cuda")


class Filled(Packed):
    """Rows as `random_samples` filled them, in order."""

    def steps(self, first: int = 0) -> Iterator[tuple[int, list[list[int]]]]:
        per_row = len(self.samples) * self.form.length // int(self.samples.starts[-1])
        for start in range(first * self.rows_per_step, len(self.samples) // per_row, self.rows_per_step):
            rows = range(start, start + self.rows_per_step)
            yield 0, [list(range(row * per_row, (row + 1) * per_row)) for row in rows]


def random_samples(rows: int, length: int, block: int, per_row: int, vocab: int, drafts: bool = False) -> Samples:
    """Samples of whole blocks, `per_row` of which fill a row; a quarter of each (whole blocks, one at least) is prompt.

    Raises:
        UnmaskError: a row has too few blocks.
    """
    blocks = length // block
    if length % block or blocks < 2 * per_row:
        raise UnmaskError(f"rows of {length} tokens do not hold {per_row} samples of two blocks of {block} at least")
    draw = np.random.default_rng(0)
    sizes: list[int] = []
    for _ in range(rows):
        # Every sample gets two blocks; the others go to samples at random.
        extra = np.bincount(draw.integers(0, per_row, blocks - 2 * per_row), minlength=per_row)
        sizes += [int(2 + n) for n in extra]
    prompts = np.array([max(n // 4, 1) * block for n in sizes], np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64) * block
    tokens = draw.integers(0, vocab - 1, int(starts[-1])).astype(np.int32)
    samples = Samples(tokens, starts, prompts)
    if not drafts:
        return samples
    return replace(samples, drafts=np.where(draw.random(len(tokens)) < 0.5, tokens, tokens[::-1]))


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _walls(marks: Sequence[Any]) -> list[float]:
    """Seconds between neighbouring marks."""
    if isinstance(marks[0], float):
        return [b - a for a, b in itertools.pairwise(marks)]
    marks[-1].synchronize()
    return [a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(marks)]


def _work(seen: Sequence[Step], source: Source, sizes: ModelConfig, parameters: int, ranks: Ranks) -> Work:
    """The mean over steps of what all processes do."""
    embedding = sizes.vocab_size * sizes.hidden_size
    layers = parameters - embedding * (1 if sizes.tied_head else 2)
    tokens = forward = supervised = pairs = 0.0
    for step in seen:
        _, rows = next(iter(source.data.steps(step.number)))
        tokens += sum(int((source.data.batch(group).segment != PAD).sum()) for group in source.share.groups(rows))
        for batch in step.forwards:
            real = batch.layout.segment.expand_as(batch.tokens) != PAD
            forward, supervised = forward + int(real.sum()), supervised + len(batch.index)
            pairs += visible_pairs(batch, ranks.device)
    tokens, forward, supervised, pairs = (n / len(seen) for n in ranks.totals([tokens, forward, supervised, pairs]))
    attention = 12 * sizes.num_layers * sizes.num_heads * sizes.head_dim * pairs
    return Work(tokens, forward, supervised, 6 * layers * forward + 6 * embedding * supervised + attention)


def visible_pairs(batch: Supervised, device: torch.device) -> int:
    """(query, key) pairs of a forward that see each other, padding left out."""
    layout = batch.layout if batch.layout.order.dim() == 2 else batch.layout.batch(len(batch.tokens))
    total = 0
    for row in range(len(batch.tokens)):
        here = Layout(layout.order[row], layout.lane[row], layout.segment[row], layout.positions[row]).to(device)
        total += int((visible(here, here) & (here.segment != PAD).unsqueeze(-1)).sum())
    return total
