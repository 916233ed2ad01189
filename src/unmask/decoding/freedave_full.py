"""FreeDave (arXiv 2510.00294; see `freedave`) under full attention: LLaDA, Dream.

A REFRESH forward over the whole canvas opens each block. Until the block is finished, copies of it are verified against
what that forward stored: all slots but the block's own (dual cache), or the slots before it, with what follows the
block run in each copy (prefix cache).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.decoding.copies import DraftState, kind_of
from unmask.decoding.forward import Forward, Kind, State, window
from unmask.decoding.freedave import FreeDave
from unmask.decoding.method import Method, extend
from unmask.decoding.sampling import Scores
from unmask.layout import PAD, Layout


@dataclass(frozen=True, kw_only=True)
class RefreshState(DraftState):
    """due [B]: the cache is to be refreshed, nothing is known of the block."""

    due: Tensor


@dataclass(frozen=True, kw_only=True)
class FullAttention(FreeDave[RefreshState]):
    """Blocks counted from the end of the prompt, the last one cut where the canvas ends.

    With token shift no copy predicts the block's first position, so the refresh decides that one and nothing else,
    however unsure it is.
    """

    def limit(self, prompt: int, new_tokens: int) -> int:
        return Method.limit(self, prompt, new_tokens)

    def grain(self) -> int | None:
        return None

    def first_block(self, state: State) -> Tensor:
        return state.prompt

    def start(self, state: State) -> RefreshState:
        return extend(RefreshState, self.first(state), due=torch.ones_like(state.done))

    def plan(self, state: RefreshState) -> Forward:
        at = self.positions(state)
        dual = self.cache == "dual"
        own = torch.where(at < state.limit[:, None], at, -1)
        forward = self.forward(
            state,
            state.used[..., None] & (own >= 0)[:, None],
            torch.zeros_like(at[0]),
            visible=state.limit if dual else state.start,
            # One copy writes to the block's slots, which hides what the refresh left there from all of them.
            store=F.pad(own if dual else torch.full_like(own, -1), (0, (self.count - 1) * self.width), value=-1),
            kind=kind_of(state, Kind.WINDOW),
        )
        forward = forward if dual else self._with_rest(state, forward)
        return _either(state.due, self._refresh(state), forward)

    def _with_rest(self, state: RefreshState, forward: Forward) -> Forward:
        """The copies with all that follows the block in each, position after position, so that what the canvas does
        not hold comes last."""
        rest = max(state.new_tokens - self.size, 0)
        index = torch.arange(rest, device=state.start.device).repeat_interleave(self.count)
        at = state.start[:, None] + self.size + index
        inside = (at < state.limit[:, None]) & state.used.repeat(1, rest)
        zero = torch.zeros_like(at)
        lane = torch.arange(1, self.count + 1, device=at.device).repeat(rest).expand_as(at)
        more = Layout(zero, lane, torch.where(inside, zero, PAD), at.clamp(max=state.canvas.shape[1] - 1))
        a, b = forward.layout, more
        pairs = ((a.order, b.order), (a.lane, b.lane), (a.segment, b.segment), (a.positions, b.positions))
        return replace(
            forward,
            tokens=torch.cat([forward.tokens, state.tokens_at(at)], 1),
            layout=Layout(*(torch.cat(pair, 1) for pair in pairs)),
            store=F.pad(forward.store, (0, at.shape[1]), value=-1),
        )

    def _refresh(self, state: RefreshState) -> Forward:
        """The whole canvas, all of it stored, predicting the block."""
        at = self.positions(state)
        index = torch.arange(state.canvas.shape[1], device=at.device).expand(len(at), -1)
        forward = window(
            state,
            index,
            index < state.limit[:, None],
            torch.zeros_like(index),
            visible=torch.zeros_like(state.start),
            rows=(at - state.facts.shift).clamp(max=index.shape[1] - 1),
            targets=torch.where(state.open_at(at), at, -1),
            kind=torch.full_like(state.start, Kind.REFRESH),
        )
        return replace(forward, draws=self.decided(state)[:, None].expand_as(at))

    def commit(self, state: RefreshState, forward: Forward, scores: Scores) -> RefreshState:
        column = torch.arange(self.width, device=state.start.device)
        forced = state.due & bool(state.facts.shift)
        state, taken = self.accept(state, forward, scores)
        certain = taken.certain
        if not self.at_once:
            certain = certain & (taken.left.sum(-1) <= 1)[:, None]
        only = (taken.sure[..., 0] >= 0) & (column == 0)
        state = self.decide(state, taken, torch.where(forced[:, None], only, certain))
        finished = ~state.open_at(self.positions(state)).any(-1)
        ended = self.ended(state, finished.long())
        ahead = forced | self.at_once
        state = self.draft(state, taken, finished * self.size, alone=torch.zeros_like(ahead), ahead=ahead)
        return replace(state, due=finished, done=ended | (state.start >= state.limit))


def _either(which: Tensor, a: Forward, b: Forward) -> Forward:
    """For each row forward `a` where `which` [B] holds, else `b`."""
    width, rows = max(a.tokens.shape[1], b.tokens.shape[1]), max(a.rows.shape[1], b.rows.shape[1])

    def pick(x: Tensor, y: Tensor, to: int, value: int) -> Tensor:
        wide = (F.pad(z, (0, to - z.shape[1]), value=value) for z in (x, y))
        return torch.where(which[:, None], *wide)

    def column(x: Tensor, y: Tensor, value: int = 0) -> Tensor:
        return pick(x, y, width, value)

    assert a.draws is not None and b.draws is not None
    p, q = a.layout, b.layout
    segment = column(p.segment, q.segment, PAD)
    return Forward(
        tokens=column(a.tokens, b.tokens),
        layout=Layout(column(p.order, q.order), column(p.lane, q.lane), segment, column(p.positions, q.positions)),
        visible=torch.where(which, a.visible, b.visible),
        store=column(a.store, b.store, -1),
        rows=pick(a.rows, b.rows, rows, 0),
        targets=pick(a.targets, b.targets, rows, -1),
        kind=torch.where(which, a.kind, b.kind),
        draws=pick(a.draws, b.draws, rows, 0),
    )


FreeDave.forms |= {"full": FullAttention}
