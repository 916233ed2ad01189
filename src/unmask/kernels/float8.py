"""Rows rounded to float8 with a scale of their own, in Triton: the tokens' side of a scaled product."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from unmask.kernels.overlap import follow, overlapped


def quantise_rows(x_TK: Tensor) -> tuple[Tensor, Tensor]:
    """x as float8 (e4m3) [T, K] and a float32 scale per row [T]: the largest of a row becomes 448.

    Rows of zeros have scale 1.
    """
    assert x_TK.is_contiguous()
    tokens, size = x_TK.shape
    narrow = torch.empty_like(x_TK, dtype=torch.float8_e4m3fn)
    scale_T = x_TK.new_empty(tokens, dtype=torch.float32)
    block = min(4096, triton.next_power_of_2(size))
    _quantise_rows[(tokens,)](x_TK, narrow, scale_T, size, BLOCK=block, num_warps=8, **overlapped(x_TK.is_cuda))
    return narrow, scale_T


@triton.jit
def _quantise_rows(
    x_ptr: tl.tensor,
    narrow_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    size: tl.tensor,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    follow(OVERLAP)
    base = tl.program_id(0).to(tl.int64) * size
    c = tl.arange(0, BLOCK)
    largest = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, size, BLOCK):
        x = tl.load(x_ptr + base + start + c, mask=start + c < size, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(x))
    scale = tl.max(largest, 0) / 448.0
    scale = tl.where(scale > 0.0, scale, 1.0)
    tl.store(scale_ptr + tl.program_id(0), scale)
    for start in range(0, size, BLOCK):  # the row is still in the cache
        x = tl.load(x_ptr + base + start + c, mask=start + c < size, other=0.0).to(tl.float32)
        x = tl.minimum(tl.maximum(x / scale, -448.0), 448.0)
        tl.store(narrow_ptr + base + start + c, x.to(narrow_ptr.dtype.element_ty), mask=start + c < size)
