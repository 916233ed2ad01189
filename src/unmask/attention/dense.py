"""The rule of `layout` as a dense boolean mask for PyTorch's scaled dot product attention: reference and CPU path."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from unmask.layout import Layout, visible


def sdpa(q_BHQD: Tensor, k_BGKD: Tensor, v_BGKD: Tensor, mask_BQK: Tensor | None) -> Tensor:
    """Attention over all keys where the boolean mask is True (None: everywhere). Returns [B, H, Q, D]."""
    mask = None if mask_BQK is None else mask_BQK.unsqueeze(-3)
    grouped = q_BHQD.shape[1] != k_BGKD.shape[1]
    return F.scaled_dot_product_attention(q_BHQD, k_BGKD, v_BGKD, attn_mask=mask, enable_gqa=grouped)


class DenseAttention:
    """Attention among the tokens of one forward, nothing cached.

    Args:
        layout: of the tokens, [W] (one pattern for all rows) or [B, W].
    """

    def __init__(self, layout: Layout) -> None:
        mask = visible(layout, layout)
        self.mask = mask if mask.dim() == 3 else mask.unsqueeze(0)

    def __call__(self, layer: int, q_BHWD: Tensor, k_BGWD: Tensor, v_BGWD: Tensor) -> Tensor:
        return sdpa(q_BHWD, k_BGWD, v_BGWD, self.mask)
