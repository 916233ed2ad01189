"""The carried logits put in place: a copy of few rows among many.

Shapes: B rows, R asked rows, V vocabulary.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _carry(
    logits: tl.tensor,
    rows: tl.tensor,
    carry: tl.tensor,
    R: tl.tensor,
    V: tl.tensor,
    parts: tl.tensor,
    stride_b: tl.tensor,
    stride_r: tl.tensor,
    rows_b: tl.tensor,
    rows_r: tl.tensor,
    carry_b: tl.tensor,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Copies STEPS blocks of the carried logits of a batch row to an asked row, if that wants them."""
    program = tl.program_id(0)
    row, part = (program // parts).to(tl.int64), program % parts
    b, r = row // R, row % R
    if tl.load(rows + b * rows_b + r * rows_r) == -1:
        into = logits + b * stride_b + r * stride_r
        for step in range(STEPS):
            index = (step * parts + part) * BLOCK + tl.arange(0, BLOCK)
            x = tl.load(carry + b * carry_b + index, mask=index < V, other=0.0)
            tl.store(into + index, x, mask=index < V)


def carry_into(logits: Tensor, rows: Tensor, carry: Tensor, block: int = 4096) -> None:
    """Writes carry [B, V] over logits [B, R, V], of the same dtype, where rows [B, R] is -1: one launch, which reads
    nothing else. Both have unit stride in V."""
    B, R, V = logits.shape
    block = min(block, triton.next_power_of_2(V))
    # A single row is copied by many programs; of many rows nearly all programs only find that theirs is none.
    blocks = triton.cdiv(V, block)
    parts = max(1, min(blocks, 4096 // (B * R)))
    _carry[(B * R * parts,)](
        logits,
        rows,
        carry,
        R,
        V,
        parts,
        *logits.stride()[:2],
        *rows.stride(),
        carry.stride(0),
        STEPS=triton.cdiv(blocks, parts),
        BLOCK=block,
        num_warps=8,
    )
