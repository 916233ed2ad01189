"""Products of few tokens against float64, on every tile that tuning may choose."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from products import difference, exact, poison

pytest.importorskip("triton")

from unmask.engine.linear import FastLinear, GatedLinear, quantise
from unmask.engine.tuning import Card, ways
from unmask.kernels import gemm

# The interpreter has no products of bfloat16; on a GPU float32 is left to the library.
DTYPES = {"cpu": (torch.float32, torch.float16), "cuda": (torch.float16, torch.bfloat16)}
LIMIT = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
H100 = Card(132, 232448, (9, 0))


def case(tokens, outputs, inputs, device, dtype, bias=True):
    generator = torch.Generator().manual_seed(tokens + outputs + inputs)
    x, w, b = (torch.randn(s, generator=generator) for s in ((tokens, inputs), (outputs, inputs), (outputs,)))
    x, w, b = (t.to(device, dtype) for t in (x, w / inputs**0.5, b))
    return x, w, b if bias else None


# Tokens around the sizes of a tile, outputs and inputs that end inside one, sums in parts of unequal length.
SHAPES = [
    (1, 40, 96, {}),
    (3, 40, 96, {"splits": 2, "block_k": 32}),
    (17, 33, 200, {"splits": 3, "block_n": 16, "block_k": 32}),
    (40, 130, 128, {"block_n": 128, "block_k": 64, "warps": 8}),
    (130, 20, 64, {"block_k": 64}),
]


@pytest.mark.parametrize(("tokens", "outputs", "inputs", "options"), SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_thin_products(tokens, outputs, inputs, options, bias, device):
    for dtype in DTYPES[device]:
        x, weight, b = case(tokens, outputs, inputs, device, dtype, bias)
        poison(device)
        out = gemm.thin(x, weight, b, **options)
        assert out.dtype == dtype and difference(out, exact(x, weight, b)) < LIMIT[dtype]
        assert torch.equal(out, gemm.thin(x, weight, b, **options))


@pytest.mark.parametrize(("tokens", "inner", "inputs"), [(1, 24, 64), (20, 24, 70)])
def test_gated_products(tokens, inner, inputs, device):
    for dtype in DTYPES[device]:
        x, weight, bias = case(tokens, 2 * inner, inputs, device, dtype)
        poison(device)
        found = [gemm.thin(x, weight, bias, gated=True, block_n=16, block_k=32)]
        if tokens == 1:
            found.append(gemm.vector(x, weight, bias, gated=True, block_n=4, block_k=32))
        for out in found:
            assert difference(out, exact(x, weight, bias, gated=True)) < LIMIT[dtype]


@pytest.mark.parametrize(("outputs", "inputs"), [(40, 96), (33, 70)])
def test_products_of_one_token(outputs, inputs, device):
    for dtype in DTYPES[device]:
        x, weight, bias = case(1, outputs, inputs, device, dtype)
        poison(device)
        out = gemm.vector(x, weight, bias, block_n=8, block_k=32)
        assert difference(out, exact(x, weight, bias)) < LIMIT[dtype]


def test_float8_weights_are_widened_and_scaled_exactly(device):
    for dtype in DTYPES[device]:
        x, weight, bias = case(1, 40, 96, device, dtype)
        narrow, scale = quantise(weight)
        reference = exact(x, narrow.double() * scale[:, None].double(), bias)
        for splits in (1, 3):
            out = gemm.thin(x, narrow, bias, scale, block_k=32, splits=splits)
            assert difference(out, reference) < LIMIT[dtype]
        assert difference(gemm.vector(x, narrow, bias, scale, block_k=32), reference) < LIMIT[dtype]
        gated = exact(x, narrow.double() * scale[:, None].double(), bias, gated=True)
        assert difference(gemm.thin(x, narrow, bias, scale, gated=True, block_n=16), gated) < LIMIT[dtype]


def test_float8_rows(device):
    from unmask.kernels.float8 import quantise_rows

    x = torch.randn(5, 4100, generator=torch.Generator().manual_seed(0)).to(device)
    x[2] = 0
    narrow, scale = quantise_rows(x)
    expected, expected_scale = quantise(x)
    torch.testing.assert_close(scale, expected_scale)
    assert not narrow[2].float().any() and scale[2] == 1
    # The interpreter loses the carry where rounding to float8 reaches the next power of two.
    assert difference(narrow.float(), expected.float()) < (0.1 if device == "cpu" else 1e-3)
    assert float(narrow.float().abs().max()) == 448


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [FastLinear, GatedLinear])
@pytest.mark.parametrize("eight", [False, True])
@pytest.mark.parametrize("tokens", [1, 8, 32, 33, 128, 300])
def test_every_way_that_may_be_chosen_gives_the_product(tokens, eight, kind):
    # 3584 inputs as in Qwen2.5-7B and 1184, of which no tile of the table is a divisor.
    for dtype, inputs in product((torch.bfloat16, torch.float16), (3584, 1184)):
        x, weight, bias = case(tokens, 1056, inputs, "cuda", dtype)
        narrow, scale = quantise(weight) if eight else (weight, None)
        linear = kind(narrow, bias, scale)
        reference = exact(x, narrow.double() * (scale[:, None].double() if eight else 1), bias, kind is GatedLinear)
        tried = ways(replace(linear, adds=kind is FastLinear), tokens, dtype, H100)
        # Gated programs of 128 tokens have two sums each, which leaves two thin tiles beside the library.
        assert len(tried) >= (3 if kind is GatedLinear and tokens == 128 else 4) or tokens > 128
        for way in tried:
            poison("cuda")
            out = linear.run(way, x)
            limit = 0.06 if way.kind in ("scaled", "narrow") else 2 * LIMIT[dtype]
            assert difference(out, reference) < limit, str(way)
            if kind is FastLinear and (parts := replace(linear, adds=True).run(way, x)).dim() == 3:
                assert difference(parts.double().sum(0) + bias.double(), reference) < limit, str(way)
