"""How attention is cut into tiles, by shape."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch
import triton

from unmask.kernels import has_gluon

MAX_SPLITS = 32
PROCESSORS = 132  # of an H100 or H200


@dataclass(frozen=True)
class Tiling:
    """How the work is cut: query rows and keys of a tile, parts the keys are split into, warps, pipeline stages; ahead:
    by the kernel of `kernels.pipelined`."""

    block_m: int
    block_n: int
    splits: int
    warps: int
    stages: int
    ahead: bool = False


def processors(device: torch.device) -> int:
    """Of this GPU; of an H100 where Triton's interpreter runs."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else PROCESSORS


def pipelines(device: torch.device, item_size: int, head_dim: int, page_size: int) -> bool:
    """Whether the kernel of `kernels.pipelined` can be used."""
    return item_size == 2 and head_dim in (64, 128) and page_size % 64 == 0 and _hopper(device)


@cache
def _hopper(device: torch.device) -> bool:
    return device.type == "cuda" and has_gluon() and torch.cuda.get_device_capability(device)[0] == 9


@dataclass(frozen=True)
class Shape:
    """What a tiling may depend on: what is the same at every replay of a captured graph, never lengths.

    Args:
        rows, width, heads, kv_heads, head_dim: B, W, H, G, D.
        slots: N, the most that a row could read.
        item_size: bytes of an element; 4 means float32, which has no tensor cores and whose tiles must be small.
        processors: of the GPU.
        packed: tokens of all rows, where they are packed; `width` is that of the widest row.
        ahead: see `pipelines`.
    """

    rows: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    slots: int
    item_size: int
    processors: int = PROCESSORS
    packed: int | None = None
    ahead: bool = False

    @property
    def queries(self) -> int:
        """Of a row and a K/V head."""
        return self.width * self.heads // self.kv_heads

    def tiles(self, block_m: int) -> int:
        """How many tiles of so many query rows there are."""
        if self.packed is None:
            return self.rows * self.kv_heads * triton.cdiv(self.queries, block_m)
        # Rows are of different widths: some that are full, or the last tile of each.
        return self.kv_heads * max(self.rows, triton.cdiv(self.packed * self.heads // self.kv_heads, block_m))

    def most(self, block_n: int) -> int:
        """Into how many parts the keys of a row may be split."""
        return min(triton.cdiv(self.slots, block_n) + triton.cdiv(self.width, block_n), MAX_SPLITS)

    def splits(self, block_m: int, block_n: int) -> int:
        """As many parts as give each processor a tile."""
        return max(1, min(self.processors // self.tiles(block_m), self.most(block_n)))

    def stages(self, block_m: int, splits: int) -> int:
        """Blocks of keys on their way to a program. More pay where it has all keys to read and a processor for itself;
        where keys are split they only take longer to begin."""
        if self.item_size > 2:
            return 2
        return 5 if splits == 1 and self.tiles(block_m) <= self.processors else 3


def shape_on(
    device: torch.device,
    page_size: int,
    rows: int,
    width: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    slots: int,
    item_size: int,
    packed: int | None,
) -> Shape:
    """The shape of attention to pages of that many slots, on this device."""
    ahead = pipelines(device, item_size, head_dim, page_size)
    return Shape(rows, width, heads, kv_heads, head_dim, slots, item_size, processors(device), packed, ahead)


fastest: dict[Shape, Tiling] = {}
"""Of the shapes that were measured (`engine.tuning.tune_attention`)."""


def tiling_of(shape: Shape) -> Tiling:
    """The fastest tiling measured, else what `choose` says."""
    return fastest.get(shape) or choose(shape)


def choose(shape: Shape) -> Tiling:
    """The tiling of a shape that nobody measured."""
    few = shape.tiles(128) < shape.processors
    if shape.item_size > 2:
        block_m, block_n, warps = 16, 16, 4
    elif shape.queries <= 32:
        block_m, block_n, warps = (16 if shape.queries <= 16 else 32), 64, 4
    elif shape.queries <= 64 or few:
        block_m, block_n, warps = 64, 64, 4
    else:
        block_m, block_n, warps = 128, 64, 8
    if shape.head_dim > 128:
        block_n = max(16, block_n // 2)
    splits = shape.splits(block_m, block_n)
    return Tiling(block_m, block_n, splits, warps, shape.stages(block_m, splits))


def candidates(shape: Shape) -> list[Tiling]:
    """Tilings worth measuring; that of `choose` is the first, and the only one in float32."""
    first = choose(shape)
    if shape.item_size > 2:
        return [first]
    found = [first]
    # Smaller tiles fill the GPU, larger ones read keys and values less often.
    for block_m, warps in ((64, 4), (128, 8)) if shape.queries > 64 else ((first.block_m, first.warps),):
        once = shape.splits(block_m, first.block_n)
        for splits in (1, once, 2 * once):
            if splits <= shape.most(first.block_n):
                stages = shape.stages(block_m, splits)
                found.append(replace(first, block_m=block_m, warps=warps, splits=splits, stages=stages))
    if shape.ahead:
        once = shape.splits(64, 64)
        found += [Tiling(64, 64, splits, 4, 4, ahead=True) for splits in (1, max(once // 2, 1), once)]
    return list(dict.fromkeys(found))
