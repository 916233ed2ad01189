"""The rows being decoded, in tensors that stay where they are so that a captured graph finds them again."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from unmask.decoding.forward import State
from unmask.decoding.sampling import Draw
from unmask.engine.step import DONE, STATUS, tensors, with_tensors

Used = tuple[bool, frozenset[str]]
"""Whether any row draws at random, and which filters any row uses (`Draw.used`): part of what a graph is made for."""


class Batch:
    """`rows` states, of which the leading ones are in work; the others count as done.

    Args:
        example: a state of one row as it is after a step: names, shapes and types of all tensors.
        pages: T, pages a row has at most.
    """

    def __init__(self, example: State, rows: int, pages: int) -> None:
        self.example = example
        self.named = {name: _every(x, rows) for name, x in tensors(example).items()}
        self.named["done"].fill_(True)
        self.draw = example.draw.map(lambda x: _every(x, rows))
        device = example.canvas.device
        self.status = torch.zeros(rows, STATUS, dtype=torch.int32, device=device)
        self.status[:, DONE] = 1
        self.table = torch.zeros(rows, pages, dtype=torch.int32, device=device)

    def view(self, rows: int, used: Used) -> State:
        """The state of the leading rows, on the batch's own memory."""
        d = self.draw
        draw = Draw(*(x[:rows] for x in (d.temperature, d.top_p, d.top_k, d.seed)), used=used)
        return with_tensors(replace(self.example, draw=draw), {name: x[:rows] for name, x in self.named.items()})

    def put(self, row: int, state: State, status: Tensor, table: Tensor) -> None:
        """A new row, from a state of one; `table` [1, T]."""
        given = tensors(state)
        for name, x in self.named.items():
            if name in given:
                x[row].copy_(given[name][0])
            else:  # a memory that comes into being with the first step
                x[row].fill_(_nothing(x))
        for held, new in zip(_settings(self.draw), _settings(state.draw)):
            held[row].copy_(new[0])
        self.status[row].copy_(status[0])
        self.table[row].copy_(table[0])

    def move(self, source: int, target: int) -> None:
        """Moves a row."""
        for x in [*self.named.values(), *_settings(self.draw), self.status, self.table]:
            x[target].copy_(x[source])
        self.stop(source)

    def stop(self, row: int) -> None:
        """Takes a row out of work."""
        self.named["done"][row].fill_(True)
        self.status[row, DONE].fill_(1)
        self.table[row].zero_()


def _settings(draw: Draw) -> tuple[Tensor, ...]:
    return draw.temperature, draw.top_p, draw.top_k, draw.seed


def _nothing(x: Tensor) -> float:
    """What stands for an entry of `State.memory` that is not there."""
    return 0.0 if x.is_floating_point() else -1


def _every(x: Tensor, rows: int) -> Tensor:
    # A row that nobody has had yet takes part in each step: it must hold what a method can work with.
    return x.repeat(rows, *[1] * (x.dim() - 1))
