"""Stop rules: after which forward everything that is still open is taken as the model sees it now.

A stop rule looks at every forward of a method that commits positions by a selection rule. Where it fires, all open
positions the forward speaks of become the best token, whatever the selection rule says; each row decides for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from unmask.decoding.forward import Forward, S
from unmask.decoding.sampling import Scores
from unmask.decoding.specs import Specs

STOPS = Specs("stop rule")


@dataclass(frozen=True)
class Span:
    """What a method works on at the moment: the block, or the whole answer. All [B] but the numbers.

    first: its first position; size: of it; step: forwards spent on it before this one; steps: forwards it takes at
    most.
    """

    first: Tensor
    size: int
    step: Tensor
    steps: int


class Stop(Protocol):
    """A stop rule."""

    def __call__(self, state: S, forward: Forward, scores: Scores, span: Span) -> tuple[S, Tensor]:
        """The state with what the rule wants to remember (`State.memory`), and which rows stop: bool [B]."""
        ...
