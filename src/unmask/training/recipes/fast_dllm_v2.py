"""Fast-dLLM v2: from an autoregressive model to block diffusion (arXiv 2509.26328, github.com/NVlabs/Fast-dLLM v2/).

Each row is seen as [noisy ; clean]: a noisy block sees itself and the clean blocks before it, so one forward
trains every block of the row. Two views mask complementary tokens, so that every answer token is predicted once.
The logits of noisy row i-1 predict token i; weight 1, no 1/t.

What differs from the official code, on purpose:
- packed samples do not see each other and their positions restart (`isolate`; False gives the official rows);
- the end token's input embedding gets its gradient (official: none, by its padding index);
- `clean_weight` can also train the clean half's row before each block, which gives the bridge token when
  decoding and which the paper never trains on clean input.

    python -m unmask.training configs/nano/fast_dllm_v2.yaml
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from unmask.errors import UnmaskError, unknown
from unmask.training.noise import Noise
from unmask.training.recipes.base import IGNORE, Batch, Recipe, View, previous_row_targets
from unmask.training.recipes.doubled import as_fast_dllm_v2, complemented, doubled_view

Weight = Literal["one", "inverse"]
_LEVEL, _TOKEN = 1, 2


@dataclass(frozen=True, slots=True)
class FastDllmV2(Recipe):
    """The recipe's options."""

    mask_id: int
    """Token id of the mask."""
    block_size: int = 32
    eps: float = 1e-3
    """Smallest mask probability: p = (1 - eps) t + eps with t uniform in [0, 1), one t for each block."""
    complementary: bool = True
    """Add the view that masks what the first one shows."""
    weight: Weight = "one"
    """"one": the paper's. "inverse": 1 / mask probability of the view, the likelihood bound (BD3-LM, SDAR)."""
    clean_weight: float = 0.0
    """Weight of the first token of each block predicted from the clean block before it (the bridge token)."""
    isolate: bool = True
    """Packed samples do not see each other and positions restart; False: the official running row."""

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise UnmaskError(f"block_size must be at least 1, got {self.block_size}")
        if self.weight not in get_args(Weight):
            raise unknown("weight", self.weight, get_args(Weight))

    @property
    def block(self) -> int:
        return self.block_size

    @property
    def decoder(self) -> dict[str, Any]:
        return {"method": "fast_dllm_v2", "block_size": self.block_size}

    def published_as(self, family: str) -> dict[str, Any]:
        return as_fast_dllm_v2(family, self.block_size)

    def views(self, batch: Batch, noise: Noise) -> View:
        p_BL = self.mask_probability(batch, noise)
        masked_BL = noise.uniform(_TOKEN, batch.sample, batch.positions) < p_BL
        return self.views_of(batch, masked_BL, p_BL)

    def mask_probability(self, batch: Batch, noise: Noise) -> Tensor:
        """p of every token, [B, L]: drawn once for each block."""
        first = slice(None, None, self.block_size)
        t = noise.uniform(_LEVEL, batch.sample[:, first], batch.positions[:, first])
        p = (1 - self.eps) * t + self.eps
        return p.repeat_interleave(self.block_size, dim=1)

    def views_of(self, batch: Batch, masked_BL: Tensor, p_BL: Tensor) -> View:
        """The view(s) of given noise: `masked_BL` (bool) is what the first view masks where there is a label."""
        maskable = batch.labels != IGNORE
        sides = complemented(masked_BL & maskable, p_BL, maskable, self.eps, self.complementary)
        view = doubled_view(
            batch,
            [masked for masked, _ in sides],
            maskable,
            [torch.ones_like(p) if self.weight == "one" else 1 / (len(sides) * p) for _, p in sides],
            mask_id=self.mask_id,
            block=self.block_size,
            shift=True,
            isolate=self.isolate,
        )
        if not self.clean_weight:
            return view
        rows, length = batch.tokens.shape
        # All views hold the same clean half, so one of them is enough.
        view.targets[:rows, length:] = self._bridge_targets(batch, maskable)
        view.weights[:, length:] = self.clean_weight
        return view

    def _bridge_targets(self, batch: Batch, maskable: Tensor) -> Tensor:
        """First tokens of blocks, at the last row of the block before. Any other clean row would see its target."""
        index = torch.arange(batch.tokens.shape[1])
        return previous_row_targets(batch, maskable & (index % self.block_size == 0))
