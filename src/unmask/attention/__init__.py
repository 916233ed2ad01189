"""Attention behind one small call, so that the model knows neither masks nor caches."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Attend(Protocol):
    """What a layer calls for its attention: rotated queries and keys in, mixed values out."""

    def __call__(self, layer: int, q_BHWD: Tensor, k_BGWD: Tensor, v_BGWD: Tensor) -> Tensor:
        """Returns [B, H, W, D]. `layer` says whose cache is meant; G divides H (grouped heads)."""
        ...
