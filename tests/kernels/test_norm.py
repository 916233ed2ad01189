"""Residual sum with norm, and SiLU times up, against float64 and against the eager modules' rounding."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from unmask.kernels.norm import add_norm, silu_mul
from unmask.models.transformer import RMSNorm

# bfloat16 only on a GPU: the interpreter rounds it towards zero.
DTYPES = {"cpu": (torch.float32, torch.float16), "cuda": (torch.float32, torch.float16, torch.bfloat16)}
LIMIT = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def difference(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def draw(*shape, device, dtype, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator)).to(device, dtype)


@torch.no_grad()
@pytest.mark.parametrize(("tokens", "size"), [(1, 64), (3, 24), (5, 3584)])
def test_the_sum_is_exact_and_the_norm_close(tokens, size, device):
    for dtype in DTYPES[device]:
        x, update = (draw(tokens, size, device=device, dtype=dtype, seed=s, scale=3.0) for s in (0, 1))
        norm = RMSNorm(size, 1e-6).to(device, dtype)
        norm.weight.data = draw(size, device=device, dtype=dtype, seed=2)
        before = x.clone()
        total, normed = add_norm(x, update, norm.weight, norm.eps)
        assert torch.equal(total, x + update) and torch.equal(x, before)
        wide = (x + update).double()
        exact = wide / (wide.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight.double()
        assert difference(normed, exact) < LIMIT[dtype]
        # A number may fall on the other side of a rounding boundary, not more.
        torch.testing.assert_close(normed, norm(x + update), rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


def test_without_an_update_the_stream_is_returned_as_it_is(device):
    x = draw(4, 40, device=device, dtype=torch.float32)
    weight = draw(40, device=device, dtype=torch.float32, seed=1)
    total, normed = add_norm(x, None, weight, 1e-5)
    assert total is x
    torch.testing.assert_close(normed, F.rms_norm(x, (40,), weight, 1e-5), rtol=1e-5, atol=1e-6)


def test_a_row_of_zeros_stays_zero(device):
    x = torch.zeros(2, 32, device=device)
    assert not add_norm(x, x, torch.ones(32, device=device), 1e-6)[1].any()


@pytest.mark.parametrize(("tokens", "inner"), [(1, 24), (3, 1030)])
def test_silu_times_up(tokens, inner, device):
    for dtype in DTYPES[device]:
        both = draw(tokens, 2 * inner, device=device, dtype=dtype, scale=4.0)
        gate, up = both.chunk(2, -1)
        out = silu_mul(both)
        assert difference(out, F.silu(gate.double()) * up.double()) < LIMIT[dtype]
        torch.testing.assert_close(out, F.silu(gate) * up, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


def test_silu_at_large_numbers_stays_finite(device):
    both = torch.tensor([[-200.0, 200.0, 0.0, 2.0, 3.0, 4.0]], device=device)
    assert silu_mul(both).cpu().tolist() == [[0.0, 600.0, 0.0]]
