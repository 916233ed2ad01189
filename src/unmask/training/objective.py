"""The one loss of all recipes: cross-entropy on the supervised rows alone, weighted, summed, in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.attention import Attend
from unmask.attention.dense import DenseAttention
from unmask.attention.flex import FlexAttention
from unmask.errors import UnmaskError
from unmask.layout import Layout
from unmask.models.network import Network
from unmask.training.recipes.base import IGNORE, View


@dataclass(frozen=True, slots=True)
class Supervised:
    """A view made ready for the device: S supervised rows out of N * W.

    Args:
        tokens: [N, W].
        layout: [N, W] or [W].
        index: [S], where the supervised rows are in the flattened [N * W].
        targets, weights: [S].
        normaliser: see `View`.
    """

    tokens: Tensor
    layout: Layout
    index: Tensor
    targets: Tensor
    weights: Tensor
    normaliser: float

    @classmethod
    def of(cls, view: View) -> Supervised:
        index = (view.targets.flatten() != IGNORE).nonzero().squeeze(1)
        targets, weights = view.targets.flatten()[index], view.weights.flatten()[index]
        return cls(view.tokens, view.layout, index, targets, weights, view.normaliser)

    def to(self, device: torch.device) -> Supervised:
        """On the device; from pinned memory without waiting."""

        def move(x: Tensor) -> Tensor:
            if device.type == "cuda" and x.device.type == "cpu":
                return x.contiguous().pin_memory().to(device, non_blocking=True)
            return x.to(device)

        layout = self.layout
        moved = Layout(*(move(x) for x in (layout.order, layout.lane, layout.segment, layout.positions)))
        return replace(
            self,
            tokens=move(self.tokens),
            layout=moved,
            index=move(self.index),
            targets=move(self.targets),
            weights=move(self.weights),
        )


class Objective(nn.Module):
    """The network with its loss. `compiled` compiles the network below the head; its shapes must stay the same."""

    def __init__(self, network: Network, attention: str = "dense", compiled: bool = False) -> None:
        super().__init__()
        self.network = network
        self.attention = attention
        self.compiled = compiled
        hidden: Callable[..., Any] = network.hidden
        self._hidden = torch.compile(hidden, dynamic=False) if compiled else hidden

    def attend(self, layout: Layout) -> Attend:
        """The chosen attention for this layout, which is [N, W]."""
        if self.attention == "dense":
            return DenseAttention(layout)
        if layout.order.device.type == "cpu":
            raise UnmaskError("attention 'flex' needs a GPU; use 'dense' on a CPU")
        return FlexAttention(layout, inside_compile=self.compiled)

    def forward(self, batch: Supervised) -> tuple[Tensor, Tensor]:
        """(weighted sum of the cross-entropies, for each of the S rows whether its best token is the target)."""
        layout = batch.layout
        if layout.order.dim() == 1 and self.attention == "flex":
            layout = layout.batch(len(batch.tokens))
        positions = layout.positions.expand_as(batch.tokens)
        hidden_NWC = self._hidden(batch.tokens, positions, self.attend(layout))
        logits_SV = self.network.head(hidden_NWC.flatten(0, 1)[batch.index]).float()
        losses = F.cross_entropy(logits_SV, batch.targets, reduction="none")
        return (losses * batch.weights).sum(), logits_SV.detach().argmax(-1) == batch.targets
