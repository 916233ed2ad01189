"""WeDLM: masks filled under plain causal attention (arXiv 2512.22737, github.com/Tencent/WeDLM finetune/).

A row is seen as [memory ; prediction]. The memory stream is the clean text, causal, and learns the next token too. In
the prediction stream each block is masked in part, and inside the block known tokens stand before masks, every token at
its own position; a block sees the memory of the blocks before it and, causally, itself: what the decoder's window sees.
The logits of a mask predict its own position.

What differs from the official code, on purpose:
- the loss is divided by the weights of the whole step, not of one packed row, so that no cut of the step matters;
- end tokens behind the text's own, which teach the window to look past the end, are the data's `extra_ends` (official:
  `num_learnable_im_end`, the text's own end token included).

    python -m unmask.training CONFIG.yaml --set recipe.name=wedlm extra_ends=7
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from unmask.errors import UnmaskError, unknown
from unmask.layout import Layout, wedlm_rows
from unmask.training.noise import Noise
from unmask.training.recipes.base import (
    IGNORE,
    Batch,
    Recipe,
    Supervised,
    Terms,
    View,
    previous_row_targets,
    token_losses,
)
from unmask.training.states import Models, score_rows

Weight = Literal["normalised", "uniform", "paper"]
_RATIO, _TOKEN = 1, 2


@dataclass(frozen=True, slots=True)
class WeDlm(Recipe):
    """The recipe's options."""

    mask_id: int
    """Token id of the mask."""
    block_size: int = 32
    """Blocks are counted from the sample's start; the last one may be shorter."""
    weight: Weight = "normalised"
    """Of a mask's loss: "normalised", 1 / ratio over the sum of these weights (official code); "uniform", the mean
    over masks; "paper", 1 / ratio over the number of answer tokens, the bound of the likelihood."""
    ar_weight: float = 1.0
    """w in (mask loss + w * next-token loss) / (1 + w)."""
    per_block: bool = True
    """A masking ratio for each block; False: one for each sample."""
    eps: float = 1e-8
    """Smallest masking ratio."""

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise UnmaskError(f"block_size must be at least 1, got {self.block_size}")
        if self.ar_weight < 0:
            raise UnmaskError(f"ar_weight must be at least 0, got {self.ar_weight}")
        if self.weight not in get_args(Weight):
            raise unknown("weight", self.weight, get_args(Weight))

    @property
    def decoder(self) -> dict[str, Any]:
        return {"method": "wedlm"}

    def published_as(self, family: str) -> dict[str, Any]:
        if family not in ("qwen2", "qwen3"):
            return {}
        own = {"architectures": ["WeDLMForCausalLM"], "model_type": "wedlm"}
        return {**own, "attention_bias": family == "qwen2", "qk_norm": family == "qwen3"}

    def views(self, batch: Batch, noise: Noise) -> View:
        ratio = self.ratios(batch, noise)
        return self.views_of(batch, self.masks(batch, noise, ratio), ratio)

    def ratios(self, batch: Batch, noise: Noise) -> Tensor:
        """The masking ratio at each place, [B, L]."""
        block = batch.positions // self.block_size if self.per_block else torch.zeros_like(batch.positions)
        return noise.uniform(_RATIO, batch.sample, block).clamp(min=self.eps)

    def masks(self, batch: Batch, noise: Noise, ratio: Tensor) -> Tensor:
        """In each block round(ratio * answer tokens) of the answer tokens, all choices alike: bool [B, L]."""
        maskable = batch.labels != IGNORE
        number = self._blocks(batch)
        count = (ratio * _of_block(maskable, number)).round()
        # Doubles hold the sum exactly, so a sample's order does not depend on where it stands in the row.
        draw = noise.uniform(_TOKEN, batch.sample, batch.positions).double()
        place = (2 * number + ~maskable + draw).argsort(dim=1, stable=True).argsort(dim=1)
        first = torch.arange(place.shape[1]) - batch.positions % self.block_size
        return maskable & (place - first < count)

    def views_of(self, batch: Batch, masked_BL: Tensor, ratio_BL: Tensor) -> View:
        """The view of given noise: `masked_BL` (bool) is what is masked, each at a place with a label."""
        physical = (2 * self._blocks(batch) + masked_BL).argsort(dim=1, stable=True)
        noisy = torch.where(masked_BL, self.mask_id, batch.tokens)
        answer = batch.labels != IGNORE
        memory = previous_row_targets(batch, answer & (self.ar_weight > 0))
        targets = torch.where(masked_BL, batch.tokens, IGNORE)
        weights = torch.ones_like(ratio_BL) if self.weight == "uniform" else 1 / ratio_BL
        total = answer.sum() if self.weight == "paper" else weights[masked_BL].double().sum()
        return View(
            tokens=torch.cat([batch.tokens, noisy.gather(1, physical)], dim=1),
            layout=self._layout(batch, physical),
            targets=torch.cat([memory, targets.gather(1, physical)], dim=1),
            weights=torch.cat([torch.ones_like(weights), weights.gather(1, physical)], dim=1),
            normalisers={"mask": float(total), "ar": int((memory != IGNORE).sum())},
        )

    def _blocks(self, batch: Batch) -> Tensor:
        """The number of each place's block within its row, [B, L]; places of no sample are blocks of their own."""
        return (batch.positions % self.block_size == 0).long().cumsum(1) - 1

    def _layout(self, batch: Batch, physical: Tensor) -> Layout:
        segment, positions = (torch.cat([x, x.gather(1, physical)], dim=1) for x in (batch.segment, batch.positions))
        return replace(wedlm_rows(batch.positions, self.block_size), segment=segment, positions=positions)

    def loss(self, models: Models, view: Supervised) -> Terms:
        """`right` counts masks and next tokens."""
        states = models.student(view.tokens, view.layout, view.index)
        rows = score_rows(token_losses, [states], view.targets)
        width = view.tokens.shape[1]
        of_mask = view.index % width >= width // 2
        losses = rows["loss"] * view.weights / (1 + self.ar_weight)
        sums = {"mask": (losses * of_mask).sum(), "ar": self.ar_weight * (losses * ~of_mask).sum()}
        return Terms(sums, rows["right"])


def _of_block(chosen: Tensor, number: Tensor) -> Tensor:
    """How many places (bool [B, L]) of its block (`number`) are chosen, at each place [B, L]."""
    return torch.zeros_like(number).scatter_add(1, number, chosen.long()).gather(1, number)
