"""Next-token prediction on the answers: the baseline, and the start of every conversion."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from unmask.layout import causal
from unmask.training.noise import Noise
from unmask.training.recipes.base import IGNORE, Batch, Recipe, View, previous_row_targets


@dataclass(frozen=True, slots=True)
class Autoregressive(Recipe):
    """Causal rows of packed samples that do not see each other."""

    prompt_weight: float = 0.0
    """Weight of the prompt's own tokens; above 0 the model learns to write questions too (pre-training)."""

    @property
    def decoder(self) -> dict[str, Any]:
        return {"method": "autoregressive"}

    def views(self, batch: Batch, noise: Noise) -> View:
        real = batch.segment >= 0
        answers = batch.labels != IGNORE
        targets = previous_row_targets(batch, real if self.prompt_weight else answers)
        of_answer = torch.zeros_like(answers)
        of_answer[:, :-1] = answers[:, 1:]
        weights = torch.where(of_answer, 1.0, self.prompt_weight)
        layout = replace(causal(batch.tokens.shape[1]).batch(len(batch.tokens)), segment=batch.segment)
        layout = replace(layout, positions=batch.positions)
        count = int(((targets != IGNORE) & of_answer).sum())
        return View(batch.tokens, layout, targets, weights, {"loss": count})
