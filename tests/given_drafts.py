"""A draft source that replays recorded drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmask.decoding.drafts import DRAFTS
from unmask.decoding.forward import State


@DRAFTS.add("given")
@dataclass(frozen=True)
class Given:
    """The ids of each row by position behind its prompt, 0 where they end."""

    rows: tuple[tuple[int, ...], ...] = ((),)

    def start(self, state: State) -> State:
        table = torch.zeros_like(state.canvas)
        for i, ids in enumerate(self.rows):
            table[i, : len(ids)] = torch.tensor(ids[: table.shape[1]], dtype=table.dtype)
        return replace(state, memory=state.memory | {"given": table})

    def __call__(self, state: State, positions: Tensor) -> Tensor:
        table = state.memory["given"]
        return table.gather(1, (positions - state.prompt[:, None]).clamp(0, table.shape[1] - 1))


def placed(parts: Sequence[tuple[int, Sequence[int]]]) -> tuple[int, ...]:
    """One row of `Given`: ids that begin at each of these places behind the prompt; later ones win."""
    ids = [0] * max(first + len(part) for first, part in parts)
    for first, part in parts:
        ids[first : first + len(part)] = part
    return tuple(ids)


def of_blocks(drafts: Sequence[Sequence[int]], size: int) -> Given:
    """The drafts of block-wise decoding: those run with the prompt, then what follows the first token of each block."""
    later = [(i * size + 1, tail) for i, tail in enumerate(drafts) if i]
    return Given((placed([(0, drafts[0]), *later]),))
