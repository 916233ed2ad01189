"""Residual sum with RMSNorm, and SiLU times up, one pass each, in Triton.

Both round where the eager network rounds (`models.transformer.RMSNorm`, `models.mlp.MLP`), so that a bfloat16 engine
stays next to the eager text.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from unmask.kernels.groups import Narrow, to_groups
from unmask.kernels.overlap import follow, overlapped


def add_norm(
    x_TC: Tensor, update_TC: Tensor | None, weight_C: Tensor, eps: float, narrow: bool = False
) -> tuple[Tensor, Tensor | Narrow]:
    """The residual stream after an update, and its RMSNorm (`narrow`: rounded to float8): both [T, C].

    Args:
        x_TC: the residual stream, contiguous; not written to.
        update_TC: what a layer adds to it, contiguous; or the parts of a split sum [P, T, C], which are added up in
            order and rounded first. None: nothing is added and `x_TC` itself is returned.
        weight_C: of the norm.
        eps: added to the mean square.
    """
    assert x_TC.is_contiguous() and (update_TC is None or update_TC.is_contiguous())
    tokens, size = x_TC.shape
    total = x_TC if update_TC is None else torch.empty_like(x_TC)
    normed = Narrow.empty(tokens, size, x_TC.device) if narrow else torch.empty_like(x_TC)
    block = triton.next_power_of_2(size)
    _add_norm[(tokens,)](
        x_TC,
        x_TC if update_TC is None else update_TC,
        weight_C,
        total,
        normed.values if isinstance(normed, Narrow) else normed,
        normed.scales if isinstance(normed, Narrow) else normed,
        size,
        eps,
        x_TC.numel(),
        PARTS=0 if update_TC is None else 1 if update_TC.dim() == 2 else len(update_TC),
        NARROW=narrow,
        BLOCK=block,
        # Two loads of 16 bytes a thread at C = 3584: with few rows latency is all there is.
        num_warps=max(1, min(16, block // 512)),
        **overlapped(x_TC.is_cuda),
    )
    return total, normed


@triton.jit
def _add_norm(
    x_ptr: tl.tensor,  # [T, C]
    update_ptr: tl.tensor,
    weight_ptr: tl.tensor,  # [C]
    total_ptr: tl.tensor,  # [T, C]
    normed_ptr: tl.tensor,
    scales_ptr: tl.tensor,  # [T, C / 128]
    size: tl.tensor,
    eps: tl.tensor,
    stride: tl.tensor,  # T * C, from part to part
    PARTS: tl.constexpr,
    NARROW: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    c = tl.arange(0, BLOCK)
    inside = c < size
    at = tl.program_id(0).to(tl.int64) * size + c
    follow(OVERLAP)
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    weight = tl.load(weight_ptr + c, mask=inside, other=0.0).to(tl.float32)
    if PARTS > 0:
        update = tl.load(update_ptr + at, mask=inside, other=0.0)
        for part in tl.static_range(1, PARTS):
            update += tl.load(update_ptr + part * stride.to(tl.int64) + at, mask=inside, other=0.0)
        x = (x.to(tl.float32) + update.to(dtype).to(tl.float32)).to(dtype)
        tl.store(total_ptr + at, x, mask=inside)
    wide = x.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, 0) / size + eps)
    normal = (wide * scale).to(dtype).to(tl.float32)
    normed = (normal * weight).to(dtype)
    if NARROW:
        _store_groups(normed, normed_ptr, scales_ptr, at, inside, BLOCK)
    else:
        tl.store(normed_ptr + at, normed, mask=inside)


@triton.jit
def _store_groups(
    x: tl.tensor, values_ptr: tl.tensor, scales_ptr: tl.tensor, at: tl.tensor, inside: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """Part of a row, whole groups from a place that begins one, in float8 with the scales of its groups."""
    groups, scale = to_groups(x.to(tl.float32).reshape(BLOCK // 128, 128))
    tl.store(values_ptr + at, groups.reshape(BLOCK).to(values_ptr.dtype.element_ty), mask=inside)
    group = tl.min(at, 0) // 128 + tl.arange(0, BLOCK // 128)
    held = tl.max(inside.to(tl.int32).reshape(BLOCK // 128, 128), 1) > 0
    tl.store(scales_ptr + group, scale, mask=held)


def silu_mul(gate_up_TX: Tensor, narrow: bool = False) -> Tensor | Narrow:
    """silu(gate) * up of the joint projection [T, 2I], gate first, contiguous: [T, I] (`narrow`: as float8)."""
    assert gate_up_TX.is_contiguous()
    tokens, inner = gate_up_TX.shape[0], gate_up_TX.shape[1] // 2
    out = Narrow.empty(tokens, inner, gate_up_TX.device) if narrow else gate_up_TX.new_empty(tokens, inner)
    block = min(1024, triton.next_power_of_2(inner))
    # Rows along the first axis of the grid: the second ends at 65535.
    _silu_mul[(tokens, triton.cdiv(inner, block))](
        gate_up_TX,
        out.values if isinstance(out, Narrow) else out,
        out.scales if isinstance(out, Narrow) else out,
        inner,
        NARROW=narrow,
        BLOCK=block,
        num_warps=4,
        **overlapped(gate_up_TX.is_cuda),
    )
    return out


@triton.jit
def silu(x: tl.tensor) -> tl.tensor:
    """x * sigmoid(x) in float32."""
    return x / (1.0 + tl.exp(-x))


@triton.jit
def _silu_mul(
    gate_up_ptr: tl.tensor,
    out_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    inner: tl.tensor,
    NARROW: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    follow(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < inner
    row_ptr = gate_up_ptr + token * inner * 2
    gate = tl.load(row_ptr + i, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(row_ptr + inner + i, mask=inside, other=0.0).to(tl.float32)
    dtype: tl.constexpr = gate_up_ptr.dtype.element_ty
    active = silu(gate).to(dtype).to(tl.float32)
    x = (active * up).to(dtype)
    if NARROW:
        _store_groups(x, out_ptr, scales_ptr, token * inner + i, inside, BLOCK)
    else:
        tl.store(out_ptr + token * inner + i, x, mask=inside)
