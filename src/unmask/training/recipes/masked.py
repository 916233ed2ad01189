"""Masked diffusion over whole rows: LLaDA's pre-training and fine-tuning, and Dream's with its token shift.

Papers: "Large Language Diffusion Models" (LLaDA, arXiv 2502.09992; ML-GSAI/LLaDA, GUIDELINES.md) and "Dream 7B" (arXiv
2508.15487; DreamLM/Dream, which holds no training code). Every token of a sample is masked with the sample's own
chance p = (1 - eps) t + eps and predicted under full attention, weighted by 1 / p. Pre-training noises everything and
divides by the number of tokens; fine-tuning leaves prompts clean and divides by each answer's length, then by the
number of samples. LLaDA fills answers up with end tokens that are noised and learnt like text (`answer_tokens` of the
config), so that a canvas longer than the answer can be decoded. `shift` keeps the head of an autoregressive start: row
i-1 predicts token i.

What differs from the official codes, on purpose:
- packed samples do not see each other, and each has a level of its own;
- a random length is drawn for 1 % of the samples, not of the batches (`random_length`);
- under `shift` the first token of a sample is never masked: nothing predicts it, and decoding always knows it.

    python -m unmask.training CONFIG.yaml --set recipe.name=masked
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from unmask.errors import UnmaskError, unknown
from unmask.layout import PAD, full
from unmask.training.noise import Noise
from unmask.training.recipes.base import (
    IGNORE,
    Batch,
    Recipe,
    Stage,
    View,
    learnt,
    previous_row_targets,
    same_row_targets,
)

Weight = Literal["inverse", "cart"]
_LEVEL, _TOKEN, _CUT, _LENGTH = 1, 2, 3, 4
_NEGLIGIBLE = 1e-8


@dataclass(frozen=True, slots=True)
class Masked(Recipe):
    """The recipe's options."""

    mask_id: int
    """Token id of the mask."""
    stage: Stage = "sft"
    """"sft": prompts stay clean, mean over each answer, then over samples. "pretrain": all is noised, mean over
    tokens."""
    shift: bool = False
    """Logits of row i-1 predict token i (Dream); False: of row i (LLaDA)."""
    eps: float = 1e-3
    """Smallest mask probability: p = (1 - eps) t + eps with t uniform in [0, 1), one t for each sample."""
    weight: Weight = "inverse"
    """"inverse": 1 / p. "cart": Dream's, half the sum over the sample's visible tokens of Geo(distance - 1)."""
    cart_p: float = 0.3
    """Geo(k) = cart_p (1 - cart_p)^k. The paper's value is not known; this is that of ZHZisZZ/dllm."""
    random_length: float = 0.01
    """In pre-training, the share of samples that are cut to a length drawn from 1 to their own."""

    def __post_init__(self) -> None:
        for name, allowed in (("stage", get_args(Stage)), ("weight", get_args(Weight))):
            value = self.stage if name == "stage" else self.weight
            if value not in allowed:
                raise unknown(name, value, allowed)
        if not 0 < self.eps <= 1:
            raise UnmaskError(f"eps must be above 0 and at most 1, got {self.eps}")
        if not 0 < self.cart_p < 1:
            raise UnmaskError(f"cart_p must be between 0 and 1, got {self.cart_p}")
        if not 0 <= self.random_length <= 1:
            raise UnmaskError(f"random_length must be between 0 and 1, got {self.random_length}")

    @property
    def decoder(self) -> dict[str, Any]:
        return {"method": "masked"}

    def published_as(self, family: str) -> dict[str, Any]:
        return {"architectures": ["DreamModel"], "model_type": "Dream"} if self.shift and family == "qwen2" else {}

    def views(self, batch: Batch, noise: Noise) -> View:
        if self.stage == "pretrain" and self.random_length:
            batch = self.shortened(batch, noise)
        p_BL = (1 - self.eps) * noise.uniform(_LEVEL, batch.sample) + self.eps
        masked_BL = noise.uniform(_TOKEN, batch.sample, batch.positions) < p_BL
        return self.views_of(batch, masked_BL & self.maskable(batch), p_BL)

    def maskable(self, batch: Batch) -> Tensor:
        """The tokens that noise may mask, bool [B, L]."""
        chosen = learnt(batch, self.stage, self.mask_id)
        return chosen & (batch.positions > 0) if self.shift else chosen

    def shortened(self, batch: Batch, noise: Noise) -> Batch:
        """The batch with the tails of some samples moved to the padding."""
        own = batch.segment.clamp_min(0)
        size = torch.where(batch.segment >= 0, batch.positions + 1, 0)
        size = torch.zeros_like(own).scatter_reduce(1, own, size, "amax").gather(1, own)
        kept = 1 + (noise.uniform(_LENGTH, batch.sample).double() * size).long()
        gone = (noise.uniform(_CUT, batch.sample) < self.random_length) & (batch.positions >= kept)
        segment, labels = torch.where(gone, PAD, batch.segment), torch.where(gone, IGNORE, batch.labels)
        return replace(batch, segment=segment, labels=labels)

    def views_of(self, batch: Batch, masked_BL: Tensor, p_BL: Tensor) -> View:
        """The view of given noise.

        Args:
            masked_BL: bool, the tokens that are masked; those that may be learnt are targets.
            p_BL: each token's mask probability.
        """
        wanted = masked_BL & self.maskable(batch)
        weights = 1 / p_BL if self.weight == "inverse" else nearness(~masked_BL, batch.segment, self.cart_p)
        if self.stage == "sft":
            weights = weights / batch.answer.clamp_min(1)
            count = int(((batch.positions == 0) & (batch.segment >= 0) & (batch.answer > 0)).sum())
        else:
            count = int(learnt(batch, self.stage, self.mask_id).sum())
        targets = (previous_row_targets if self.shift else same_row_targets)(batch, wanted)
        layout = full(batch.tokens.shape[1]).batch(len(batch.tokens))
        return View(
            tokens=torch.where(masked_BL, self.mask_id, batch.tokens),
            layout=replace(layout, segment=batch.segment, positions=batch.positions),
            targets=targets,
            weights=torch.roll(weights, -1, dims=1) if self.shift else weights,
            normalisers={"loss": count},
        )


def nearness(visible_BL: Tensor, segment_BL: Tensor, p: float) -> Tensor:
    """CART's weights [B, L]: half the sum over the sample's other visible tokens of p (1 - p)^(distance - 1)."""
    length = visible_BL.shape[1]
    reach = math.ceil(math.log(_NEGLIGIBLE) / math.log1p(-p))
    weights = torch.zeros(visible_BL.shape)
    for distance in range(1, min(reach + 1, length)):
        share = p * (1 - p) ** (distance - 1) / 2
        same = segment_BL[:, distance:] == segment_BL[:, :-distance]
        weights[:, distance:] += share * (same & visible_BL[:, :-distance])
        weights[:, :-distance] += share * (same & visible_BL[:, distance:])
    return weights
