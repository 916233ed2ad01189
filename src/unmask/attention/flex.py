"""The rule of `layout` as a FlexAttention mask: the training path on a GPU, where most of a packed row is skipped.

The same integers give the same attention as `dense`, which stays the reference and the path for CPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from unmask.layout import Layout


def mask_mod(layout: Layout) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The rule as a function of (row, head, query index, key index). `layout` is [B, W], or [W] for all rows."""
    order, lane, segment = layout.order, layout.lane, layout.segment
    if order.dim() == 1:

        def visible_in_all(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            in_lane = (lane[k] == 0) | (lane[k] == lane[q])
            return (segment[k] == segment[q]) & (order[k] <= order[q]) & in_lane

        return visible_in_all

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        lane_k = lane[b, k]
        in_lane = (lane_k == 0) | (lane_k == lane[b, q])
        return (segment[b, k] == segment[b, q]) & (order[b, k] <= order[b, q]) & in_lane

    return visible


class _Kernels:
    """Compiled once for the process; on a CPU the plain functions serve (slow: for tests)."""

    def __init__(self) -> None:
        self.compiled: dict[str, Any] = {}

    def get(self, name: str, function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
        if device.type == "cpu":
            return function
        if name not in self.compiled:
            self.compiled[name] = torch.compile(function, dynamic=False)
        return self.compiled[name]


_KERNELS = _Kernels()


class FlexAttention:
    """Attention among the tokens of one forward, nothing cached.

    Args:
        layout: of the tokens, [B, W], or [W] for the same in all rows; on a GPU W should be a multiple of 128.
        inside_compile: the caller compiles the whole network, so the kernel must not be compiled on its own.
    """

    def __init__(self, layout: Layout, inside_compile: bool = False) -> None:
        length, rows = layout.shape[-1], layout.shape[0] if layout.order.dim() == 2 else None
        device = layout.order.device
        build = _KERNELS.get("mask", create_block_mask, device)
        self.block_mask: BlockMask = build(mask_mod(layout), rows, None, length, length, device=device)
        self.kernel = flex_attention if inside_compile else _KERNELS.get("attention", flex_attention, device)

    def __call__(self, layer: int, q_BHWD: Tensor, k_BGWD: Tensor, v_BGWD: Tensor) -> Tensor:
        grouped = q_BHWD.shape[1] != k_BGWD.shape[1]
        return self.kernel(q_BHWD, k_BGWD, v_BGWD, block_mask=self.block_mask, enable_gqa=grouped)
