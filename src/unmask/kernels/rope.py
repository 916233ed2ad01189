"""Norm per head, rotation and the write to the paged cache, on the fused projection, in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from unmask.kernels.overlap import follow, overlapped


def rotate_and_store(
    qkv: Tensor,
    bias_X: Tensor | None,
    cos_TR: Tensor,
    sin_TR: Tensor,
    q_norm_D: Tensor | None,
    k_norm_D: Tensor | None,
    eps: float,
    heads: int,
    kv_heads: int,
    head_dim: int,
    keys_SGD: Tensor,
    values_SGD: Tensor,
    store_T: Tensor,
) -> Tensor:
    """Normalises and rotates the queries and keys of each token and writes keys and values to their slots; returns
    [T, X], which is `qkv` itself where that is no sum in parts.

    Rounds where the eager layer rounds (`RMSNorm`, `rotate`, then the dtype of the model).

    Args:
        qkv: [T tokens, X = (H + 2G) * D], rows contiguous: queries, keys, values; changed in place. Or the parts of
            that as a sum, [P, T, X] in float32, contiguous, to be added up in order.
        bias_X: what is to be added to the parts of a sum; its dtype is that of the result, as is that of the cache.
        cos_TR, sin_TR: float32, rows contiguous, as `Rope` gives them: both halves of `cos` equal, the first of `sin`
            the second with the sign turned. Dimensions behind R stay unrotated.
        q_norm_D, k_norm_D: weights of the norms per head; both or none.
        keys_SGD, values_SGD: one layer of the cache, of equal strides.
        store_T: int64, the physical slot of each token, -1 for none.
    """
    parts = 0 if qkv.dim() == 2 else len(qkv)
    qkv_TX = qkv if parts == 0 else torch.empty(qkv.shape[1:], dtype=keys_SGD.dtype, device=qkv.device)
    tokens, rotated = qkv_TX.shape[0], cos_TR.shape[1]
    half, rest = rotated // 2, head_dim - rotated
    block_i, block_r, block_h = triton.next_power_of_2(half), triton.next_power_of_2(max(rest, 1)), 8
    norm = q_norm_D is not None and k_norm_D is not None
    grid = (tokens, triton.cdiv(heads + 2 * kv_heads, block_h))
    _rotate_and_store[grid](
        qkv_TX,
        qkv,
        qkv_TX if bias_X is None else bias_X,
        cos_TR,
        sin_TR,
        q_norm_D if norm else qkv_TX,
        k_norm_D if norm else qkv_TX,
        keys_SGD,
        values_SGD,
        store_T,
        eps,
        qkv_TX.stride(0),
        cos_TR.stride(0),
        sin_TR.stride(0),
        *keys_SGD.stride()[:2],
        HEADS=heads,
        KV_HEADS=kv_heads,
        SIZE=head_dim,
        HALF=half,
        REST=rest,
        NORM=norm,
        PARTS=parts,
        BIAS=parts > 0 and bias_X is not None,
        BLOCK_H=block_h,
        BLOCK_I=block_i,
        BLOCK_R=block_r,
        num_warps=max(1, min(4, block_h * block_i // 256)),
        # The eager rotation rounds both products: a fused multiply-add would not.
        enable_fp_fusion=False,
        **overlapped(qkv_TX.is_cuda),
    )
    return qkv_TX


@triton.jit
def _rotate_and_store(
    qkv_ptr: tl.tensor,  # [tokens, (H + 2G) * D]
    parts_ptr: tl.tensor,  # the same, or [P, tokens, (H + 2G) * D]
    bias_ptr: tl.tensor,  # [(H + 2G) * D]
    cos_ptr: tl.tensor,  # [tokens, R]
    sin_ptr: tl.tensor,
    q_norm_ptr: tl.tensor,  # [D]
    k_norm_ptr: tl.tensor,
    keys_ptr: tl.tensor,  # [S, G, D]
    values_ptr: tl.tensor,
    store_ptr: tl.tensor,  # [tokens]
    eps: tl.tensor,
    qkv_t: tl.tensor,
    cos_t: tl.tensor,
    sin_t: tl.tensor,
    slot_s: tl.tensor,
    slot_g: tl.tensor,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,  # R / 2
    REST: tl.constexpr,  # D - R
    NORM: tl.constexpr,
    PARTS: tl.constexpr,  # 0: the projection is whole
    BIAS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_R: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    follow(OVERLAP)
    # Heads of the fused row: queries, then keys, then values. A pair is read and written by one program alone.
    token = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    is_q = (h < HEADS)[:, None]
    is_v = (h >= HEADS + KV_HEADS)[:, None]
    real = (h < HEADS + 2 * KV_HEADS)[:, None]
    i = tl.arange(0, BLOCK_I)[None, :]
    pair = real & (i < HALF)
    r = 2 * HALF + tl.arange(0, BLOCK_R)[None, :]
    tail = real & (r < SIZE)

    start = h[:, None] * SIZE
    here = qkv_ptr + token * qkv_t + start
    dtype: tl.constexpr = qkv_ptr.dtype.element_ty
    a = _projected(qkv_ptr, parts_ptr, bias_ptr, token, qkv_t, start + i, pair, PARTS, BIAS)
    b = _projected(qkv_ptr, parts_ptr, bias_ptr, token, qkv_t, start + HALF + i, pair, PARTS, BIAS)
    x, y = a.to(tl.float32), b.to(tl.float32)
    if REST > 0:
        c = _projected(qkv_ptr, parts_ptr, bias_ptr, token, qkv_t, start + r, tail, PARTS, BIAS)
        z = c.to(tl.float32)
    if NORM:
        square = tl.sum(x * x, 1) + tl.sum(y * y, 1)
        if REST > 0:
            square += tl.sum(z * z, 1)
        scale = tl.rsqrt(square / SIZE + eps)[:, None]
        x = _weighted(x, scale, q_norm_ptr, k_norm_ptr, i, i < HALF, is_q, dtype)
        y = _weighted(y, scale, q_norm_ptr, k_norm_ptr, HALF + i, i < HALF, is_q, dtype)
        if REST > 0:
            z = _weighted(z, scale, q_norm_ptr, k_norm_ptr, r, r < SIZE, is_q, dtype)
    cos = tl.load(cos_ptr + token * cos_t + HALF + i, mask=i < HALF, other=0.0)
    sin = tl.load(sin_ptr + token * sin_t + HALF + i, mask=i < HALF, other=0.0)
    a = tl.where(is_v, a, (x * cos - y * sin).to(dtype))
    b = tl.where(is_v, b, (y * cos + x * sin).to(dtype))

    slot = tl.load(store_ptr + token)
    stored = ~is_q & (slot >= 0)
    g = tl.where(is_v, h[:, None] - HEADS - KV_HEADS, h[:, None] - HEADS)
    key = keys_ptr + slot * slot_s + g * slot_g
    value = values_ptr + slot * slot_s + g * slot_g
    new = ~is_v | (PARTS > 0)  # values stay as they are
    _store(a, here, key, value, i, pair, new, stored, is_v)
    _store(b, here, key, value, HALF + i, pair, new, stored, is_v)
    if REST > 0:
        _store(tl.where(is_v, c, z.to(dtype)), here, key, value, r, tail, new, stored, is_v)


@triton.jit
def _store(
    x: tl.tensor,
    here: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    at: tl.tensor,
    inside: tl.tensor,
    new: tl.tensor,
    stored: tl.tensor,
    is_v: tl.tensor,
) -> None:
    """Part of each head, to its place in the projection if it is `new` there, and to the cache if it is `stored`."""
    tl.store(here + at, x, mask=inside & new)
    tl.store(key + at, x, mask=inside & stored & ~is_v)
    tl.store(value + at, x, mask=inside & stored & is_v)


@triton.jit
def _projected(
    qkv_ptr: tl.tensor,
    parts_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    token: tl.tensor,
    stride: tl.tensor,
    at: tl.tensor,
    inside: tl.tensor,
    PARTS: tl.constexpr,
    BIAS: tl.constexpr,
) -> tl.tensor:
    """What the projection of a token has at these places; of a sum in parts rounded once."""
    parts_ptr += token * stride
    total = tl.load(parts_ptr + at, mask=inside, other=0.0)
    for part in tl.static_range(1, PARTS):
        total += tl.load(parts_ptr + part * tl.num_programs(0) * stride + at, mask=inside, other=0.0)
    if BIAS:
        total += tl.load(bias_ptr + at, mask=inside, other=0.0).to(tl.float32)
    return total.to(qkv_ptr.dtype.element_ty)


@triton.jit
def _weighted(
    x: tl.tensor,
    scale: tl.tensor,
    q_norm_ptr: tl.tensor,
    k_norm_ptr: tl.tensor,
    index: tl.tensor,
    inside: tl.tensor,
    is_q: tl.tensor,
    dtype: tl.constexpr,
) -> tl.tensor:
    """x * scale rounded, times the weight of its head's norm, rounded: as the published models do."""
    q_weight = tl.load(q_norm_ptr + index, mask=inside, other=0.0).to(tl.float32)
    k_weight = tl.load(k_norm_ptr + index, mask=inside, other=0.0).to(tl.float32)
    normal = (x * scale).to(dtype).to(tl.float32)
    return (normal * tl.where(is_q, q_weight, k_weight)).to(dtype).to(tl.float32)
