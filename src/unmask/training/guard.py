"""Stops a run whose numbers are no longer finite, without waiting for a GPU at every step.

The optimiser itself refuses such an update and all that follow (`Optimizer.bad`), on the device. The numbers of a step
are copied to the host in the background and looked at some steps later, or at once where the run is about to log, to
measure or to save.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.errors import UnmaskError
from unmask.training.ranks import Ranks

LAG = 4
"""Steps that a GPU may be behind the host."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """What is known of a step once the device has done it.

    Args:
        step: its number, from 0.
        terms: the loss's terms, of all processes.
        norms: the gradient's norm of each group.
        forwards: the loss of each forward of this process.
    """

    step: int
    terms: list[float]
    norms: list[float]
    forwards: list[float]

    @property
    def finite(self) -> bool:
        return all(map(math.isfinite, [*self.terms, *self.norms]))


class NotFiniteError(UnmaskError):
    """A loss or gradient was not finite. `numbers` are those of the step."""

    def __init__(self, message: str, numbers: Numbers) -> None:
        super().__init__(message)
        self.numbers = numbers


@dataclass(frozen=True, slots=True)
class _Waiting:
    step: int
    sizes: tuple[int, int, int]
    values: Tensor
    ready: torch.cuda.Event | None

    def read(self) -> Numbers:
        if self.ready is not None:
            self.ready.synchronize()
        return Numbers(self.step, *(part.tolist() for part in self.values.split(self.sizes)))


class Guard:
    """Looks at the numbers of each step in order."""

    def __init__(self) -> None:
        self.waiting: deque[_Waiting] = deque()
        self.last: Numbers | None = None

    def add(self, step: int, terms: Tensor, norms: Tensor, forwards: Tensor) -> None:
        """Takes the numbers of a step; looks at those that must have come by now.

        Raises:
            NotFiniteError: the first step that was not finite.
        """
        values = torch.cat([terms, norms, forwards]).detach()
        ready = None
        if values.is_cuda:
            host = torch.empty(values.shape, pin_memory=True)
            host.copy_(values, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
            values = host
        self.waiting.append(_Waiting(step, (len(terms), len(norms), len(forwards)), values, ready))
        self._look(LAG if ready is not None else 0)

    def settle(self) -> Numbers:
        """Waits for all steps so far; the numbers of the last one. Raises as `add`."""
        self._look(0)
        assert self.last is not None, "there was no step"
        return self.last

    def _look(self, leave: int) -> None:
        while len(self.waiting) > leave:
            self.last = self.waiting.popleft().read()
            if not self.last.finite:
                raise NotFiniteError(f"step {self.last.step + 1}: loss or gradient is not finite", self.last)


def blame(samples: Sequence[Sequence[int]], forwards: Sequence[float], ranks: Ranks) -> list[int]:
    """The sample ids of this process to name: those of forwards whose loss was not finite, or of all where every loss
    was finite in every process."""
    bad = [not math.isfinite(loss) for loss in forwards]
    somewhere = ranks.any(any(bad))
    return sorted({n for ids, this in zip(samples, bad) if this or not somewhere for n in ids})
