"""The networks of a run as one module whose forward is the recipe's loss: what DDP, FSDP and compilers wrap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unmask.attention import Attend
from unmask.attention.dense import DenseAttention
from unmask.attention.flex import FlexAttention
from unmask.errors import UnmaskError
from unmask.layout import Layout
from unmask.models.network import Network
from unmask.training.recipes.base import Recipe, Supervised, Terms
from unmask.training.states import States


class Objective(nn.Module):
    """The network with its loss; the `Models` that the recipe's loss calls.

    Args:
        network: the one that is trained.
        recipe: gives the loss.
        teacher: a frozen network for recipes that want one.
        attention: "dense" or "flex".
        compiled: compiles the network below the head; its shapes must stay the same.
    """

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        teacher: Network | None = None,
        attention: str = "dense",
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.frozen = teacher.requires_grad_(False).eval() if teacher is not None else None
        self.modules_of_recipe = nn.ModuleDict(recipe.modules(network))
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

    def student(self, tokens: Tensor, layout: Layout, index: Tensor | None = None) -> States:
        """See `Models`."""
        return self._states(self.network, self._hidden, tokens, layout, index)

    def teacher(self, tokens: Tensor, layout: Layout, index: Tensor | None = None) -> States:
        """See `Models`."""
        assert self.frozen is not None, "the recipe does not say that it wants a teacher"
        with torch.no_grad():
            return self._states(self.frozen, self.frozen.hidden, tokens, layout, index).detach()

    def module(self, name: str) -> nn.Module:
        """See `Models`."""
        return self.modules_of_recipe[name]

    def _states(
        self, network: Network, hidden: Callable[..., Tensor], tokens: Tensor, layout: Layout, index: Tensor | None
    ) -> States:
        if layout.order.dim() == 1 and self.attention == "flex":
            layout = layout.batch(len(tokens))
        hidden_SC = hidden(tokens, layout.positions.expand_as(tokens), self.attend(layout)).flatten(0, 1)
        return States(hidden_SC if index is None else hidden_SC[index], network.head, network.config.vocab_size)

    def forward(self, batch: Supervised) -> Terms:
        """The recipe's terms of one forward."""
        return self.recipe.loss(self, batch)
