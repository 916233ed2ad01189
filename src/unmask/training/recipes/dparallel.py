"""dParallel: a masked model learns to be sure of its own answers early, so that more tokens fit into a forward.

Paper: "dParallel: Learnable Parallel Decoding for dLLMs" (arXiv 2509.26488; official code czg1225/dParallel). The data
are the model's own greedy answers. One block of the answer is in work: what stands before it is clean, half of it is
masked, all behind it is masked, as in semi-autoregressive decoding. A second view masks the other half. The loss adds
to the cross-entropy of the masked tokens the entropy of those already right, at a temperature below 1 (certainty
forcing). LLaDA was trained in blocks of 32; Dream, whose answers are padded to 256, with `block_size` 256: the whole
answer is the one block.

What differs from the official code, on purpose:
- the number of the active block is drawn among those there are, a ragged last one included (official: it may fall
  behind the last block, then the sample has no target);
- every sample of a batch has a block and noise of its own, and packed samples do not see each other (official: right
  for one row at a time);
- the weight of the entropy is the paper's 2 for both families (official code for Dream: 1).

    python -m unmask.training CONFIG.yaml --set recipe.name=dparallel
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unmask.errors import UnmaskError
from unmask.layout import Layout, block_index
from unmask.training.noise import Noise
from unmask.training.recipes.base import (
    IGNORE,
    Batch,
    Recipe,
    Supervised,
    Terms,
    View,
    previous_row_targets,
    same_row_targets,
    token_losses,
)
from unmask.training.states import Models, score_rows

_BLOCK, _TOKEN = 1, 2
_DECODED = 32
"""Both published models are decoded in blocks of this size, whatever they were trained with."""


@dataclass(frozen=True, slots=True)
class DParallel(Recipe):
    """The recipe's options."""

    anchored: ClassVar[bool] = True

    mask_id: int
    """Token id of the mask."""
    block_size: int = 32
    """Tokens of a block; at least the answer's length for one block in all (the variant for Dream)."""
    shift: bool = False
    """Logits of row i-1 predict token i (Dream); False: of row i (LLaDA)."""
    mask_ratio: float = 0.5
    eps: float = 1e-3
    """Tokens of the active block are masked with probability (1 - eps) mask_ratio + eps."""
    certainty_weight: float = 2.0
    """Weight of the entropy (beta)."""
    temperature: float = 0.5
    """The entropy is that of softmax(logits / temperature)."""

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise UnmaskError(f"block_size must be at least 1, got {self.block_size}")
        if not 0 <= self.mask_ratio <= 1:
            raise UnmaskError(f"mask_ratio must be between 0 and 1, got {self.mask_ratio}")
        if self.temperature <= 0:
            raise UnmaskError(f"temperature must be above 0, got {self.temperature}")

    @property
    def block(self) -> int:
        return self.block_size

    @property
    def decoder(self) -> dict[str, Any]:
        return {"method": "dparallel", "block_size": min(self.block_size, _DECODED)}

    @property
    def mask_chance(self) -> float:
        """With which the first view masks a token of the active block."""
        return (1 - self.eps) * self.mask_ratio + self.eps

    def views(self, batch: Batch, noise: Noise) -> View:
        count = -(-batch.answer // self.block_size)
        active = (noise.uniform(_BLOCK, batch.sample).double() * count).long()  # float32 could round up to count
        masked = noise.uniform(_TOKEN, batch.sample, batch.positions) < self.mask_chance
        return self.views_of(batch, active, masked)

    def views_of(self, batch: Batch, active: Tensor, masked: Tensor) -> View:
        """The two views of given noise.

        Args:
            active: int64 [B, L], number of the sample's block in work, the answer's first block is 0.
            masked: bool [B, L], what the first view masks in that block; the second one masks the rest of it.
        """
        block = block_index(batch.positions, self.block_size, batch.prompt) - 1
        inside = (block == active) & (batch.labels != IGNORE)
        behind = block > active
        halves = [inside & masked, inside & ~masked]
        find = previous_row_targets if self.shift else same_row_targets
        targets = torch.cat([find(batch, half) for half in halves])
        order = torch.zeros_like(batch.segment)
        layout = Layout(order, order, batch.segment, batch.positions).map(lambda x: x.repeat(2, 1))
        samples = float(len(_sample(batch.segment)[batch.labels != IGNORE].unique()))
        return View(
            tokens=torch.cat([torch.where(half | behind, self.mask_id, batch.tokens) for half in halves]),
            layout=layout,
            targets=targets,
            weights=_share(layout.segment, targets != IGNORE),
            normalisers={"consistency": samples, "certainty": samples},
        )

    def loss(self, models: Models, view: Supervised) -> Terms:
        """Both terms are means over a view's tokens of one sample, summed over views and samples. Which tokens are
        right depends on the network, so a mean over the batch would depend on how a step is cut."""
        states = models.student(view.tokens, view.layout, view.index)
        rows = score_rows(self._scores, [states], view.targets)
        sample = _sample(view.layout.segment.expand_as(view.tokens)).flatten()[view.index]
        right = rows["right"].float()
        found = right.new_zeros(view.tokens.numel()).index_add(0, sample, right)[sample]
        sums = {
            "consistency": (rows["loss"] * view.weights).sum(),
            "certainty": self.certainty_weight * (rows["entropy"] * right / found.clamp_min(1)).sum(),
        }
        return Terms(sums, rows["right"])

    def _scores(self, logits_SV: Tensor, targets_S: Tensor) -> dict[str, Tensor]:
        return token_losses(logits_SV, targets_S) | {"entropy": entropy(logits_SV / self.temperature)}


def entropy(logits_SV: Tensor) -> Tensor:
    """Entropy of each row's distribution in nats, [S]."""
    log_probs = logits_SV.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def _sample(segment_NW: Tensor) -> Tensor:
    """A number below N * W for the sample that each place belongs to, [N, W]; of padding that of a first sample."""
    width = segment_NW.shape[1]
    return torch.arange(len(segment_NW), device=segment_NW.device).unsqueeze(1) * width + segment_NW.clamp_min(0)


def _share(segment_NW: Tensor, wanted: Tensor) -> Tensor:
    """One divided by the number of wanted places (bool [N, W]) of the same sample, [N, W] float32."""
    own = segment_NW.clamp_min(0)
    count = torch.zeros(own.shape).scatter_add(1, own, wanted.float())
    return 1 / count.gather(1, own).clamp_min(1)
