"""How attention is cut into tiles, by shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

MAX_SPLITS = 32
PROCESSORS = 132  # of an H100 or H200


@dataclass(frozen=True)
class Tiling:
    """How the work is cut: query rows and keys of a tile, parts the keys are split into, warps, pipeline stages."""

    block_m: int
    block_n: int
    splits: int
    warps: int
    stages: int


def processors(device: torch.device) -> int:
    """Of this GPU; of an H100 where Triton's interpreter runs."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else PROCESSORS


def choose(
    rows: int,
    width: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    slots: int,
    item_size: int,
    processors: int = PROCESSORS,
    packed: int | None = None,
) -> Tiling:
    """The tiling for a shape: from what is the same at every replay of a captured graph, never from lengths.

    Args:
        rows, width, heads, kv_heads, head_dim: B, W, H, G, D.
        slots: N, the most that a row could read.
        item_size: bytes of an element; 4 means float32, which has no tensor cores and whose tiles must be small.
        processors: of the GPU; tiles are split until each has one.
        packed: tokens of all rows, where they are packed; `width` is that of the widest row.
    """
    queries = width * heads // kv_heads

    def tiles(block_m: int) -> int:
        if packed is None:
            return rows * kv_heads * triton.cdiv(queries, block_m)
        # Rows are of different widths: some that are full, or the last tile of each.
        return kv_heads * max(rows, triton.cdiv(packed * heads // kv_heads, block_m))

    few = tiles(128) < processors
    if item_size > 2:
        block_m, block_n, warps, stages = 16, 16, 4, 2
    elif queries <= 32:
        block_m, block_n, warps, stages = (16 if queries <= 16 else 32), 64, 4, 3
    elif queries <= 64 or few:
        block_m, block_n, warps, stages = 64, 64, 4, 3
    else:
        block_m, block_n, warps, stages = 128, 64, 8, 3
    if head_dim > 128:
        block_n = max(16, block_n // 2)
    blocks = triton.cdiv(slots, block_n) + triton.cdiv(width, block_n)
    splits = max(1, min(processors // tiles(block_m), blocks, MAX_SPLITS))
    return Tiling(block_m, block_n, splits, warps, stages)
