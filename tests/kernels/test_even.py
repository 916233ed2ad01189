"""Products in even shares against float64; of float8, on the rounded numbers. Gluon has no interpreter: on a GPU
alone."""

import pytest
import torch

from products import difference, exact, poison

pytest.importorskip("triton.experimental.gluon")

from unmask.engine.linear import quantise
from unmask.kernels.even import even
from unmask.kernels.groups import narrowed


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to("cuda", torch.float16)


# Tokens of one tile and of several, outputs and inputs that end inside one, sums in parts of unequal length.
SHAPES = [(3, 130, 72, 1), (70, 80, 200, 3), (130, 90, 64, 1), (20, 100, 1000, 2)]


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "outputs", "inputs", "splits"), SHAPES)
@pytest.mark.parametrize(("rest", "warps", "early"), [(0, 8, 4), (16, 8, 0), (16, 4, 1)])
def test_products(tokens, outputs, inputs, splits, rest, warps, early):
    if warps == 4 and tokens > 64:
        warps = 8
    x, weight = draw(tokens, inputs), draw(outputs, inputs, seed=1) / inputs**0.5
    bias = draw(outputs, seed=2)
    sizes = {"block_n": 64, "rest": rest, "warps": warps, "early": early}
    poison("cuda")
    out = even(x, weight, bias, **sizes, splits=splits)
    expected = exact(x, weight, bias)
    assert out.dtype == x.dtype and difference(out, expected) < 2e-3
    assert torch.equal(out, even(x, weight, bias, **sizes, splits=splits))
    parts = even(x, weight, **sizes, splits=splits, merge=False).double()
    assert difference(parts.view(-1, tokens, outputs).sum(0) + bias.double(), expected) < 2e-3
    assert difference(even(x, weight, bias, **sizes, gated=True), exact(x, weight, bias, gated=True)) < 2e-3


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("tokens", "outputs", "inputs", "splits"), [(1, 40, 256, 1), (20, 130, 640, 3), (33, 64, 128, 2), (70, 64, 1280, 1)]
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_products_of_float8(tokens, outputs, inputs, splits, with_bias):
    x = narrowed(draw(tokens, inputs))
    weight, scale = quantise(draw(outputs, inputs, seed=1) / inputs**0.5)
    bias = draw(outputs, seed=2) if with_bias else None
    values = (x.values.double().unflatten(1, (-1, 128)) * x.scales.double().unsqueeze(-1)).flatten(1)
    wide = weight.double() * scale.double().unsqueeze(1)
    expected = exact(values, wide, bias)
    poison("cuda")
    for rest, early in ((0, 3), (16, 0)):
        sizes = {"block_n": 64, "rest": rest, "stages": 3, "early": early}
        out = even(x, weight, bias, scale, torch.float16, **sizes, splits=splits)
        # Hopper's matrix units add float8 products with 14 bits.
        assert out.dtype == torch.float16 and difference(out, expected) < 2e-3
        assert torch.equal(out, even(x, weight, bias, scale, torch.float16, **sizes, splits=splits))
        parts = even(x, weight, None, scale, torch.float16, **sizes, splits=splits, merge=False).double()
        total = parts.view(-1, tokens, outputs).sum(0) + (0 if bias is None else bias.double())
        assert difference(total, expected) < 2e-3
        gated = even(x, weight, bias, scale, torch.float16, **sizes, gated=True)
        assert difference(gated, exact(values, wide, bias, gated=True)) < 3e-3


@pytest.mark.gpu
def test_a_product_sees_what_the_kernel_ahead_of_it_writes():
    """In a captured graph, where it begins before that kernel has ended: many times over, with other tokens each."""
    from unmask.kernels.norm import add_norm

    x, weight = draw(32, 1024), draw(4096, 1024, seed=1) / 32
    ones, outs = torch.ones_like(x[0]), []
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total = x
        for _ in range(20):
            total, normed = add_norm(total, total, ones, 1e-6)
            outs.append((normed, even(normed, weight, block_n=128, warps=4, stages=8, early=8)))
    for seed in range(5):
        x.copy_(draw(32, 1024, seed=seed) * 1e-3)
        graph.replay()
        assert all(difference(out, exact(normed, weight, None)) < 2e-3 for normed, out in outs)
