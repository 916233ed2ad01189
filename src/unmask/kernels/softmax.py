"""What the kernels of attention share: which blocks a split has, who sees whom, and a step of the online softmax.
Gluon may call all."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def run_of(
    seen_ptr: tl.tensor,  # of the row
    clear_ptr: tl.tensor,
    stop: tl.tensor,
    split: tl.tensor,
    splits: tl.tensor,
    BLOCK_N: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Cached keys that a row sees, how many blocks of them are read whole, how many there are, and the run of blocks
    [first, last) of a split: it has an equal part of these and of those of `stop` keys of the window."""
    seen = tl.load(seen_ptr)
    clear = tl.load(clear_ptr) // BLOCK_N
    cached = tl.cdiv(seen, BLOCK_N)
    blocks = cached + tl.cdiv(stop, BLOCK_N)
    return seen, clear, cached, split * blocks // splits, (split + 1) * blocks // splits


@triton.jit
def sees(
    order_q: tl.tensor,
    lane_q: tl.tensor,
    segment_q: tl.tensor,
    order_k: tl.tensor,
    lane_k: tl.tensor,
    segment_k: tl.tensor,
) -> tl.tensor:
    """The rule of `layout.visible`: which queries see which keys."""
    before = (order_k[None, :] <= order_q[:, None]) & (segment_k[None, :] == segment_q[:, None])
    return before & ((lane_k == 0)[None, :] | (lane_k[None, :] == lane_q[:, None]))


@triton.jit
def weigh(
    score: tl.tensor, scale: tl.tensor, best: tl.tensor, total: tl.tensor, ALL: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Highest score and sum of weights with these scores taken in, their weights, and by what all earlier ones shrink.

    ALL: each query sees a key here; one that has seen none yet keeps weights of 0, not exp2(-inf + inf)."""
    higher = tl.maximum(best, tl.max(score, 1) * scale)
    base = higher if ALL else tl.where(higher == float("-inf"), 0.0, higher)
    weight = tl.exp2(score * scale - base[:, None])
    shrink = tl.exp2(best - base)
    return higher, total * shrink + tl.sum(weight, 1), weight, shrink
