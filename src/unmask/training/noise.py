"""Training noise as a function of (seed, epoch, sample, position).

A sample is noised alike whatever batch, rank or worker it lands in, and a resumed run draws what an unstopped one
would have drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.hashing import hashed, shift


@dataclass(frozen=True, slots=True)
class Noise:
    """The draws of one epoch."""

    seed: int
    epoch: int = 0

    def uniform(self, purpose: int, *keys: Tensor) -> Tensor:
        """Uniform numbers in [0, 1), float32, one for each entry of the keys (int64, broadcast together).

        Args:
            purpose: tells draws apart that share their keys.
            keys: what the number is for, for example sample ids and positions.
        """
        state = hashed(torch.tensor(self.seed, device=keys[0].device), self.epoch, purpose, *keys)
        return shift(state, 40).to(torch.float32) * 2.0**-24
