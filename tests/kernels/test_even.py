"""Products in even shares against float64; of float8, on the rounded numbers."""

import pytest
import torch

from products import difference, exact, poison

pytest.importorskip("triton")

from unmask.engine.linear import quantise
from unmask.kernels.even import even
from unmask.kernels.groups import narrowed
from unmask.kernels.shares import shares


def draw(*shape, device, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, torch.float16)


# Tokens of one tile and of several, outputs and inputs that end inside one, sums in parts of unequal length.
SHAPES = [(3, 130, 72, 1), (70, 80, 200, 3), (130, 90, 64, 1)]


@pytest.mark.parametrize(("tokens", "outputs", "inputs", "splits"), SHAPES)
@pytest.mark.parametrize("rest", [0, 16])
def test_products(tokens, outputs, inputs, splits, rest, device):
    x, weight = draw(tokens, inputs, device=device), draw(outputs, inputs, device=device, seed=1) / inputs**0.5
    bias = draw(outputs, device=device, seed=2)
    sizes = {"block_n": 64, "rest": rest}
    poison(device)
    out = even(x, weight, bias, **sizes, splits=splits)
    expected = exact(x, weight, bias)
    assert out.dtype == x.dtype and difference(out, expected) < 2e-3
    assert torch.equal(out, even(x, weight, bias, **sizes, splits=splits))
    parts = even(x, weight, **sizes, splits=splits, merge=False).double()
    assert difference(parts.view(-1, tokens, outputs).sum(0) + bias.double(), expected) < 2e-3
    assert difference(even(x, weight, bias, **sizes, gated=True), exact(x, weight, bias, gated=True)) < 2e-3


@pytest.mark.parametrize(
    ("tokens", "outputs", "inputs", "splits"), [(1, 40, 256, 1), (20, 130, 640, 3), (33, 64, 128, 2), (70, 64, 128, 1)]
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_products_of_float8(tokens, outputs, inputs, splits, with_bias, device):
    x = narrowed(draw(tokens, inputs, device=device))
    weight, scale = quantise(draw(outputs, inputs, device=device, seed=1) / inputs**0.5)
    bias = draw(outputs, device=device, seed=2) if with_bias else None
    values = x.values.double().unflatten(1, (-1, 128)) * x.scales.double().unsqueeze(-1)
    expected = exact(values.flatten(1), weight.double() * scale.double().unsqueeze(1), bias)
    poison(device)
    for rest in (0, 16):
        sizes = {"block_n": 64, "rest": rest, "splits": splits, "stages": 3}
        out = even(x, weight, bias, scale, torch.float16, **sizes)
        # Hopper's matrix units add float8 products with 14 bits.
        assert out.dtype == torch.float16 and difference(out, expected) < 2e-3
        assert torch.equal(out, even(x, weight, bias, scale, torch.float16, **sizes))
        parts = even(x, weight, None, scale, torch.float16, **sizes, merge=False).double()
        total = parts.view(-1, tokens, outputs).sum(0) + (0 if bias is None else bias.double())
        assert difference(total, expected) < 2e-3


def test_shares_are_the_smallest_tiles_that_hold_all_outputs():
    """Qwen2.5-7B on 132 processors: the joint gate and up, one of both, its queries with keys and values in 4 parts."""
    assert shares(37888, 132) == (256, 32) and -(-37888 // 288) == 132
    assert shares(18944, 132) == (128, 16)
    assert shares(4608, 33) == (128, 16)
    assert shares(64, 1) == (64, 0)
    assert shares(152064, 132) is None
