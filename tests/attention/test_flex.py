"""FlexAttention and the dense mask are the same rule."""

import pytest
import torch

from unmask.attention.dense import DenseAttention
from unmask.attention.flex import FlexAttention
from unmask.layout import Layout, doubled


def random_layout(rows, length, seed):
    draw = torch.Generator().manual_seed(seed)

    def integers(high):
        return torch.randint(0, high, (rows, length), generator=draw)

    index = torch.arange(length).expand(rows, -1)
    return Layout(integers(5), integers(3), integers(2) - 1, index)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=["equal", "grouped"])
@pytest.mark.parametrize("layout", [random_layout(2, 96, 0), random_layout(2, 128, 1), doubled(64, 16).batch(2)])
def test_flex_equals_dense(layout, heads):
    shape = (2, layout.shape[1], 16)
    draw = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(shape[0], n, *shape[1:], generator=draw) for n in (heads[0], heads[1], heads[1]))
    # A query that sees nothing (possible in random integers only) is defined by neither.
    rows = DenseAttention(layout).mask.any(-1)
    dense, flex = DenseAttention(layout)(0, q, k, v), FlexAttention(layout)(0, q, k, v)
    keep = rows.unsqueeze(1).unsqueeze(-1)
    torch.testing.assert_close(flex.where(keep, 0.0), dense.where(keep, 0.0), atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
def test_flex_equals_dense_on_a_gpu_with_gradients():
    layout = doubled(192, 32).batch(2).to("cuda")
    values = [torch.randn(2, 5, 384, 64, device="cuda", requires_grad=True) for _ in range(3)]
    results = []
    for attention in (DenseAttention(layout), FlexAttention(layout)):
        out = attention(0, *values)
        results.append((out, *torch.autograd.grad(out.square().sum(), values)))
    for dense, flex in zip(*results):
        assert (dense - flex).abs().max() < 1e-2 * dense.abs().max()
