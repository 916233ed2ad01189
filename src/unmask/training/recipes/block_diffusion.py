"""Block diffusion: each block is denoised given the clean blocks before it. BD3-LM's training, and SDAR's.

Papers: "Block Diffusion: Interpolating Between Autoregressive and Diffusion Language Models" (BD3-LM, arXiv 2503.09573;
kuleshov-group/bd3lms) and "SDAR" (arXiv 2510.06303; JetAstra/SDAR). Each row is seen as [noisy ; clean]; a token is
masked with the chance t of its block and its cross-entropy weighted by 1 / t: the likelihood bound, divided by the
number of learnt tokens. The defaults are BD3-LM's, on answers; SDAR is `level: sample`, `subs: false`,
`ignore_bos: false`, `low_discrepancy: false`, with eps_min for its eps (the same law).

What differs from the official codes, on purpose:
- BD3-LM's times are spread over the samples of a step in random order, and over each sample's blocks: the official
  ones rise along the batch, so that with few rows a block's place decides how noisy it is;
- prompt and padding are never noised when answers are learnt (`stage: sft`), in BD3-LM's code everything is;
- the clipped range of times is an option, not searched for again during training.

    python -m unmask.training CONFIG.yaml --set recipe.name=block_diffusion
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from unmask.errors import UnmaskError, unknown
from unmask.training.noise import Noise
from unmask.training.recipes.base import Batch, Recipe, Stage, Supervised, Terms, View, cross_entropy, learnt
from unmask.training.recipes.doubled import as_fast_dllm_v2, complemented, doubled_view
from unmask.training.states import Models
from unmask.training.times import even_uniform

Level = Literal["block", "sample"]
Weight = Literal["official", "inverse", "one"]
_LEVEL, _TOKEN = 1, 3  # 2 orders the samples of a step
_OPEN = (1e-3, 1.0)
_REDRAWS = 100


@dataclass(frozen=True, slots=True)
class BlockDiffusion(Recipe):
    """The recipe's options."""

    mask_id: int
    """Token id of the mask."""
    block_size: int = 4
    stage: Stage = "sft"
    """"sft": answers are noised and learnt. "pretrain": every token."""
    level: Level = "block"
    """A time t for each block (BD3-LM), or one for each sample (SDAR)."""
    eps_min: float = 1e-3
    """Smallest time, and so mask probability. t is uniform between the two."""
    eps_max: float = 1.0
    """Largest time; below 1 with eps_min above 1e-3: BD3-LM's clipped schedule."""
    weight: Weight = "official"
    """"official": 1 / t, but 1 where eps_min is above 0.5. "inverse": 1 / t. "one": 1."""
    low_discrepancy: bool = True
    """Spread the times evenly over the blocks of a sample and the samples of a step."""
    subs: bool = True
    """Take the mask out of the softmax; False: leave it in (SDAR)."""
    shift: bool = False
    """Logits of row i-1 predict token i, as in models that were autoregressive."""
    ignore_bos: bool = True
    """Never noise the first token of a sample. It still counts in the mean."""
    complementary: bool = False
    """Add a view that masks what the first one shows, at the rate 1 - t (LLaDA2.0's fine-tuning)."""
    resample: bool = True
    """Draw a block's masks again while their share is outside of a bound on t that is not at its default."""

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise UnmaskError(f"block_size must be at least 1, got {self.block_size}")
        choices = {"stage": (self.stage, Stage), "level": (self.level, Level), "weight": (self.weight, Weight)}
        for name, (value, allowed) in choices.items():
            if value not in get_args(allowed):
                raise unknown(name, value, get_args(allowed))
        low, high = self.eps_min, self.eps_max
        if not 0 < low <= high <= 1:
            raise UnmaskError(f"times need 0 < eps_min <= eps_max <= 1, got {low} and {high}")
        if self.resample and not self._allowed(torch.arange(self.block_size + 1) / self.block_size).any():
            raise UnmaskError(f"no number of masks in {self.block_size} tokens has a share from {low} to {high}")

    @property
    def block(self) -> int:
        return self.block_size

    @property
    def decoder(self) -> dict[str, Any]:
        return {"method": "fast_dllm_v2" if self.shift else "block_diffusion", "block_size": self.block_size}

    def published_as(self, family: str) -> dict[str, Any]:
        if self.shift:
            return as_fast_dllm_v2(family, self.block_size)
        if family not in ("qwen3", "sdar"):
            return {}
        return {"architectures": ["SDARForCausalLM"], "model_type": "sdar", "block_size": self.block_size}

    def views(self, batch: Batch, noise: Noise) -> View:
        t_BL = self.times(batch, noise)
        return self.views_of(batch, self.masks(batch, noise, t_BL) & self.maskable(batch), t_BL)

    def times(self, batch: Batch, noise: Noise) -> Tensor:
        """t of every token, [B, L]: one for each block or sample."""
        block = batch.positions // self.block_size
        block = block if self.level == "block" else torch.zeros_like(block)
        if self.low_discrepancy:
            return self.time_at(even_uniform(noise, _LEVEL, batch.sample, block))
        return self.time_at(noise.uniform(_LEVEL, batch.sample, block))

    def time_at(self, u: Tensor) -> Tensor:
        """The times of uniform numbers."""
        return self.eps_min + (self.eps_max - self.eps_min) * u

    def masks(self, batch: Batch, noise: Noise, t_BL: Tensor) -> Tensor:
        """What is drawn to be masked, bool [B, L], wherever it may be."""
        masked = noise.uniform(_TOKEN, batch.sample, batch.positions) < t_BL
        if not self.resample or (self.eps_min, self.eps_max) == _OPEN:
            return masked
        # Blocks of other lengths than block_size may never fit: they keep their last draw.
        number = (batch.positions % self.block_size == 0).long().cumsum(1)
        size = torch.zeros_like(number, dtype=torch.float32)
        size.scatter_add_(1, number - 1, torch.ones_like(size))
        for again in range(1, _REDRAWS):
            count = torch.zeros_like(size).scatter_add_(1, number - 1, masked.float())
            wrong = ~self._allowed((count / size).gather(1, number - 1)) & (batch.segment >= 0)
            if not wrong.any():
                break
            fresh = noise.uniform(_TOKEN, batch.sample, batch.positions, torch.tensor(again)) < t_BL
            masked = torch.where(wrong, fresh, masked)
        return masked

    def _allowed(self, share: Tensor) -> Tensor:
        """Whether shares of masks are inside the bounds; one at its default bounds nothing."""
        low = 0.0 if self.eps_min == _OPEN[0] else self.eps_min
        return (share >= low) & (share <= self.eps_max)

    def maskable(self, batch: Batch) -> Tensor:
        """The tokens that noise may mask, bool [B, L]."""
        chosen = learnt(batch, self.stage, self.mask_id)
        return chosen & (batch.positions > 0) if self.ignore_bos or self.shift else chosen

    def views_of(self, batch: Batch, masked_BL: Tensor, t_BL: Tensor) -> View:
        """The view(s) of given noise.

        Args:
            masked_BL: bool, the tokens that the first view masks; those that are learnt are targets.
            t_BL: the time of each token.
        """
        wanted = learnt(batch, self.stage, self.mask_id)
        sides = complemented(masked_BL, t_BL, self.maskable(batch), _OPEN[0], self.complementary)
        view = doubled_view(
            batch,
            [masked for masked, _ in sides],
            wanted,
            [self.weights(p) / len(sides) for _, p in sides],
            mask_id=self.mask_id,
            block=self.block_size,
            shift=self.shift,
        )
        return replace(view, normalisers={"loss": int(wanted.sum())})

    def weights(self, p: Tensor) -> Tensor:
        """The weight of a term at mask probability p."""
        flat = self.weight == "one" or (self.weight == "official" and self.eps_min > 0.5)
        return torch.ones_like(p) if flat else 1 / p

    def loss(self, models: Models, view: Supervised) -> Terms:
        return cross_entropy(models, view, ban=self.mask_id if self.subs else None)
