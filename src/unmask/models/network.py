"""What every network offers to the loops, whatever is inside: token ids and positions in, logits out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.attention import Attend
from unmask.models.config import ModelConfig


class Network(nn.Module, ABC):
    """Base of `Transformer` and `DiT`.

    Class attribute: embedding_name, the input embedding [V, C] in the state dict. Shape legend: see `layout`.
    """

    embedding_name: ClassVar[str]
    config: ModelConfig

    @property
    @abstractmethod
    def embedding(self) -> Tensor:
        """The input embedding [V, C]."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' data type."""
        return self.embedding.dtype

    @abstractmethod
    def init_weights(self, std: float = 0.02, generator: torch.Generator | None = None) -> None:
        """Weights to train from nothing."""

    def embed(self, tokens_BW: Tensor) -> Tensor:
        """Input embeddings [B, W, C] of token ids [B, W]."""
        return F.embedding(tokens_BW, self.embedding)

    def mix(self, probs_BRV: Tensor) -> Tensor:
        """Expected input embeddings [B, R, C] under distributions over the vocabulary [B, R, V]."""
        return probs_BRV.to(self.dtype) @ self.embedding

    @abstractmethod
    def hidden(
        self, tokens_BW: Tensor, positions_BW: Tensor, attend: Attend, embeddings_BWC: Tensor | None = None
    ) -> Tensor:
        """Hidden states [B, W, C] after the final norm.

        Args:
            tokens_BW: token ids, int64.
            positions_BW: RoPE positions, int64.
            attend: the attention; sees every layer's rotated queries and keys.
            embeddings_BWC: replaces the embedding of the tokens where given (mixed embeddings).
        """

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., C]."""

    def forward(
        self,
        tokens_BW: Tensor,
        positions_BW: Tensor,
        attend: Attend,
        rows_BR: Tensor | None = None,
        embeddings_BWC: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, R, V] of the window columns `rows_BR` (int64, >= 0), or [B, W, V]. See `hidden`."""
        hidden = self.hidden(tokens_BW, positions_BW, attend, embeddings_BWC)
        if rows_BR is not None:
            hidden = hidden.gather(1, rows_BR.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        return self.head(hidden)

    def count_parameters(self) -> int:
        """Number of weights; a tied head counts once."""
        return sum(p.numel() for p in self.parameters())

    def constants(self) -> dict[str, Tensor]:
        """Tensors that follow from the config, yet stand in the published files: written, never read."""
        return {}

    @abstractmethod
    def first_nonfinite(self, tokens_BW: Tensor, positions_BW: Tensor, attend: Attend) -> tuple[int, int, int] | None:
        """Where numbers first go wrong: (layer, row, column) of the first layer input with a NaN or infinity.

        Layer `num_layers` is the final norm's input. None if all are finite. `attend` works as in a forward.
        """
