"""What a loss may ask of the networks, and how it scores rows without holding all logits at once.

Logits are the largest tensors of a training step: 4,096 rows of Qwen's vocabulary are 2.5 GB in float32, and as much
again for the gradient. `score_rows` therefore makes them in pieces and makes them again in the backward pass.

Legend: N rows of W tokens, S scored rows, C hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unmask.layout import Layout

PIECE = 2**26
"""Logits of one piece: 256 MB in float32; more on a GPU with much memory (`piece_of`)."""
SHARE = 320
"""A piece has at most one logit for so many bytes of a GPU's memory, 1 GB in float32 on 80 GB."""


@dataclass(frozen=True, slots=True)
class States:
    """Hidden states [S, C] with the head that turns them into logits [S, V].

    compiled: head and scores are compiled into one, so that logits pass through memory less often.
    """

    hidden: Tensor
    head: Callable[[Tensor], Tensor]
    vocabulary: int
    compiled: bool = False

    def __getitem__(self, index: Tensor) -> States:
        return replace(self, hidden=self.hidden[index])

    def detach(self) -> States:
        """The same states as a fixed target: no gradient flows into them, nor into the head through them."""
        head = self.head

        def quiet(hidden: Tensor) -> Tensor:
            with torch.no_grad():
                return head(hidden)

        return replace(self, hidden=self.hidden.detach(), head=quiet)


def piece_of(device: torch.device) -> int:
    """Logits of one piece: each piece reads the whole head again."""
    if device.type != "cuda":
        return PIECE
    return max(PIECE, torch.cuda.get_device_properties(device).total_memory // SHARE)


class Models(Protocol):
    """The networks behind a loss."""

    def student(self, tokens: Tensor, layout: Layout, index: Tensor | None = None) -> States:
        """The trained network's states at the places `index` ([S]) of the flattened [N * W], or at all of them."""
        ...

    def teacher(self, tokens: Tensor, layout: Layout, index: Tensor | None = None) -> States:
        """The same of the network as it was when the run began, without gradient (adapter off, or a frozen copy)."""
        ...

    def module(self, name: str) -> nn.Module:
        """One of `Recipe.modules`."""
        ...


def score_rows(score: Callable[..., dict[str, Tensor]], states: Sequence[States], *given: Tensor) -> dict[str, Tensor]:
    """Calls `score(logits of each of the states [P, V] float32, *given [P])` piece by piece.

    Args:
        score: returns tensors [P] by name; must be a pure function, as it runs a second time in the backward pass.
        states: one or more, of the same S rows.
        given: tensors [S, ...] that belong to the rows.

    Returns:
        The same names with tensors [S].
    """
    count = len(states[0].hidden)
    size = max(1, piece_of(states[0].hidden.device) // (states[0].vocabulary * len(states)))

    def run(*tensors: Tensor) -> dict[str, Tensor]:
        logits = [s.head(h).float() for s, h in zip(states, tensors)]
        return score(*logits, *tensors[len(states) :])

    scored = torch.compile(run, dynamic=True) if states[0].compiled else run
    every = [s.hidden for s in states] + list(given)
    pieces: list[dict[str, Any]] = []
    for at in range(0, max(count, 1), size):
        piece = [x[at : at + size] for x in every]
        if count <= size or not torch.is_grad_enabled():
            pieces.append(scored(*piece))
        else:
            pieces.append(checkpoint(scored, *piece, use_reentrant=False, preserve_rng_state=False))
    return {name: torch.cat([p[name] for p in pieces]) for name in pieces[0]}
