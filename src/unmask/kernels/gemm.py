"""Products of few tokens with a large weight, in Triton: the weight is streamed once, at the rate of the memory.

`thin` runs on the matrix units: outputs x tokens tiles, the weight as the left operand, which may be wider than the
tokens are many. Where outputs alone make too few programs, the sum is split and `_merge` adds the parts in a fixed
order, so results do not change between runs. `vector` is for a single token, without matrix units. Sums are float32.

The weight may be float8 (e4m3) with a scale per output: it is widened in registers and scaled behind the sum.
`GATED`: the weight is gate above up, [2N, K], and what is returned is silu(gate) * up, rounded as in `MLP`.

Shapes: T tokens, K inputs, N outputs, P parts of a split sum.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from unmask.kernels.norm import silu
from unmask.kernels.overlap import follow, overlapped


def thin(
    x_TK: Tensor,
    weight_NK: Tensor,
    bias_N: Tensor | None = None,
    scale_N: Tensor | None = None,
    *,
    gated: bool = False,
    block_n: int = 64,
    block_k: int = 128,
    splits: int = 1,
    warps: int = 4,
    stages: int = 4,
    merge: bool = True,
) -> Tensor:
    """x W^T + b: [T, N]. Any T, but made for few.

    Args:
        x_TK: contiguous.
        weight_NK: contiguous, of x's dtype or float8_e4m3fn.
        bias_N, scale_N: of x's dtype; float32. [2N] with `gated`.
        gated: see above; allows one part only.
        block_n, block_k: outputs of a program (at least 16) and inputs of a step, powers of two.
        splits: parts of the sum at most.
        warps, stages: of a program, and of its pipeline of loads.
        merge: False returns the parts of a split sum [P, T, N] in float32, without bias and scale.
    """
    assert x_TK.is_contiguous() and weight_NK.is_contiguous() and not (gated and splits > 1)
    tokens, inputs = x_TK.shape
    outputs = weight_NK.shape[0] // 2 if gated else weight_NK.shape[0]
    part = triton.cdiv(triton.cdiv(inputs, block_k), splits) * block_k
    parts = triton.cdiv(inputs, part)
    block_t = tile_tokens(tokens)
    out = x_TK.new_empty(tokens, outputs)
    sums = out if parts == 1 else x_TK.new_empty(parts, tokens, outputs, dtype=torch.float32)
    none = x_TK  # a pointer that no program follows
    # Token tiles of one weight tile run side by side, so that the weight comes from memory once.
    _thin[(triton.cdiv(tokens, block_t), triton.cdiv(outputs, block_n), parts)](
        x_TK,
        weight_NK,
        none if bias_N is None else bias_N,
        none if scale_N is None else scale_N,
        sums,
        tokens,
        outputs,
        inputs,
        part,
        BIAS=bias_N is not None and parts == 1,
        SCALE=scale_N is not None and parts == 1,
        GATED=gated,
        PARTIAL=parts > 1,
        EVEN=inputs % part == 0,
        BLOCK_T=block_t,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        num_warps=warps,
        num_stages=stages,
        **overlapped(x_TK.is_cuda),
    )
    if parts > 1 and not merge:
        return sums
    return out if parts == 1 else merge_parts(sums, bias_N, scale_N, out)


def merge_parts(sums_PTN: Tensor, bias_N: Tensor | None, scale_N: Tensor | None, out_TN: Tensor) -> Tensor:
    """The parts of a split sum added up in order, scaled and biased, into `out_TN`, which is returned."""
    size, outputs = out_TN.numel(), out_TN.shape[1]
    _merge[(triton.cdiv(size, 1024),)](
        sums_PTN,
        out_TN if bias_N is None else bias_N,
        out_TN if scale_N is None else scale_N,
        out_TN,
        size,
        outputs,
        BIAS=bias_N is not None,
        SCALE=scale_N is not None,
        PARTS=len(sums_PTN),
        BLOCK=1024,
        num_warps=4,
        **overlapped(out_TN.is_cuda),
    )
    return out_TN


def tile_tokens(tokens: int) -> int:
    """Tokens of a program of `thin`: 16 to 256."""
    return min(max(triton.next_power_of_2(tokens), 16), 256)


@triton.jit(do_not_specialize=["tokens"])  # one compilation for all numbers of tokens of a tile
def _thin(
    x_ptr: tl.tensor,  # [T, K]
    weight_ptr: tl.tensor,  # [N, K] or, gated, [2N, K]
    bias_ptr: tl.tensor,  # [N] or [2N]
    scale_ptr: tl.tensor,
    out_ptr: tl.tensor,  # [T, N], partial: [P, T, N]
    tokens: tl.tensor,
    outputs: tl.tensor,
    inputs: tl.tensor,
    part: tl.tensor,  # inputs of one part, whole steps
    BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    GATED: tl.constexpr,
    PARTIAL: tl.constexpr,
    EVEN: tl.constexpr,  # all parts are full: no input needs a mask
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(2) * part
    k = first + tl.arange(0, BLOCK_K)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    # Outputs beyond the last repeat it: their loads need no mask, their sums are not stored.
    row = tl.minimum(n, outputs - 1).to(tl.int64)
    x_at = x_ptr + t[None, :].to(tl.int64) * inputs + k[:, None]
    weight_at = weight_ptr + row[:, None] * inputs + k[None, :]
    below = outputs.to(tl.int64) * inputs
    follow(OVERLAP)
    real = t[None, :] < tokens  # absent tokens are not read: with one token they would be most of the traffic
    acc = tl.zeros([BLOCK_N, BLOCK_T], dtype=tl.float32)
    up = tl.zeros([BLOCK_N, BLOCK_T], dtype=tl.float32)
    for step in range(0, part, BLOCK_K):
        if EVEN:
            x = tl.load(x_at, mask=real, other=0.0)
        else:
            inside = k + step < inputs
            x = tl.load(x_at, mask=real & inside[:, None], other=0.0)
        weight = tl.load(weight_at) if EVEN else tl.load(weight_at, mask=inside[None, :], other=0.0)
        acc = tl.dot(weight.to(dtype), x, acc, input_precision="ieee")
        if GATED:
            other_at = weight_at + below
            weight = tl.load(other_at) if EVEN else tl.load(other_at, mask=inside[None, :], other=0.0)
            up = tl.dot(weight.to(dtype), x, up, input_precision="ieee")
        x_at += BLOCK_K
        weight_at += BLOCK_K
    if not PARTIAL:
        acc = _finish(acc, row[:, None], bias_ptr, scale_ptr, BIAS, SCALE)
        if GATED:
            up = _finish(up, outputs + row[:, None], bias_ptr, scale_ptr, BIAS, SCALE)
            acc = _gate(acc, up, dtype)
    base = tl.program_id(2).to(tl.int64) * tokens * outputs
    at = base + t[None, :].to(tl.int64) * outputs + n[:, None]
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=real & (n[:, None] < outputs))


@triton.jit
def _finish(
    sums: tl.tensor, n: tl.tensor, bias_ptr: tl.tensor, scale_ptr: tl.tensor, BIAS: tl.constexpr, SCALE: tl.constexpr
) -> tl.tensor:
    """Scale and bias of outputs n on their sums."""
    if SCALE:
        sums = sums * tl.load(scale_ptr + n)
    if BIAS:
        sums = sums + tl.load(bias_ptr + n).to(tl.float32)
    return sums


@triton.jit
def _gate(gate: tl.tensor, up: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """silu(gate) * up in float32, rounded to `dtype` where the eager MLP rounds before its last product."""
    active = silu(gate.to(dtype).to(tl.float32)).to(dtype).to(tl.float32)
    return active * up.to(dtype).to(tl.float32)


@triton.jit
def _merge(
    sums_ptr: tl.tensor,  # [P, T, N]
    bias_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    out_ptr: tl.tensor,  # [T, N]
    size: tl.tensor,  # T * N
    outputs: tl.tensor,
    BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    follow(OVERLAP)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    acc = tl.zeros([BLOCK], dtype=tl.float32)
    for part in tl.static_range(PARTS):
        acc += tl.load(sums_ptr + part * size.to(tl.int64) + i, mask=inside, other=0.0)
    acc = _finish(acc, i % outputs, bias_ptr, scale_ptr, BIAS, SCALE)
    tl.store(out_ptr + i, acc.to(out_ptr.dtype.element_ty), mask=inside)


def vector(
    x_1K: Tensor,
    weight_NK: Tensor,
    bias_N: Tensor | None = None,
    scale_N: Tensor | None = None,
    *,
    gated: bool = False,
    block_n: int = 8,
    block_k: int = 512,
    warps: int = 4,
) -> Tensor:
    """The same for one token, [1, N]: many small programs keep enough loads under way without a pipeline."""
    assert len(x_1K) == 1 and x_1K.is_contiguous() and weight_NK.is_contiguous()
    outputs, inputs = weight_NK.shape[0] // 2 if gated else weight_NK.shape[0], weight_NK.shape[1]
    out = x_1K.new_empty(1, outputs)
    _vector[(triton.cdiv(outputs, block_n),)](
        x_1K,
        weight_NK,
        x_1K if bias_N is None else bias_N,
        x_1K if scale_N is None else scale_N,
        out,
        outputs,
        inputs,
        BIAS=bias_N is not None,
        SCALE=scale_N is not None,
        GATED=gated,
        EVEN=inputs % block_k == 0,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        num_warps=warps,
        **overlapped(x_1K.is_cuda),
    )
    return out


@triton.jit
def _vector(
    x_ptr: tl.tensor,  # [K]
    weight_ptr: tl.tensor,  # [N, K] or, gated, [2N, K]
    bias_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    out_ptr: tl.tensor,  # [N]
    outputs: tl.tensor,
    inputs: tl.tensor,
    BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    GATED: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.minimum(n, outputs - 1).to(tl.int64)
    below = outputs.to(tl.int64) * inputs
    follow(OVERLAP)
    k = tl.arange(0, BLOCK_K)
    weight_at = weight_ptr + row[:, None] * inputs + k[None, :]
    # Products of each column of the tile are added over the steps; the columns at the end.
    acc = tl.zeros([BLOCK_N, BLOCK_K], dtype=tl.float32)
    up = tl.zeros([BLOCK_N, BLOCK_K], dtype=tl.float32)
    for start in range(0, inputs, BLOCK_K):
        if EVEN:
            x = tl.load(x_ptr + start + k).to(tl.float32)[None, :]
            acc += tl.load(weight_at + start).to(tl.float32) * x
            if GATED:
                up += tl.load(weight_at + below + start).to(tl.float32) * x
        else:
            inside = start + k < inputs
            x = tl.load(x_ptr + start + k, mask=inside, other=0.0).to(tl.float32)[None, :]
            acc += tl.load(weight_at + start, mask=inside[None, :], other=0.0).to(tl.float32) * x
            if GATED:
                up += tl.load(weight_at + below + start, mask=inside[None, :], other=0.0).to(tl.float32) * x
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    out = _finish(tl.sum(acc, 1), row, bias_ptr, scale_ptr, BIAS, SCALE)
    if GATED:
        out = _gate(out, _finish(tl.sum(up, 1), outputs + row, bias_ptr, scale_ptr, BIAS, SCALE), dtype)
    tl.store(out_ptr + n, out.to(dtype), mask=n < outputs)
