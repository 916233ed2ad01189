"""Products whose outputs are shared out evenly, in Triton: as many programs as the GPU runs at once, each with as much
to do, so that none is left with a second tile while the others wait.

A program's outputs are a power of two and, where that fits better, a smaller one beside it: 37,888 outputs are 132
times 287, and a tile of 256 + 32 holds them. Tiles come through the copy engine (TMA) and the tokens are the left
operand, so that the matrix units take any such number of outputs. Few outputs are shared out by splitting the sum too;
parts are added in order.

Weights may be float8 (e4m3) with a scale per output. Then the tokens are float8 as well, with a scale for each group of
128 inputs (`kernels.groups`): a step of the sum is one group, the matrix units add up its products, and what they found
is scaled and added in float32. That each program rounds the tokens it needs for itself was tried and was slower.

Shapes: T tokens, K inputs, N outputs, P parts of a split sum.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from unmask.kernels.copies import tiles
from unmask.kernels.gemm import _finish, _gate, merge_parts
from unmask.kernels.groups import Narrow
from unmask.kernels.overlap import follow, overlapped
from unmask.kernels.shares import GROUP, STEP, tile_tokens


def even(
    x: Tensor | Narrow,
    weight_NK: Tensor,
    bias_N: Tensor | None = None,
    scale_N: Tensor | None = None,
    dtype: torch.dtype | None = None,
    *,
    block_n: int = 128,
    rest: int = 0,
    splits: int = 1,
    warps: int = 8,
    stages: int = 4,
    gated: bool = False,
    merge: bool = True,
) -> Tensor:
    """x W^T + b: [T, N].

    Args:
        x: [T, K], contiguous, of 16 bits or float8.
        weight_NK: contiguous, of x's dtype, K a multiple of 8 (float8: of 128).
        bias_N, scale_N: of the result's dtype; float32, for float8 alone. [2N] with `gated`.
        dtype: of the result where x is float8.
        block_n, rest: outputs of a program are their sum; powers of two, `rest` the smaller or 0.
        splits: parts of the sum at most.
        warps, stages: of a program, and of its pipeline of loads.
        gated: the weight is gate above up, [2N, K], and the result silu(gate) * up; allows one part only.
        merge: False returns the parts of a split sum [P, T, N] in float32, scaled, without bias.
    """
    narrow = isinstance(x, Narrow)
    x_TK, step = (x.values, GROUP) if narrow else (x, STEP)
    assert x_TK.is_contiguous() and weight_NK.is_contiguous() and not (gated and splits > 1)
    tokens, inputs = x_TK.shape
    outputs = len(weight_NK) // 2 if gated else len(weight_NK)
    steps = triton.cdiv(inputs, step)
    part = triton.cdiv(steps, splits)
    parts = triton.cdiv(steps, part)
    block_t = tile_tokens(tokens)
    out = x_TK.new_empty(tokens, outputs, dtype=dtype)
    sums = out if parts == 1 else x_TK.new_empty(parts, tokens, outputs, dtype=torch.float32)
    none = out  # a pointer that no program follows
    # Token tiles of one weight tile run side by side, so that the weight comes from memory once.
    _even[(triton.cdiv(tokens, block_t), triton.cdiv(outputs, block_n + rest), parts)](
        tiles(x_TK, block_t, step),
        tiles(weight_NK, block_n, step),
        tiles(weight_NK, rest or block_n, step),
        x.scales if isinstance(x, Narrow) else none,
        none if bias_N is None else bias_N,
        none if scale_N is None else scale_N,
        sums,
        tokens,
        outputs,
        steps,
        part,
        NARROW=narrow,
        BIAS=bias_N is not None and parts == 1,
        GATED=gated,
        PARTIAL=parts > 1,
        DTYPE=tl.bfloat16 if out.dtype == torch.bfloat16 else tl.float16,
        BLOCK_T=block_t,
        BLOCK_N=block_n,
        REST=rest,
        STEP=step,
        num_warps=warps,
        num_stages=stages,
        **overlapped(x_TK.is_cuda),
    )
    return sums if parts == 1 or not merge else merge_parts(sums, bias_N, None, out)


@triton.jit(do_not_specialize=["tokens"])  # one compilation for all numbers of tokens of a tile
def _even(
    x_block: tl.tensor_descriptor,  # [T, K]
    weight_block: tl.tensor_descriptor,  # [N, K] or, gated, [2N, K]
    rest_block: tl.tensor_descriptor,
    x_scale_ptr: tl.tensor,  # [T, K / STEP]
    bias_ptr: tl.tensor,  # [N] or [2N]
    scale_ptr: tl.tensor,
    out_ptr: tl.tensor,  # [T, N], partial: [P, T, N]
    tokens: tl.tensor,
    outputs: tl.tensor,
    steps: tl.tensor,
    part: tl.tensor,  # steps of one part
    NARROW: tl.constexpr,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    PARTIAL: tl.constexpr,
    DTYPE: tl.constexpr,  # of the whole result
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    REST: tl.constexpr,
    STEP: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    follow(OVERLAP)
    first_t = tl.program_id(0) * BLOCK_T
    first_n = tl.program_id(1) * (BLOCK_N + REST)
    first = tl.program_id(2) * part
    end = tl.minimum(first + part, steps)
    t = first_t + tl.arange(0, BLOCK_T)
    acc = tl.zeros([BLOCK_T, BLOCK_N], dtype=tl.float32)
    up = acc
    acc_rest = tl.zeros([BLOCK_T, REST or 16], dtype=tl.float32)
    up_rest = acc_rest
    x_scale_at = x_scale_ptr + t.to(tl.int64) * steps
    x_scale = tl.zeros([BLOCK_T], dtype=tl.float32)
    if NARROW:
        x_scale = tl.load(x_scale_at + first, mask=(t < tokens) & (first < end), other=0.0)
    for step in range(first, end):
        k = step * STEP
        x = x_block.load([first_t, k])
        following = x_scale
        if NARROW:  # a step ahead: so small a load does not join the pipeline, and the sum would wait for it
            following = tl.load(x_scale_at + step + 1, mask=(t < tokens) & (step + 1 < end), other=0.0)
        acc = _add(acc, x, weight_block.load([first_n, k]), x_scale, NARROW)
        if REST:
            acc_rest = _add(acc_rest, x, rest_block.load([first_n + BLOCK_N, k]), x_scale, NARROW)
        if GATED:
            up = _add(up, x, weight_block.load([outputs + first_n, k]), x_scale, NARROW)
            if REST:
                up_rest = _add(up_rest, x, rest_block.load([outputs + first_n + BLOCK_N, k]), x_scale, NARROW)
        x_scale = following
    out_ptr += tl.program_id(2).to(tl.int64) * tokens * outputs
    n = first_n + tl.arange(0, BLOCK_N)
    acc = _result(acc, up, n, outputs, bias_ptr, scale_ptr, NARROW, BIAS, GATED, DTYPE)
    _write(out_ptr, acc, t, n, tokens, outputs)
    if REST:
        n = first_n + BLOCK_N + tl.arange(0, REST)
        acc = _result(acc_rest, up_rest, n, outputs, bias_ptr, scale_ptr, NARROW, BIAS, GATED, DTYPE)
        _write(out_ptr, acc, t, n, tokens, outputs)


@triton.jit
def _add(acc: tl.tensor, x: tl.tensor, weight: tl.tensor, x_scale: tl.tensor, NARROW: tl.constexpr) -> tl.tensor:
    """The products of one step [T, N] added to the sums; of float8 scaled by token first."""
    if NARROW:
        acc += tl.dot(x, weight.T) * x_scale[:, None]
    else:
        acc = tl.dot(x, weight.T, acc, input_precision="ieee")
    return acc


@triton.jit
def _result(
    acc: tl.tensor,
    up: tl.tensor,
    n: tl.tensor,
    outputs: tl.tensor,
    bias_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    SCALE: tl.constexpr,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    dtype: tl.constexpr,
) -> tl.tensor:
    """What becomes of the sums of outputs n."""
    column = tl.minimum(n, outputs - 1)[None, :]
    acc = _finish(acc, column, bias_ptr, scale_ptr, BIAS, SCALE)
    if GATED:
        up = _finish(up, outputs + column, bias_ptr, scale_ptr, BIAS, SCALE)
        acc = _gate(acc, up, dtype)
    return acc


@triton.jit
def _write(
    out_ptr: tl.tensor, value: tl.tensor, t: tl.tensor, n: tl.tensor, tokens: tl.tensor, outputs: tl.tensor
) -> None:
    at = t[:, None].to(tl.int64) * outputs + n[None, :]
    inside = (t < tokens)[:, None] & (n < outputs)[None, :]
    tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask=inside)
