"""Jacobi decoding: guess the next tokens, run them all at once, keep what holds, guess again.

Paper: "Fast and Accurate Causal Parallel Decoding using Jacobi Forcing" (arXiv 2512.14681; official code
hao-ai-lab/JacobiForcing). Works with any causal model, and takes fewer forwards with one that was trained for it. A
forward runs the newest token and the guesses behind it; those that hold become text, the row of the last one gives one
token more, and what all rows say are the next guesses. `schedule="window"` keeps the window full, `"block"` works
through blocks (the official scripts), `"engine"` is the official engine's window, which runs the newest token twice and
throws its last row away. On purpose different: the token behind an accepted run is text at once, so the last forward of
the official scripts is saved and an end token behind a full block is noticed; a full window keeps it; windows end with
the text; sampling gives the text of autoregressive sampling with the same seed. `prefill_draft="update"` gives the
official scripts' forwards.

    unmask generate JacobiForcing/JacobiForcing_Coder_7B_v1 "..." --method jacobi
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmask.decoding.forward import Forward, Kind, State, window
from unmask.decoding.method import doubling, extend, option, register
from unmask.decoding.sampling import Scores
from unmask.decoding.verifying import LineState, Verifying, holding, moved, widened


@register("jacobi", title="Fast and Accurate Causal Parallel Decoding using Jacobi Forcing", arxiv="2512.14681")
@dataclass(frozen=True, kw_only=True)
class Jacobi(Verifying[LineState]):
    """A draft of fixed length verified and redrawn at every forward."""

    schedule: str = option(
        "window",
        "a window that is always full, blocks one after the other, or the official engine's window",
        choices=("window", "block", "engine"),
    )

    def reaches(self, new_tokens: int) -> tuple[int, ...]:
        return () if self.schedule == "engine" else doubling(1, self.block_size)

    def start(self, state: State) -> LineState:
        state, last, line = self.begin(state, self.block_size)
        return extend(LineState, state, last=last, line=line)

    def _end(self, state: LineState, last: Tensor) -> Tensor:
        """Where guesses end when the newest token is at `last` [B]: behind the text, or behind the block."""
        if self.schedule != "block":
            return state.limit
        return block_end(state, last, self.block_size)

    def plan(self, state: LineState) -> Forward:
        column = torch.arange(self.block_size, device=state.canvas.device)
        positions = state.last[:, None] + column
        end = torch.minimum(self._end(state, state.last), state.limit - 1)
        end = torch.minimum(end, state.last + state.within(self.block_size))
        valid = positions < end[:, None]
        targets = torch.where(valid, positions + 1, -1)
        forward = window(
            state,
            positions,
            valid,
            positions,
            visible=state.last,
            rows=column.expand_as(positions),
            targets=targets,
            kind=torch.full_like(state.last, Kind.DRAFT),
        )
        return replace(forward, tokens=state.line, draws=self.numbers(state, targets))

    def advance(self, forward: Forward, held: Tensor) -> Tensor:
        if self.schedule != "engine":
            return super().advance(forward, held)
        return torch.where(forward.kind == Kind.PREFILL, 0, held.clamp(min=1))

    def commit(self, state: LineState, forward: Forward, scores: Scores) -> LineState:
        size = self.block_size
        column = torch.arange(size, device=state.canvas.device)
        token = widened(scores.token, size)
        used = widened(forward.targets, size, -1) >= 0
        count = self.advance(forward, holding(state.line, token, used))
        targets = state.last[:, None] + 1 + column
        state = state.fill(targets, token, used & (column < count[:, None]))
        last = state.last + count
        if self.schedule == "engine":
            used = used & (column < size - 1)
        guess, known = moved(token, used, count - 1)
        positions = last[:, None] + column
        known &= positions < self._end(state, last)[:, None]
        line = torch.where(known, guess, self.drafts(state, positions))
        return replace(state, last=last, line=self.headed(state, last, line), done=~state.unfinished())


def block_end(state: State, last: Tensor, size: int) -> Tensor:
    """Where the block ends that holds position `last` [B]: blocks of `size` begin behind the prompt."""
    behind = (last - state.prompt).clamp(min=0)
    return state.prompt + (behind // size + 1) * size
