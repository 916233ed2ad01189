"""D2F: from a bidirectional masked model to a block-causal one whose blocks are denoised in a pipeline.

Paper: "Diffusion LLMs Can Do Faster-Than-AR Inference via Discrete Diffusion Forcing" (arXiv 2508.09192; official code
zhijie-group/Discrete-Diffusion-Forcing). The answer is noised block by block, later blocks more than earlier ones.
The student sees the noisy row block-causally (the prompt is one bidirectional block), the teacher, which is the
network as it was before, sees all of it; on masked tokens the student learns the teacher's distribution. The mean is
over all masked tokens of the step, each weighted by 1 / mask probability of its block.

What differs from the official code, on purpose:
- a level rises by a share of 1 / (N - 1) where N counts the sample's own blocks (official: the most of any row of
  the batch), so that a sample's noise does not depend on its batch;
- packed samples do not see each other;
- `full_last` also trains on blocks that are masked throughout, as every block is when decoding appends it.

    python -m unmask.training CONFIG.yaml --set recipe.name=d2f
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.errors import UnmaskError, unknown
from unmask.layout import Layout, block_index
from unmask.training.noise import Noise
from unmask.training.recipes.base import (
    IGNORE,
    Batch,
    Recipe,
    Supervised,
    Terms,
    View,
    cross_entropy,
    previous_row_targets,
    same_row_targets,
)
from unmask.training.states import Models, score_rows

Levels = Literal["code", "paper", "linear", "random"]
_RANGES = {"code": (0.2, 0.7), "paper": (0.3, 0.7), "linear": (0.2, 0.9), "random": (0.2, 0.7)}
_FIRST, _LEVEL, _TOKEN, _FULL, _LAST = 1, 2, 3, 4, 5


@dataclass(frozen=True, slots=True)
class D2f(Recipe):
    """The recipe's options."""

    anchored: ClassVar[bool] = True

    mask_id: int
    """Token id of the mask."""
    block_size: int = 16
    shift: bool = False
    """Logits of row i-1 predict token i (Dream, models that were autoregressive); False: of row i (LLaDA)."""
    self_align: bool = True
    """Learn the teacher's distribution; False: the data, by plain cross-entropy."""
    levels: Levels = "code"
    """Mask probability of block b of N (draws u in [0, 1)). "code": the first one uniform in the range, then each
    above the last by u (high - first) / (N - 1), which stays nearly flat. "paper": one draw in each of N equal parts
    of the range, so strictly increasing from low to high (the paper names range and order, not the law). "linear":
    low to high in N even steps. "random": independent, the paper's ablation."""
    low: float | None = None
    """Least mask probability; None: that of the schedule (0.2, "paper" 0.3)."""
    high: float | None = None
    """Largest mask probability; None: that of the schedule (0.7, "linear" 0.9)."""
    visible_end: int | None = None
    """Token id: the run of these that closes a sample is never masked and counts for no block (branch
    loss-without-eospadding); None: filled-in end tokens are noised like text."""
    full_last: float = 0.0
    """Not in the paper: share of samples in which one block, drawn uniformly, is masked throughout, and what follows
    is masked without being learnt. Only so does training show a block as decoding begins it."""

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise UnmaskError(f"block_size must be at least 1, got {self.block_size}")
        if self.levels not in get_args(Levels):
            raise unknown("levels", self.levels, get_args(Levels))
        low, high = self.bounds
        if not 0 < low <= high <= 1:
            raise UnmaskError(f"mask probabilities need 0 < low <= high <= 1, got low {low}, high {high}")
        if not 0 <= self.full_last <= 1:
            raise UnmaskError(f"full_last must be between 0 and 1, got {self.full_last}")

    @property
    def block(self) -> int:
        return self.block_size

    @property
    def wants_teacher(self) -> bool:
        return self.self_align

    @property
    def decoder(self) -> dict[str, Any]:
        return {"method": "d2f", "block_size": self.block_size}

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and largest mask probability."""
        low, high = _RANGES[self.levels]
        return low if self.low is None else self.low, high if self.high is None else self.high

    def views(self, batch: Batch, noise: Noise) -> View:
        block = self.blocks(batch)
        count = self.block_count(batch)
        first = noise.uniform(_FIRST, batch.sample)
        p = self.mask_probability(batch, first, noise.uniform(_LEVEL, batch.sample, block), count)
        # Of the chosen samples one block is masked throughout, and all behind it, as if it were not there yet.
        chosen = noise.uniform(_FULL, batch.sample) < self.full_last
        last = 1 + (noise.uniform(_LAST, batch.sample).double() * count).long()
        p = torch.where(chosen & (block >= last), 1.0, p)
        masked = noise.uniform(_TOKEN, batch.sample, batch.positions) < p
        return self.views_of(batch, masked, p, chosen & (block > last))

    def blocks(self, batch: Batch) -> Tensor:
        """Number of each token's block, [B, L]: 0 in the prompt, then from 1."""
        return block_index(batch.positions, self.block_size, batch.prompt)

    def block_count(self, batch: Batch) -> Tensor:
        """N of each token's sample, [B, L]: its noised blocks, the last of which may be short."""
        length = torch.where(self.maskable(batch), batch.positions + 1, 0)
        own = batch.segment.clamp_min(0)
        end = torch.zeros_like(own).scatter_reduce(1, own, length, "amax").gather(1, own)
        return -(-(end - batch.prompt).clamp_min(0) // self.block_size)

    def maskable(self, batch: Batch) -> Tensor:
        """The tokens that noise may mask, bool [B, L]."""
        labelled = batch.labels != IGNORE
        if self.visible_end is None:
            return labelled
        index = torch.arange(batch.tokens.shape[1]).expand_as(batch.tokens)
        text = torch.where(labelled & (batch.tokens != self.visible_end), index, index.shape[1])
        following = text.flip(1).cummin(1).values.flip(1)  # where the next token of text is, this one included
        inside = batch.segment.gather(1, following.clamp(max=index.shape[1] - 1)) == batch.segment
        return labelled & inside & (following < index.shape[1])

    def mask_probability(self, batch: Batch, first: Tensor, draw: Tensor, count: Tensor) -> Tensor:
        """The level of each token's block, [B, L] float32.

        Args:
            first: [B, L] uniform numbers, one for each sample: the first level of "code".
            draw: [B, L] uniform numbers, one for each block.
            count: [B, L], N.
        """
        low, high = self.bounds
        block = self.blocks(batch).clamp_min(1)
        if self.levels == "code":
            start = low + (high - low) * first
            return start + (high - start) * self._rise(batch, draw) / (count - 1).clamp_min(1)
        if self.levels == "paper":
            return low + (high - low) * (block - 1 + draw) / count.clamp_min(1)
        if self.levels == "linear":
            return low + (high - low) * (block - 1) / (count - 1).clamp_min(1)
        return low + (high - low) * draw

    def _rise(self, batch: Batch, draw: Tensor) -> Tensor:
        """The draws of the sample's blocks 2..b added up, for each token's block b."""
        fresh = (batch.positions - batch.prompt) % self.block_size == 0
        # Draws are multiples of 2**-24, so float64 sums are exact and do not depend on what else is in the row.
        total = torch.where(fresh & (self.blocks(batch) >= 2), draw, 0.0).double().cumsum(1)
        origin = torch.arange(total.shape[1]) - batch.positions
        return (total - total.gather(1, origin)).float()

    def views_of(self, batch: Batch, masked: Tensor, p: Tensor, unlearnt: Tensor | None = None) -> View:
        """The view of given noise.

        Args:
            masked: bool [B, L], what is masked where it may be.
            p: [B, L], the mask probability by whose inverse a token is weighted.
            unlearnt: bool [B, L], tokens that are no target even if masked.
        """
        masked = masked & self.maskable(batch)
        wanted = masked if unlearnt is None else masked & ~unlearnt
        targets = (previous_row_targets if self.shift else same_row_targets)(batch, wanted)
        weights = torch.roll(1 / p, -1, dims=1) if self.shift else 1 / p
        layout = Layout(self.blocks(batch), torch.zeros_like(batch.segment), batch.segment, batch.positions)
        tokens = torch.where(masked, self.mask_id, batch.tokens)
        return View(tokens, layout, targets, weights, {"loss": int((targets != IGNORE).sum())})

    def loss(self, models: Models, view: Supervised) -> Terms:
        if not self.self_align:
            return cross_entropy(models, view)
        everything = replace(view.layout, order=torch.zeros_like(view.layout.order))
        teacher = models.teacher(view.tokens, everything, view.index)
        student = models.student(view.tokens, view.layout, view.index)
        rows = score_rows(teacher_losses, [student, teacher], view.targets)
        return Terms({"loss": (rows["loss"] * view.weights).sum()}, rows["right"])


def teacher_losses(student_SV: Tensor, teacher_SV: Tensor, targets_S: Tensor) -> dict[str, Tensor]:
    """Each row's cross-entropy against the teacher's distribution (forward KL, but for a constant), and whether the
    best token is the data's."""
    losses = F.cross_entropy(student_SV, teacher_SV.softmax(-1), reduction="none")
    return {"loss": losses, "right": student_SV.detach().argmax(-1) == targets_S}
