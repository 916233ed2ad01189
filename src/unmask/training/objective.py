"""The networks of a run as one module whose forward is the recipe's loss: what DDP, FSDP and compilers wrap."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import register_pytree_node

from unmask.attention import Attend
from unmask.layout import Layout
from unmask.models.network import Network
from unmask.training.adapters import Adapters
from unmask.training.attending import Attending
from unmask.training.recipes.base import Recipe, Supervised, Terms
from unmask.training.states import States
from unmask.training.wrap import Layered, piece, wrap_layers

# FSDP looks for the tensors in what a module returns.
register_pytree_node(Terms, lambda terms: ([terms.sums, terms.right], None), lambda parts, _: Terms(*parts))


class Objective(nn.Module):
    """The network with its loss; the `Models` that the recipe's loss calls.

    Args:
        network: the one that is trained.
        recipe: gives the loss.
        teacher: a frozen network for recipes that want one; None where adapters are trained (see `adapt`).
        attention: "dense" or "flex".
        compiled: compiles each layer; its shapes must stay the same.
        recomputed: layers run again in the backward pass, instead of keeping what they computed.
        stream: data type between layers; None: that of the embedding.
    """

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        teacher: Network | None = None,
        attention: str = "dense",
        compiled: bool = False,
        recomputed: bool = False,
        stream: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.frozen = teacher.requires_grad_(False).eval() if teacher is not None else None
        self.modules_of_recipe = nn.ModuleDict(recipe.modules(network))
        self.attending = Attending(attention)
        self.compiled, self.stream = compiled, stream
        self.adapters: Adapters | None = None
        self.mask_id, self.mask_row = -1, None
        self.layered: list[Layered] = wrap_layers(network, compiled=compiled, recomputed=recomputed)
        if self.frozen is not None:
            wrap_layers(self.frozen, compiled=compiled, recomputed=False)

    def adapt(self, adapters: Adapters) -> None:
        """Says that the network is trained by these adapters alone; without them it is the teacher."""
        self.adapters = adapters
        for layer in self.layered:
            layer.random = adapters.options.dropout > 0

    def train_mask_row(self, mask_id: int) -> None:
        """Trains the embedding of a token apart, where the embedding itself is frozen."""
        row = self.network.embedding.detach()[mask_id]
        self.mask_id, self.mask_row = mask_id, nn.Parameter(row.float().clone())
        self.register_buffer("first_mask_row", row.clone(), persistent=False)

    @torch.no_grad()
    def place_mask_row(self) -> None:
        """Writes the mask's row into the embedding, from where decoding and a tied head read it. To be called when the
        row has changed."""
        if self.mask_row is None:
            return
        row, table = self.mask_row, self.network.embedding
        if isinstance(row, DTensor):
            assert isinstance(table, DTensor)
            whole, local = row.full_tensor(), table.to_local()
            at = self.mask_id - piece(len(table), table.device_mesh.get_local_rank(), table.device_mesh.size()).start
            if 0 <= at < len(local):
                local[at] = whole.to(local.dtype)
        else:
            table[self.mask_id] = row.to(table.dtype)

    def train(self, mode: bool = True) -> Objective:
        """As of any module; a frozen network stays as it is."""
        super().train(mode)
        if self.frozen is not None:
            self.frozen.eval()
        return self

    def place(self, batch: Supervised, device: torch.device) -> Supervised:
        """The batch on the device."""
        return self.attending.place(batch, device)

    def attend(self, layout: Layout) -> Attend:
        """The chosen attention for this layout, which is [N, W] or [W]."""
        return self.attending.attend(layout, self.compiled)

    def student(self, tokens: Tensor, layout: Layout, index: Tensor | None = None) -> States:
        """See `Models`."""
        return self._states(self.network, self.mask_row, tokens, layout, index)

    @torch.no_grad()
    def teacher(self, tokens: Tensor, layout: Layout, index: Tensor | None = None) -> States:
        """See `Models`."""
        if self.frozen is not None:
            return self._states(self.frozen, None, tokens, layout, index).detach()
        assert self.adapters is not None, "the recipe does not say that it wants a teacher"
        row = None if self.mask_row is None else self.get_buffer("first_mask_row")
        with self.adapters.off():
            return self._states(self.network, row, tokens, layout, index).detach()

    def module(self, name: str) -> nn.Module:
        """See `Models`."""
        return self.modules_of_recipe[name]

    def _states(
        self, network: Network, row: Tensor | None, tokens: Tensor, layout: Layout, index: Tensor | None
    ) -> States:
        x = network.embed(tokens)
        if row is not None:
            x = torch.where((tokens == self.mask_id).unsqueeze(-1), row.to(x.dtype), x)
        if self.stream is not None:
            x = x.to(self.stream)
        hidden = network.hidden(tokens, layout.positions.expand_as(tokens), self.attend(layout), x)
        hidden_SC = hidden.flatten(0, 1)
        chosen = hidden_SC if index is None else hidden_SC.index_select(0, index)
        return States(chosen, network.head, network.config.vocab_size, self.compiled)

    def forward(self, batch: Supervised) -> Terms:
        """The recipe's terms of one forward."""
        return self.recipe.loss(self, batch)
