"""Random numbers as a function of what they are for: (seed, epoch, sample, position), never of a generator's state.

A sample is noised alike whatever batch, rank or worker it lands in, and a resumed run draws what an unstopped
one would have drawn. The mixing function is the finaliser of splitmix64 (Steele, Lea, Flood 2014).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(value: int) -> int:
    """The same 64 bits as an int64."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(_FIRST)
    x = (x ^ _shift(x, 27)) * _signed(_SECOND)
    return x ^ _shift(x, 31)


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
        state = torch.tensor(_signed(self.seed * _GOLDEN + 1), device=keys[0].device)
        for key in (self.epoch, purpose, *keys):
            state = _mix((state ^ key) * _signed(_SECOND) + _signed(_GOLDEN))
        return _shift(state, 40).to(torch.float32) * 2.0**-24
