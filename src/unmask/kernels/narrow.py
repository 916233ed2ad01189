"""Products of few float8 tokens with float8 weights, in Triton: half the bytes of `gemm.thin`, nothing widened.

Weights have a scale per output, tokens one for each group of 128 inputs, so that an outlier costs its group alone. One
step of the sum is one group: the matrix units add up 128 products, what they found is scaled and added in float32.

Shapes: T tokens, K inputs, N outputs, P parts of a split sum.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from unmask.kernels.gemm import _finish, merge_parts, tile_tokens
from unmask.kernels.groups import GROUP, Narrow
from unmask.kernels.overlap import follow, overlapped

_GROUP = tl.constexpr(GROUP)


def product(
    x: Narrow,
    weight_NK: Tensor,
    bias_N: Tensor | None,
    scale_N: Tensor,
    dtype: torch.dtype,
    *,
    block_n: int = 64,
    splits: int = 1,
    warps: int = 4,
    stages: int = 6,
    merge: bool = True,
) -> Tensor:
    """x W^T + b: [T, N] of this dtype.

    Args:
        weight_NK: float8 (e4m3), contiguous, K a multiple of 128.
        bias_N, scale_N: of `dtype`; float32.
        block_n: outputs of a program, 64 or more for the matrix units of Hopper.
        splits: parts of the sum at most.
        warps, stages: of a program, and of its pipeline of loads.
        merge: False returns the parts of a split sum [P, T, N] in float32, scaled, without bias.
    """
    tokens, inputs = x.values.shape
    outputs, device = len(weight_NK), weight_NK.device
    part = triton.cdiv(inputs // GROUP, splits) * GROUP
    parts = triton.cdiv(inputs, part)
    block_t = tile_tokens(tokens)
    out = torch.empty(tokens, outputs, dtype=dtype, device=device)
    sums = out if parts == 1 else torch.empty(parts, tokens, outputs, dtype=torch.float32, device=device)
    _product[(triton.cdiv(tokens, block_t), triton.cdiv(outputs, block_n), parts)](
        x.values,
        x.scales,
        weight_NK,
        weight_NK if bias_N is None else bias_N,
        scale_N,
        sums,
        tokens,
        outputs,
        inputs,
        part,
        BIAS=bias_N is not None and parts == 1,
        EVEN=inputs % part == 0,
        BLOCK_T=block_t,
        BLOCK_N=block_n,
        num_warps=warps,
        num_stages=stages,
        **overlapped(weight_NK.is_cuda),
    )
    return sums if parts == 1 or not merge else merge_parts(sums, bias_N, None, out)


@triton.jit(do_not_specialize=["tokens"])
def _product(
    x_ptr: tl.tensor,  # [T, K]
    x_scale_ptr: tl.tensor,  # [T, K / 128]
    weight_ptr: tl.tensor,  # [N, K]
    bias_ptr: tl.tensor,  # [N]
    scale_ptr: tl.tensor,  # [N]
    out_ptr: tl.tensor,  # [T, N], partial: [P, T, N]
    tokens: tl.tensor,
    outputs: tl.tensor,
    inputs: tl.tensor,
    part: tl.tensor,  # inputs of one part, whole groups
    BIAS: tl.constexpr,
    EVEN: tl.constexpr,  # all parts are full
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(2) * part
    row = tl.minimum(n, outputs - 1).to(tl.int64)
    follow(OVERLAP)
    k = first + tl.arange(0, _GROUP)
    real = t < tokens
    x_at = x_ptr + t[None, :].to(tl.int64) * inputs + k[:, None]
    x_scale_at = x_scale_ptr + t.to(tl.int64) * (inputs // _GROUP) + first // _GROUP
    weight_at = weight_ptr + row[:, None] * inputs + k[None, :]
    acc = tl.zeros([BLOCK_N, BLOCK_T], dtype=tl.float32)
    end = part if EVEN else tl.minimum(part, inputs - first)
    x_scale = tl.load(x_scale_at, mask=real, other=0.0)
    for step in range(0, end, _GROUP):
        x = tl.load(x_at, mask=real[None, :], other=0.0)
        weight = tl.load(weight_at)
        x_scale_at += 1
        # A step ahead: so small a load does not join the pipeline, and the sum would wait for it.
        following = tl.load(x_scale_at, mask=real & (step + _GROUP < end), other=0.0)
        acc += tl.dot(weight, x) * x_scale[None, :]
        x_scale = following
        x_at += _GROUP
        weight_at += _GROUP
    acc = _finish(acc, row[:, None], bias_ptr, scale_ptr, BIAS, True)
    base = tl.program_id(2).to(tl.int64) * tokens * outputs
    at = base + t[None, :].to(tl.int64) * outputs + n[:, None]
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=real[None, :] & (n[:, None] < outputs))
