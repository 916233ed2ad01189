"""Float8 tokens in groups."""

import pytest
import torch

pytest.importorskip("triton")

from unmask.kernels.groups import Narrow, narrowed
from unmask.kernels.norm import add_norm, silu_mul


def draw(*shape, device, dtype=torch.float16, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def widened(x: Narrow):
    return x.values.double().unflatten(1, (-1, 128)) * x.scales.double().unsqueeze(-1)


def test_each_group_has_a_scale_of_its_own(device):
    x = draw(5, 640, device=device)
    x[1, 128:256] = 0
    x[2, 3] = 1000  # an outlier, which costs its group alone
    narrow = narrowed(x)
    groups = x.double().unflatten(1, (-1, 128))
    largest = groups.abs().amax(-1)
    torch.testing.assert_close(narrow.scales.double(), torch.where(largest > 0, largest / 448, 1.0), rtol=1e-6, atol=0)
    assert not narrow.values[1, 128:256].float().any() and narrow.scales[1, 1] == 1
    # Three bits behind the point; the interpreter loses the carry where rounding reaches the next power of two.
    error = (widened(narrow) - groups).abs() / groups.abs().clamp_min(1e-2 * largest.clamp_min(1e-6).unsqueeze(-1))
    assert float(error.max()) < (0.6 if device == "cpu" else 0.07)


def test_norm_and_activation_round_what_they_would_return(device):
    x, update = (draw(3, 640, device=device, seed=s) for s in (0, 1))
    weight = draw(640, device=device, seed=2)
    total, normed = add_norm(x, update, weight, 1e-6)
    same, narrow = add_norm(x, update, weight, 1e-6, narrow=True)
    assert torch.equal(total, same)
    for whole, rounded in (
        (normed, narrow),
        (silu_mul(x.contiguous()[:, :512].contiguous()), silu_mul(x[:, :512].contiguous(), narrow=True)),
    ):
        expected = narrowed(whole)
        assert torch.equal(rounded.scales, expected.scales)
        assert torch.equal(rounded.values.view(torch.uint8), expected.values.view(torch.uint8))
