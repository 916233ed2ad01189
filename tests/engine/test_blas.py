"""Products by the kernels that cuBLASLt proposes, against float64; what is made for a call is given back."""

from types import SimpleNamespace

import pytest
import torch

from products import difference, exact, poison
from unmask.engine import blas
from unmask.engine.linear import FastLinear, GatedLinear, Way, quantise
from unmask.engine.tuning import card, ways

LIMIT = {torch.float16: 2e-3, torch.bfloat16: 1e-2}


def test_nothing_is_proposed_off_the_gpu():
    assert blas.proposals(torch.zeros(64, 64, dtype=torch.bfloat16), 8, True) == 0


@pytest.mark.parametrize("fails", ["MatmulDescSetAttribute", "MatrixLayoutCreate", None])
def test_what_is_made_for_a_call_is_given_back_and_a_failure_is_told(fails, monkeypatch):
    called: list[str] = []

    def function(name: str):
        def call(*arguments: object) -> int:
            called.append(name.removeprefix("cublasLt"))
            return 7 if name == f"cublasLt{fails}" else 0

        return call

    class Library(SimpleNamespace):
        def __getattr__(self, name: str):
            return function(name)

    monkeypatch.setattr(blas, "_library", Library)
    try:
        with blas._described(torch.bfloat16, 64, 32, 4, 16):
            assert fails is None
    except RuntimeError as error:
        assert str(error) == f"cublasLt{fails} failed with status 7"
    made = [name.removesuffix("Create") for name in called if name.endswith("Create") and name != fails]
    if fails == "MatrixLayoutCreate":
        made = made[:1]
    assert sorted(name.removesuffix("Destroy") for name in called if name.endswith("Destroy")) == sorted(made)
    assert len(called) > len(made) > 0


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(LIMIT))
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("tokens", "outputs", "inputs"), [(1, 96, 64), (17, 512, 1000), (130, 1024, 4096)])
@torch.inference_mode()
def test_every_proposal_is_the_product(tokens, outputs, inputs, bias, dtype):
    generator = torch.Generator("cuda").manual_seed(tokens)
    x, w, b = (
        torch.randn(*size, generator=generator, device="cuda").to(dtype)
        for size in ((tokens, inputs), (outputs, inputs), (outputs,))
    )
    linear = FastLinear(w / inputs**0.5, b if bias else None)
    count = blas.proposals(linear.weight, tokens, bias)
    assert count > 0
    expected = exact(x, linear.weight, linear.bias)
    for number in range(count):
        poison("cuda")
        way = Way("proposed", number=number)
        found = linear.run(way, x)
        assert found.shape == expected.shape and found.dtype == dtype
        assert difference(found, expected) < LIMIT[dtype], str(way)
        assert torch.equal(found, linear.run(way, x))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = linear.run(way, x)
        captured.fill_(torch.nan)
        graph.replay()
        assert torch.equal(captured, found)


@pytest.mark.gpu
def test_proposals_are_tried_for_weights_of_16_bits():
    weight = torch.randn(512, 256, device="cuda")
    here, wide = card(weight.device), weight.bfloat16()
    for linear in (FastLinear(wide), GatedLinear(wide), FastLinear(wide, wide[:, 0].contiguous())):
        for tokens in (1, 32, 4096):
            kinds = [way.kind for way in ways(linear, tokens, torch.bfloat16, here)]
            assert kinds[0] == "library" and "proposed" in kinds
    assert "proposed" not in [way.kind for way in ways(FastLinear(weight), 32, torch.float32, here)]
    narrow, scale = quantise(weight)
    linear = FastLinear(narrow, None, scale)
    assert "proposed" not in [way.kind for way in ways(linear, 32, torch.bfloat16, here)]
