"""FreeDave (arXiv 2510.00294; see `freedave`) on models with block attention, whose keys of finished blocks are exact:
block by block as published, and with a window that slides."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.decoding.copies import DraftState, kind_of
from unmask.decoding.forward import Forward, Kind, State, prompt_window, window
from unmask.decoding.freedave import FreeDave
from unmask.decoding.method import extend
from unmask.decoding.sampling import Scores


@dataclass(frozen=True, kw_only=True)
class Blocks(FreeDave[DraftState]):
    """A first look at the block, drafts, and a forward that stores the finished block; eager windows hold the next
    blocks too."""

    def start(self, state: State) -> DraftState:
        return self.first(state)

    def _full(self, state: DraftState) -> Tensor:
        """Whether the window's first block is finished, so that it is to be stored: bool [B]."""
        return ~state.open_at(self.positions(state)[:, : self.size]).any(-1)

    def prefill(self, state: DraftState) -> Forward | None:
        width = state.longest // self.size * self.size
        none = state.canvas[:, :0]
        return prompt_window(state, state.start, width, self.size, none, none) if width else None

    def plan(self, state: DraftState) -> Forward:
        full, at = self._full(state), self.positions(state)
        column = torch.arange(self.width, device=at.device)
        stores = full[:, None] & (column < self.size)
        runs = torch.where(full[:, None], stores, at < state.limit[:, None])
        slots = torch.where(stores, at, -1)
        return self.forward(
            state,
            state.used[..., None] & runs[:, None],
            column // self.size,
            visible=state.start,
            store=F.pad(slots, (0, (self.count - 1) * self.width), value=-1),
            kind=torch.where(full, Kind.COMMIT, kind_of(state, Kind.DENOISE)),
        )

    def commit(self, state: DraftState, forward: Forward, scores: Scores) -> DraftState:
        full = self._full(state)
        ended = self.ended(state, full.long())
        state, taken = self.accept(state, forward, scores)
        certain = taken.certain
        if not self.at_once:
            last = (state.start + self.size >= state.limit) | (not self.eager)
            closed = ~taken.left[:, : self.size].any(-1)
            certain = certain & torch.where(last, taken.left.sum(-1) <= 1, closed)[:, None]
        state = self.decide(state, taken, certain)
        moved = full * self.size
        ahead = torch.full_like(full, self.at_once)
        state = self.draft(state, taken, moved, alone=~full & self._full(state), ahead=ahead)
        return replace(state, done=full & (ended | (state.start >= state.limit)))


@dataclass(frozen=True, kw_only=True)
class SlidingState(DraftState):
    """source, target [B, W]: scratch slots of the blocks just finished and where they go, -1 for none."""

    source: Tensor
    target: Tensor


@dataclass(frozen=True, kw_only=True)
class Sliding(FreeDave[SlidingState]):
    """The window moves with the first unfinished block. Each copy leaves the keys of the blocks it finishes in scratch
    slots behind the canvas; those of the accepted one are moved to their place before the next forward.

    A window holds more masks than a forward can fill, so every accepted state has a guess for its first unfinished
    block; the first window's comes from the prefill.
    """

    def slots(self, limit: int) -> int:
        return limit + self.count * self.width

    def start(self, state: State) -> SlidingState:
        base = self.first(state)
        none = base.start[:, None].new_full((1, self.width), -1).expand(len(base.start), -1)
        return extend(SlidingState, base, source=none, target=none)

    def prefill(self, state: SlidingState) -> Forward:
        first, at = state.start[:, None], self.positions(state)
        width = state.longest // self.size * self.size + self.width
        index = torch.arange(width, device=at.device).expand(len(at), -1)
        forward = window(
            state,
            index,
            (index < first + self.width) & (index < state.limit[:, None]),
            index // self.size,
            visible=torch.zeros_like(state.start),
            rows=at,
            targets=torch.where(state.open_at(at), at, -1),
            kind=torch.full_like(state.start, Kind.PREFILL),
        )
        store = torch.where(index < first, forward.store, -1)
        return replace(forward, store=store, draws=torch.zeros_like(at))

    def plan(self, state: SlidingState) -> Forward:
        at = self.positions(state)
        column = torch.arange(self.width, device=at.device)
        valid = state.used[..., None] & (at < state.limit[:, None])[:, None]
        kept = valid & (column < self._finished(state, state.masks)[..., None] * self.size)
        scratch = state.limit[:, None] + torch.arange(self.count * self.width, device=at.device)
        forward = self.forward(
            state,
            valid,
            column // self.size,
            visible=state.start,
            store=torch.where(kept.flatten(1), scratch, -1),
            kind=kind_of(state, Kind.DENOISE),
        )
        return replace(forward, move=(state.source, state.target))

    def _finished(self, state: SlidingState, is_open: Tensor) -> Tensor:
        """Leading blocks of the window without a mask under is_open [B, ..., W], as far as the canvas goes: int64."""
        blocks = is_open.unflatten(-1, (-1, self.size)).any(-1)
        room = torch.div(state.limit - state.start, self.size, rounding_mode="floor")
        count = (~blocks).int().cumprod(-1).sum(-1)
        return torch.minimum(count, room.view(-1, *[1] * (count.dim() - 1)))

    def commit(self, state: SlidingState, forward: Forward, scores: Scores) -> SlidingState:
        at, column = self.positions(state), torch.arange(self.width, device=state.start.device)
        state, taken = self.accept(state, forward, scores)
        finished = self._finished(state, taken.left)
        state = self.decide(state, taken, taken.certain)
        moved = finished * self.size
        scratch = state.limit[:, None] + taken.best[:, None] * self.width + column
        ended, yes = self.ended(state, finished), torch.ones_like(state.done)
        return replace(
            self.draft(state, taken, moved, alone=~yes, ahead=yes),
            source=torch.where(column < moved[:, None], scratch, -1),
            target=torch.where(column < moved[:, None], at, -1),
            done=~state.open.any(-1) | ended,
        )


FreeDave.forms |= {"block": Blocks, "sliding": Sliding}
