"""A moving average of the weights (Polyak averaging), with which a run is measured and its checkpoint is made.

shadow += (1 - decay) * (weight - shadow) after each update; with `ramp` the decay is at most (1 + n) / (10 + n) in
update n, so that an average of a network trained from nothing forgets its start.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unmask.training.optimizer import Weight


class Average:
    """The averages of all trained weights, in float32, each process its own pieces."""

    def __init__(self, weights: Sequence[Weight], decay: float, ramp: bool = False) -> None:
        self.weights, self.decay, self.ramp = weights, decay, ramp
        self.shadows: list[Tensor] = [w.leaf.detach().float().clone() for w in weights]

    @torch.no_grad()
    def update(self, done: int) -> None:
        """Follows the weights after update number `done`, counted from 1."""
        decay = min(self.decay, (1 + done) / (10 + done)) if self.ramp else self.decay
        leaves = [w.leaf.detach().float() for w in self.weights]
        torch._foreach_lerp_(self.shadows, leaves, 1 - decay)  # type: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def swap(self) -> None:
        """Lets averages and weights change places, bit for bit; a second time undoes it."""
        for weight, shadow in zip(self.weights, self.shadows):
            held = weight.leaf.detach().clone()
            weight.leaf.copy_(shadow)
            shadow.copy_(held)
