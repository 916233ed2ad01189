"""Products in even shares against float64; with float8 weights, tokens rounded to it in groups."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from unmask.engine.linear import quantise
from unmask.kernels.even import even
from unmask.kernels.shares import GROUP, shares


def difference(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def draw(*shape, device, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, torch.float16)


def poison(device):
    """Memory that the next results are likely to be put into."""
    torch.full((1 << 16,), torch.nan, device=device)


def exact(x, weight, bias):
    return F.linear(x.double(), weight.double(), None if bias is None else bias.double())


def gated(y):
    gate, up = y.chunk(2, -1)
    return F.silu(gate) * up


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
    assert difference(even(x, weight, bias, **sizes, gated=True), gated(expected)) < 2e-3


def rounded(x):
    """What float8 leaves of the tokens: each group of inputs divided by a scale that makes its largest 448."""
    groups = x.double().unflatten(1, (-1, GROUP))
    scale = groups.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 448
    return ((groups / scale).to(torch.float8_e4m3fn).double() * scale).flatten(1)


@pytest.mark.parametrize(
    ("tokens", "outputs", "inputs", "splits"), [(1, 40, 256, 1), (20, 130, 640, 3), (70, 64, 128, 2)]
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_products_with_float8_weights(tokens, outputs, inputs, splits, with_bias, device):
    x = draw(tokens, inputs, device=device)
    x[0, 3] = 1000  # an outlier, which costs its group alone
    x[-1, -GROUP:] = 0
    weight, scale = quantise(draw(outputs, inputs, device=device, seed=1) / inputs**0.5)
    bias = draw(outputs, device=device, seed=2) if with_bias else None
    expected = exact(rounded(x), weight.double() * scale.double().unsqueeze(1), bias)
    # Hopper's matrix units add float8 products with 14 bits; the interpreter loses the carry where rounding reaches the
    # next power of two.
    limit = 2e-2 if device == "cpu" else 4e-3
    poison(device)
    for rest in (0, 16):
        sizes = {"block_n": 64, "rest": rest, "stages": 3}
        out = even(x, weight, bias, scale, **sizes, splits=splits)
        assert out.dtype == x.dtype and difference(out, expected) < limit
        assert torch.equal(out, even(x, weight, bias, scale, **sizes, splits=splits))
        parts = even(x, weight, None, scale, **sizes, splits=splits, merge=False).double()
        total = parts.view(-1, tokens, outputs).sum(0) + (0 if bias is None else bias.double())
        assert difference(total, expected) < limit
        assert difference(even(x, weight, bias, scale, **sizes, gated=True), gated(expected)) < 2 * limit


def test_shares_are_the_smallest_tiles_that_hold_all_outputs():
    """Qwen2.5-7B on 132 processors: the joint gate and up, one of both, its queries with keys and values in 4 parts."""
    assert shares(37888, 132) == (256, 32) and -(-37888 // 288) == 132
    assert shares(18944, 132) == (128, 16)
    assert shares(4608, 33) == (128, 16)
    assert shares(64, 1) == (64, 0)
    assert shares(152064, 132) is None
