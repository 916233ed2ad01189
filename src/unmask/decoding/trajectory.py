"""The states that blocks go through in Jacobi decoding: what Jacobi Forcing (arXiv 2512.14681) is trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.decoding.forward import State
from unmask.decoding.jacobi import block_end
from unmask.decoding.verifying import LineState, picked


def block_state(state: LineState, size: int) -> tuple[Tensor, Tensor]:
    """The block in work: its number [B], and its tokens [B, size], final ones, then guesses."""
    end = block_end(state, state.last, size)
    place = (end - size)[:, None] + torch.arange(size, device=end.device)
    ahead = place - state.last[:, None]
    tokens = torch.where(ahead < 0, state.tokens_at(place), picked(state.line, ahead))
    return (end - state.prompt) // size - 1, tokens


class Trajectories:
    """Observer of `decode` that keeps every state of every block.

    For `Jacobi` with schedule "block". The first state of a block is its draft, the last one its fixed point, each
    found by one forward: the forward that confirms the fixed point adds none. (The official recorder overwrites the
    first state.) With `prefill_draft="none"` the first block begins with a draft like the others.

    Attributes:
        states: ids [row][block][state], `size` each. Guesses behind the end of the text are no guesses of the model:
            decode one token more than the blocks hold, and leave the last block out.
    """

    def __init__(self, rows: int, size: int) -> None:
        self.size = size
        self.states: list[list[list[list[int]]]] = [[] for _ in range(rows)]

    def __call__(self, numbers: list[int], state: State) -> None:
        assert isinstance(state, LineState)
        block, tokens = block_state(state, self.size)
        for number, index, ids in zip(numbers, block.tolist(), tokens.tolist()):
            blocks = self.states[number]
            blocks += [[] for _ in range(index + 1 - len(blocks))]
            blocks[index].append(ids)
