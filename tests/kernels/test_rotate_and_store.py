"""Norm per head, rotation and the write to the cache in one kernel, against the eager layer's functions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unmask.models.rope import rotate
from unmask.models.transformer import RMSNorm

pytest.importorskip("triton")
from unmask.kernels.rope import rotate_and_store

SLOTS, EPS = 40, 1e-6


def run(device: str, dtype: torch.dtype, heads: int, kv_heads: int, size: int, rotated: int, norm: bool) -> None:
    g = torch.Generator().manual_seed(size + heads)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).to(device)

    tokens, columns = 6, (heads + 2 * kv_heads) * size
    angles = 50 * normal(tokens, rotated // 2)
    cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([-angles.sin(), angles.sin()], -1)
    buffer = normal(tokens, columns + 16).to(dtype)  # rows need not be adjacent
    qkv = buffer[:, :columns]
    held = [normal(SLOTS, kv_heads, size).to(dtype) for _ in range(2)]
    norms = [RMSNorm(size, EPS).to(device, dtype) for _ in range(2)]
    for module in norms:
        module.weight.data = normal(size).to(dtype)
    store = torch.randperm(SLOTS, generator=g)[:tokens].to(device)
    store[[2, 4]] = -1

    q, k, v = qkv.clone().unflatten(-1, (-1, size)).split([heads, kv_heads, kv_heads], 1)
    with torch.no_grad():
        q, k = (norms[0](q), norms[1](k)) if norm else (q, k)
        q, k = (rotate(x, cos[:, None], sin[:, None]).to(dtype) for x in (q, k))
    keys, values = (x.clone() for x in held)
    keys[store[store >= 0]], values[store[store >= 0]] = k[store >= 0], v[store >= 0]
    behind = buffer[:, columns:].clone()

    weights = [m.weight.data if norm else None for m in norms]
    rotate_and_store(qkv, None, cos, sin, *weights, EPS, heads, kv_heads, size, *held, store)
    pairs = [(qkv, torch.cat([q, k, v], 1).flatten(1)), (held[0], keys), (held[1], values)]
    tolerance = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}[dtype]
    if device == "cpu" and dtype == torch.bfloat16:
        tolerance = 1e-2  # the interpreter cuts bits off where it should round
    elif not norm:
        assert all(torch.equal(out, expected) for out, expected in pairs)
    for out, expected in pairs:
        assert float((out.double() - expected.double()).norm() / expected.double().norm()) < tolerance
    assert torch.equal(buffer[:, columns:], behind)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 1), (14, 2), (28, 4)])
@pytest.mark.parametrize(("size", "rotated"), [(8, 8), (16, 16), (80, 80), (96, 96), (128, 128), (64, 32), (80, 20)])
def test_every_shape(device, size, rotated, heads, kv_heads, norm):
    run(device, torch.float32, heads, kv_heads, size, rotated, norm)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_where_the_layer_does(device, dtype, norm):
    run(device, dtype, 7, 1, 64, 64, norm)
    run(device, dtype, 7, 1, 64, 16, norm)


def test_a_layer_of_the_paged_cache_is_written(device):
    """Views of [L, S, G, D], the case of the engine, and no token stored at all."""
    held = torch.zeros(2, 3, SLOTS, 2, 16, device=device)
    qkv = torch.randn(4, 6 * 16, device=device)
    cos, sin = torch.ones(4, 16, device=device), torch.zeros(4, 16, device=device)
    before = qkv.clone()
    none = torch.full((4,), -1, device=device)
    rotate_and_store(qkv, None, cos, sin, None, None, EPS, 2, 2, 16, held[0, 1], held[1, 1], none)
    assert torch.equal(qkv, before)
    assert not held.any()
    rotate_and_store(
        qkv, None, cos, sin, None, None, EPS, 2, 2, 16, held[0, 1], held[1, 1], none + 1 + torch.arange(4).to(device)
    )
    assert torch.equal(held[0, 1, :4].flatten(1), before[:, 32:64])
    assert torch.equal(held[1, 1, :4].flatten(1), before[:, 64:])
    assert int((held != 0).any(-1).sum()) == 2 * 4 * 2


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("dtype", "rotated"), [(torch.float32, 16), (torch.float16, 10)])
def test_the_parts_of_a_sum_are_added_in_order_and_rounded_once(device, dtype, rotated, with_bias):
    parts = torch.randn(3, 5, 6 * 16, device=device)
    bias = torch.randn(6 * 16, device=device).to(dtype) if with_bias else None
    total = parts[0] + parts[1] + parts[2]
    whole = (total if bias is None else total + bias).to(dtype)
    cos, sin = torch.randn(5, rotated // 2, device=device).repeat(1, 2), torch.randn(5, rotated, device=device)
    sin[:, : rotated // 2] = -sin[:, rotated // 2 :]
    store = torch.tensor([3, -1, 0, 1, 2], device=device)
    norms = [torch.randn(16, device=device).to(dtype) for _ in range(2)]
    found = []
    for qkv in (parts, whole):
        held = [torch.zeros(SLOTS, 2, 16, device=device, dtype=dtype) for _ in range(2)]
        out = rotate_and_store(qkv, bias, cos, sin, *norms, EPS, 2, 2, 16, *held, store)
        assert out.dtype == dtype and out.shape == (5, 6 * 16)
        found.append((out, *held))
    assert found[1][0] is whole
    for x, y in zip(*found):
        assert torch.equal(x, y) and bool(x.any())
