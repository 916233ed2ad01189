"""Norm per head, rotation and the write to the paged cache, in place on the fused projection, in Triton."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from unmask.kernels.overlap import follow, overlapped


def rotate_and_store(
    qkv_TX: Tensor,
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
) -> None:
    """Normalises and rotates the queries and keys of each token in place and writes keys and values to their slots.

    Rounds where the eager layer rounds (`RMSNorm`, `rotate`, then the dtype of the model).

    Args:
        qkv_TX: [T tokens, (H + 2G) * D], rows contiguous: queries, keys, values.
        cos_TR, sin_TR: float32, rows contiguous, as `Rope` gives them: both halves of `cos` equal, the first of `sin`
            the second with the sign turned. Dimensions behind R stay unrotated.
        q_norm_D, k_norm_D: weights of the norms per head; both or none.
        keys_SGD, values_SGD: one layer of the cache, of equal strides.
        store_T: int64, the physical slot of each token, -1 for none.
    """
    tokens, rotated = qkv_TX.shape[0], cos_TR.shape[1]
    half, rest = rotated // 2, head_dim - rotated
    block_i, block_r, block_h = triton.next_power_of_2(half), triton.next_power_of_2(max(rest, 1)), 8
    norm = q_norm_D is not None and k_norm_D is not None
    grid = (tokens, triton.cdiv(heads + 2 * kv_heads, block_h))
    _rotate_and_store[grid](
        qkv_TX,
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
        BLOCK_H=block_h,
        BLOCK_I=block_i,
        BLOCK_R=block_r,
        num_warps=max(1, min(4, block_h * block_i // 256)),
        # The eager rotation rounds both products: a fused multiply-add would not.
        enable_fp_fusion=False,
        **overlapped(qkv_TX.is_cuda),
    )


@triton.jit
def _rotate_and_store(
    qkv_ptr: tl.tensor,  # [tokens, (H + 2G) * D]
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

    here = qkv_ptr + token * qkv_t + h[:, None] * SIZE
    a = tl.load(here + i, mask=pair, other=0.0)
    b = tl.load(here + HALF + i, mask=pair, other=0.0)
    dtype = a.dtype
    x, y = a.to(tl.float32), b.to(tl.float32)
    if REST > 0:
        c = tl.load(here + r, mask=tail, other=0.0)
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
    tl.store(here + i, a, mask=pair & ~is_v)
    tl.store(here + HALF + i, b, mask=pair & ~is_v)
    tl.store(key + i, a, mask=pair & stored & ~is_v)
    tl.store(key + HALF + i, b, mask=pair & stored & ~is_v)
    tl.store(value + i, a, mask=pair & stored & is_v)
    tl.store(value + HALF + i, b, mask=pair & stored & is_v)
    if REST > 0:
        c = tl.where(is_v, c, z.to(dtype))
        tl.store(here + r, c, mask=tail & ~is_v)
        tl.store(key + r, c, mask=tail & stored & ~is_v)
        tl.store(value + r, c, mask=tail & stored & is_v)


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
