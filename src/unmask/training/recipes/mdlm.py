"""MDLM: an encoder trained by a weighted masked-language loss that is an exact likelihood bound.

Paper: "Simple and Effective Masked Diffusion Language Models" (arXiv 2406.07524; kuleshov-group/mdlm). At time t a
token is masked with the chance (1 - noise_eps) t (log-linear schedule); the cross-entropy of a masked token, the mask
taken out of the softmax (SUBS), is weighted by 1 / t and divided by the number of all tokens. The network is a DiT that
is always given noise level 0, or any other network under full attention.

What differs from the official code, on purpose:
- low-discrepancy times are spread over the samples of a step in random order, not along the rows of a batch;
- packed samples do not see each other;
- no dropout (official 0.1), and no other parameterisation than SUBS.

    python -m unmask.training CONFIG.yaml --set recipe.name=mdlm
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor

from unmask.errors import UnmaskError, unknown
from unmask.layout import full
from unmask.training.noise import Noise
from unmask.training.recipes.base import (
    Batch,
    Recipe,
    Stage,
    Supervised,
    Terms,
    View,
    cross_entropy,
    learnt,
    same_row_targets,
)
from unmask.training.states import Models
from unmask.training.times import even_uniform

_LEVEL, _TOKEN = 1, 3  # 2 orders the samples of a step


@dataclass(frozen=True, slots=True)
class Mdlm(Recipe):
    """The recipe's options."""

    mask_id: int
    """Token id of the mask."""
    stage: Stage = "pretrain"
    """"pretrain": every token is noised and learnt. "sft": answers behind clean prompts."""
    noise_eps: float = 1e-3
    """Chance of a token to be still visible at time 1."""
    sampling_eps: float = 1e-3
    """Smallest time that is drawn."""
    low_discrepancy: bool = True
    """Spread the times evenly over the samples of a step."""
    change_of_variables: bool = False
    """Draw the logarithm of the mask chance evenly; the weight is then constant."""
    importance_sampling: bool = False
    """Draw times with a density in proportion to their weight, which then is constant."""
    timesteps: int = 0
    """Above 0: discrete time, t rounded up to a multiple of 1 / timesteps; 0: continuous."""

    def __post_init__(self) -> None:
        if self.stage not in get_args(Stage):
            raise unknown("stage", self.stage, get_args(Stage))
        for name, value in (("noise_eps", self.noise_eps), ("sampling_eps", self.sampling_eps)):
            if not 0 < value < 1:
                raise UnmaskError(f"{name} must be between 0 and 1, got {value}")
        if self.timesteps < 0:
            raise UnmaskError(f"timesteps must be at least 0, got {self.timesteps}")
        if self.change_of_variables + self.importance_sampling + bool(self.timesteps) > 1:
            raise UnmaskError("change_of_variables, importance_sampling and timesteps exclude each other")

    @property
    def decoder(self) -> dict[str, Any]:
        return {"method": "mdlm"}

    @property
    def logarithms(self) -> tuple[float, float]:
        """log of the mask chance where noise is least, as the official code bounds it, and at time 1."""
        return math.log(-math.expm1(-self.noise_eps)), math.log1p(-self.noise_eps)

    def views(self, batch: Batch, noise: Noise) -> View:
        t_BL = self.time_at(self._uniform(batch, noise))
        masked_BL = noise.uniform(_TOKEN, batch.sample, batch.positions) < self.mask_chance(t_BL)
        return self.views_of(batch, masked_BL & learnt(batch, self.stage, self.mask_id), t_BL)

    def _uniform(self, batch: Batch, noise: Noise) -> Tensor:
        if self.low_discrepancy:
            return even_uniform(noise, _LEVEL, batch.sample, torch.zeros_like(batch.sample))
        return noise.uniform(_LEVEL, batch.sample)

    def time_at(self, u: Tensor) -> Tensor:
        """The times of uniform numbers."""
        t = (1 - self.sampling_eps) * u + self.sampling_eps
        if self.importance_sampling:
            first, last = self.logarithms
            return torch.exp(t * last + (1 - t) * first) / (1 - self.noise_eps)
        if self.timesteps:
            return (t * self.timesteps).floor() / self.timesteps + 1 / self.timesteps
        return t

    def mask_chance(self, t: Tensor) -> Tensor:
        """The chance that a token is masked at time t."""
        if self.change_of_variables:
            first, last = self.logarithms
            return torch.exp(first + t * (last - first))
        return (1 - self.noise_eps) * t

    def weights(self, t: Tensor) -> Tensor:
        """The weight of a masked token's cross-entropy at time t."""
        if self.change_of_variables or self.importance_sampling:
            return torch.full_like(t, -self.logarithms[0])
        return 1 / t

    def views_of(self, batch: Batch, masked_BL: Tensor, t_BL: Tensor) -> View:
        """The view of given noise.

        Args:
            masked_BL: bool, the tokens that are masked; those that are learnt are targets.
            t_BL: the time of each token's sample, as `time_at` gives it.
        """
        wanted = learnt(batch, self.stage, self.mask_id)
        layout = full(batch.tokens.shape[1]).batch(len(batch.tokens))
        return View(
            tokens=torch.where(masked_BL, self.mask_id, batch.tokens),
            layout=replace(layout, segment=batch.segment, positions=batch.positions),
            targets=same_row_targets(batch, masked_BL & wanted),
            weights=self.weights(t_BL),
            normalisers={"loss": int(wanted.sum())},
        )

    def loss(self, models: Models, view: Supervised) -> Terms:
        return cross_entropy(models, view, ban=self.mask_id)
