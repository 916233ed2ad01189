"""Feeding streamers: the `put` / `put_draft` / `end` protocol of transformers' streamers, one streamer a row."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from unmask.decoding.forward import State


class Streamer(Protocol):
    """What transformers' TextStreamer, TextIteratorStreamer and the like offer."""

    def put(self, value: Tensor) -> None: ...

    def end(self) -> None: ...


@runtime_checkable
class DraftStreamer(Protocol):
    """A streamer that also wants the text that is still being denoised."""

    def put_draft(self, value: Tensor) -> None: ...


class RowFeeder:
    """Feeds the streamer of one row: the prompt first, then final text as it grows, and drafts of the rest.

    Text is final up to the first open position, and ends with the first end token. A draft [T] reaches from there to
    the last decided position; open positions hold the mask id.
    """

    def __init__(self, streamer: Streamer, prompt: list[int]) -> None:
        self.streamer, self.sent = streamer, len(prompt)
        streamer.put(torch.tensor([prompt]))

    def __call__(self, canvas: Tensor, is_open: Tensor, done: bool) -> None:
        """Takes the row's positions up to the end of its text, both [T] on the host."""
        waiting = is_open.nonzero()
        frontier = int(waiting[0]) if len(waiting) else len(canvas)
        if frontier > self.sent:
            self.streamer.put(canvas[self.sent : frontier])
            self.sent = frontier
        last = int((~is_open).nonzero()[-1]) + 1
        if isinstance(self.streamer, DraftStreamer) and last > frontier:
            self.streamer.put_draft(canvas[frontier:last])
        if done:
            self.streamer.end()


class Feeder:
    """Feeds the streamers of a batch. `seconds` is the time spent here, which is no decoding time."""

    def __init__(self, streamers: Sequence[Streamer], prompts: list[list[int]]) -> None:
        self.rows = [RowFeeder(*pair) for pair in zip(streamers, prompts)]
        self.seconds = 0.0

    def __call__(self, numbers: list[int], state: State) -> None:
        begun = time.perf_counter()
        self._feed(numbers, state)
        self.seconds += time.perf_counter() - begun

    def _feed(self, numbers: list[int], state: State) -> None:
        eos = torch.minimum(state.first_eos() + 1, state.end)
        for i, number in enumerate(numbers):
            stop = int(eos[i])
            # A row that is done is dropped by the loop now.
            self.rows[number](state.canvas[i, :stop].cpu(), state.open[i, :stop].cpu(), bool(state.done[i]))
