"""Prompts on their way into the batch: whole ones of similar length together, long ones in parts between steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.decoding.forward import Facts, Forward, State, blank
from unmask.decoding.sampling import Draw
from unmask.engine.mirror import to_device
from unmask.engine.step import Parts, part, prefilled, stored

if TYPE_CHECKING:
    from unmask.engine.request import Request
    from unmask.engine.scheduler import Chunk

PADDED = 1.5
"""How much more than their own tokens prompts that are run together may take, the shorter ones being padded."""


@dataclass
class Entered:
    """A request after its prefill: its state of one row, its status [1, STATUS] and its pages [1, T]."""

    request: Request
    state: State
    status: Tensor
    table: Tensor


@dataclass
class _Work:
    """Rows before their prefill on the device, and the forward of it."""

    state: State
    forward: Forward | None
    table: Tensor


class Prefills:
    """Runs the chunks of prefills.

    Args:
        width: N of the batch's canvas.
        new_tokens: of a request at most.
        pages: T of the batch's table.

    Attributes:
        enter: says how far a new row may look (`State.reach`); None: nobody does.
    """

    def __init__(self, parts: Parts, facts: Facts, width: int, new_tokens: int, pages: int) -> None:
        self.parts, self.facts = parts, facts
        self.width, self.new_tokens, self.pages = width, new_tokens, pages
        self.enter: Callable[[Request], int] | None = None
        self._begun: dict[Request, _Work] = {}

    def state(self, requests: Sequence[Request], reach: Sequence[int] = ()) -> State:
        """The state of these rows before their prefill, on the host; reach: of each, nothing where nobody says."""
        draw = Draw(
            torch.tensor([r.temperature for r in requests]),
            torch.tensor([r.top_p for r in requests]),
            torch.tensor([r.top_k for r in requests]),
            torch.tensor([r.seed for r in requests]),
        )
        new = torch.tensor([r.max_new_tokens for r in requests])
        limits = [self.parts.method.limit(len(r.prompt), r.max_new_tokens) for r in requests]
        state = blank([r.prompt for r in requests], limits, self.new_tokens, self.facts, draw, self.width)
        told = torch.tensor(reach) if reach else None
        return self.parts.method.start(replace(state, end=state.prompt + new, reach=told))

    def run(self, chunks: list[Chunk]) -> Iterator[Entered]:
        """Runs the chunks and gives the requests whose prefill is complete with them."""
        for group in _alike([c.request for c in chunks if c.final and c.first == 0]):
            yield from self._enter(group, self._work(group))
        for chunk in chunks:
            if not chunk.final or chunk.first:
                yield from self._part(chunk)

    def forget(self, request: Request) -> None:
        """Drops what a request had begun."""
        self._begun.pop(request, None)

    def _part(self, chunk: Chunk) -> Iterator[Entered]:
        request = chunk.request
        if request not in self._begun:
            self._begun[request] = self._work([request])
        work = self._begun[request]
        assert work.forward is not None
        forward = part(work.forward, chunk.first, chunk.stop)
        if chunk.final:
            yield from self._enter([request], replace(work, forward=forward))
            self.forget(request)
        else:
            stored(self.parts, work.table, forward)

    def _work(self, requests: Sequence[Request]) -> _Work:
        device = self.parts.model.device
        table = torch.zeros(len(requests), self.pages, dtype=torch.int32)
        for row, request in enumerate(requests):
            lease = request.lease
            assert lease is not None
            table[row, : len(lease.pages)] = torch.tensor(lease.pages, dtype=torch.int32)
            if lease.source is not None:
                self.parts.cache.copy_page(lease.source, lease.pages[lease.shared])
        reach = [self.enter(request) for request in requests] if self.enter is not None else ()
        state = self.state(requests, reach).map(lambda x: to_device(x, device))
        return _Work(state, self.parts.method.prefill(state), to_device(table, device))

    def _enter(self, requests: Sequence[Request], work: _Work) -> Iterator[Entered]:
        state, status = prefilled(self.parts, work.state, work.table, work.forward)
        for row, request in enumerate(requests):
            own = slice(row, row + 1)
            yield Entered(request, state.map(lambda x, own=own: x[own]), status[own], work.table[own])


def _alike(requests: list[Request]) -> list[list[Request]]:
    """Groups of similar numbers of tokens, so that few columns are padding."""
    groups: list[list[Request]] = []
    total = 0
    for request in sorted(requests, key=lambda r: r.tokens):
        total += request.tokens
        if groups and request.tokens * (len(groups[-1]) + 1) <= PADDED * total:
            groups[-1].append(request)
        else:
            groups.append([request])
            total = request.tokens
    return groups
