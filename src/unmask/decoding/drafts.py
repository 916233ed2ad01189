"""Where a draft begins: tokens for positions that no forward has guessed yet.

A draft decides how many forwards a text takes, never which text it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from unmask.decoding.forward import State
from unmask.decoding.sampling import uniform
from unmask.decoding.specs import Specs

DRAFTS = Specs("draft source")
SALT = 2  # its random numbers are not those of the tokens

S = TypeVar("S", bound=State)


class Source(Protocol):
    """Gives drafts. What it has to remember of a row stands in `State.memory`."""

    def start(self, state: S) -> S:
        """The state with what the source needs, before the first forward."""
        ...

    def __call__(self, state: State, positions: Tensor) -> Tensor:
        """Token ids [B, W] for the canvas positions [B, W]; any id where a position lies outside of the canvas."""
        ...


@DRAFTS.add("context")
@dataclass(frozen=True)
class Context:
    """Tokens drawn from the text so far, prompt included, each place equally likely: how Jacobi Forcing (arXiv
    2512.14681) drafts in training and in decoding."""

    def start(self, state: S) -> S:
        return state

    def __call__(self, state: State, positions: Tensor) -> Tensor:
        index = torch.arange(state.canvas.shape[1], device=state.canvas.device)
        length = (~state.open & (index < state.limit[:, None])).sum(-1, keepdim=True)
        place = uniform(state.draw.seed, state.step, positions, SALT) * length
        return state.canvas.gather(1, place.long())
