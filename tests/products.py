"""What tests of products share: the exact result in float64, its distance, memory that is not what it was."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def difference(a: Tensor, b: Tensor) -> float:
    """Relative to b."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def exact(x: Tensor, weight: Tensor, bias: Tensor | None, gated: bool = False) -> Tensor:
    y = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    if not gated:
        return y
    gate, up = y.chunk(2, -1)
    return F.silu(gate) * up


def poison(device: str) -> None:
    """Memory that the next results are likely to be put into."""
    torch.full((1 << 16,), torch.nan, device=device)
