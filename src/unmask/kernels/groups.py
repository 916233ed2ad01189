"""Tokens rounded to float8 with a scale for each group of 128 inputs, so that an outlier costs its group alone.

Shapes: T tokens, K inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from unmask.kernels.overlap import follow, overlapped
from unmask.kernels.shares import GROUP

FLOAT8 = torch.float8_e4m3fn
_GROUP = tl.constexpr(GROUP)


@dataclass(frozen=True, slots=True)
class Narrow:
    """Tokens in float8: values [T, K] (e4m3) and scales [T, K / 128] (float32); the largest of a group is 448."""

    values: Tensor
    scales: Tensor

    @classmethod
    def empty(cls, tokens: int, inputs: int, device: torch.device) -> Narrow:
        """To be written by a kernel."""
        assert inputs % GROUP == 0
        scales = torch.empty(tokens, inputs // GROUP, dtype=torch.float32, device=device)
        return cls(torch.empty(tokens, inputs, dtype=FLOAT8, device=device), scales)

    def __len__(self) -> int:
        return len(self.values)


def narrowed(x_TK: Tensor) -> Narrow:
    """x rounded to float8; groups of zeros have scale 1."""
    assert x_TK.is_contiguous()
    tokens, inputs = x_TK.shape
    out = Narrow.empty(tokens, inputs, x_TK.device)
    groups = tokens * inputs // GROUP
    _narrowed[(triton.cdiv(groups, 8),)](
        x_TK, out.values, out.scales, groups, BLOCK=8, num_warps=4, **overlapped(x_TK.is_cuda)
    )
    return out


@triton.jit
def _narrowed(
    x_ptr: tl.tensor,
    values_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    groups: tl.tensor,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    follow(OVERLAP)
    group = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at = group[:, None] * _GROUP + tl.arange(0, _GROUP)[None, :]
    inside = group < groups
    x = tl.load(x_ptr + at, mask=inside[:, None], other=0.0).to(tl.float32)
    x, scale = to_groups(x)
    tl.store(values_ptr + at, x.to(values_ptr.dtype.element_ty), mask=inside[:, None])
    tl.store(scales_ptr + group, scale, mask=inside)


@triton.jit
def to_groups(x: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """x [groups, 128] in float32 divided by a scale per group [groups], the largest to 448."""
    largest = tl.max(tl.abs(x), 1)
    scale = tl.where(largest > 0.0, largest / 448.0, 1.0)
    return tl.minimum(tl.maximum(x / scale[:, None], -448.0), 448.0), scale
