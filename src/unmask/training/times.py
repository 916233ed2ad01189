"""Noise levels spread evenly over a step: the low-discrepancy ("antithetic") times of MDLM and BD3-LM.

Losses weighted by 1 / t vary less if the times of a batch leave no gaps, so the official codes draw the b-th of B
times from the b-th of B equal parts of [0, 1). Here the part that a sample gets follows from which samples are in the
step and from nothing else, so that no cut of a step into rows, forwards and processes matters; and the blocks of one
sample are spread too. Each single time stays uniform.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.training.noise import Noise

GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True)
class StepNoise(Noise):
    """Noise of one step that knows the ids of all its samples, over all forwards and processes, in any order."""

    members: tuple[int, ...] = ()

    def parts(self, purpose: int, sample: Tensor) -> tuple[Tensor, int]:
        """Which of how many equal parts each sample (ids, any shape) draws its time from: a random order."""
        ids = torch.tensor(sorted(self.members))
        rank = self.uniform(purpose, ids).argsort(stable=True).argsort()
        place = torch.searchsorted(ids, sample.contiguous()).clamp(max=len(ids) - 1)
        return rank[place], len(ids)


def stratified(u: Tensor, index: Tensor, count: int) -> Tensor:
    """Numbers u in [0, 1) moved into part `index` of `count` equal parts of [0, 1)."""
    return (u + index) / count


def even_uniform(noise: Noise, purpose: int, sample: Tensor, block: Tensor) -> Tensor:
    """Uniform numbers in [0, 1], float32, spread over the samples of a step and over the blocks of a sample.

    Args:
        noise: with plain `Noise`, where the step's samples are not known, only a sample's blocks are spread.
        purpose: the draw's, and the next number belongs to the order of the samples.
        sample: ids, int64.
        block: number of the block within the sample, int64 of the same shape.
    """
    u = noise.uniform(purpose, sample).double()
    if isinstance(noise, StepNoise) and noise.members:
        u = stratified(u, *noise.parts(purpose + 1, sample))
    # Multiples of the golden section leave no gaps, however many there are.
    return ((u + GOLDEN * block) % 1).float()
