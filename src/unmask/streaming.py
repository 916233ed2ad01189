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


class Feeder:
    """Feeds each row's streamer: the prompt first, then final text as it grows, and drafts of the rest.

    Text is final up to the first open position, and ends with the first end token. A draft [T] reaches from there to
    the last decided position; open positions hold the mask id. `seconds` is the time spent here, which is
    no decoding time.
    """

    def __init__(self, streamers: Sequence[Streamer], prompts: list[list[int]]) -> None:
        self.streamers = streamers
        self.sent = [len(p) for p in prompts]
        self.seconds = 0.0
        for streamer, prompt in zip(streamers, prompts):
            streamer.put(torch.tensor([prompt]))

    def __call__(self, numbers: list[int], state: State) -> None:
        begun = time.perf_counter()
        self._feed(numbers, state)
        self.seconds += time.perf_counter() - begun

    def _feed(self, numbers: list[int], state: State) -> None:
        eos = torch.minimum(state.first_eos() + 1, state.end)
        for i, number in enumerate(numbers):
            stop = int(eos[i])
            canvas, is_open = state.canvas[i, :stop].cpu(), state.open[i, :stop].cpu()
            waiting = is_open.nonzero()
            frontier = int(waiting[0]) if len(waiting) else stop
            streamer = self.streamers[number]
            if frontier > self.sent[number]:
                streamer.put(canvas[self.sent[number] : frontier])
                self.sent[number] = frontier
            decided = (~is_open).nonzero()
            last = int(decided[-1]) + 1
            if isinstance(streamer, DraftStreamer) and last > frontier:
                streamer.put_draft(canvas[frontier:last])
            if bool(state.done[i]):  # the loop drops the row now
                streamer.end()
