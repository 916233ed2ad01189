"""Block after block of a canvas under full attention, whose keys a cache can only hold approximately.

The keys of a bidirectional model change whenever a token anywhere is decided, so what is cached goes stale. A REFRESH
forward runs the whole canvas and stores all of it; a WINDOW forward recomputes part of it against what is stored:

    prefix    the block and all that follows it, against the slots before the block
    dual      the block, against every other slot
    vicinity  the block and some positions on both sides, against every other slot

Slots are canvas positions. A window stores what it recomputes in place: nobody else reads those slots before the next
refresh, so this equals throwing it away, and the forward hides the stale copies of its own slots by the common rule.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from unmask.decoding.forward import Forward, Kind, State, window
from unmask.decoding.method import extend, need_full, option, resolve, round_up
from unmask.decoding.sampling import ScoreRule, Scores
from unmask.decoding.selecting import Selecting
from unmask.decoding.stop import Span
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from typing_extensions import Self

    from unmask.models.families import Family


@dataclass(frozen=True, kw_only=True)
class WindowState(State):
    """round [B]: forwards spent on the block in work."""

    round: Tensor


W = TypeVar("W", bound=WindowState)


@dataclass(frozen=True, kw_only=True)
class Windows(Selecting[W]):
    """Geometry of the blocks and of the forwards over them. The last block is cut where the canvas ends."""

    block_size: int = option(32, "tokens a block, counted from the end of the prompt", alias=("block_length",), low=1)
    cache: str = option("none", "what is not recomputed at each forward", choices=("none", "prefix", "dual"))

    def bind(self, family: Family, new_tokens: int) -> Self:
        need_full(self.name, family)
        return self

    def slots(self, limit: int) -> int:
        return 0 if self.cache == "none" else limit

    def origin(self, state: W) -> Tensor:
        """Where the grid of blocks begins [B]."""
        return state.prompt

    def first(self, state: W) -> Tensor:
        """The first position of the block in work [B]: the one that holds the first open position."""
        ahead = (state.open.int().argmax(-1) - self.origin(state)).clamp(min=0)
        return self.origin(state) + torch.div(ahead, self.block_size, rounding_mode="floor") * self.block_size

    def block(self, state: W) -> Tensor:
        """The positions of the block in work [B, block_size], those behind the canvas too."""
        return self.first(state)[:, None] + torch.arange(self.block_size, device=state.canvas.device)

    def span(self, state: W) -> Span:
        return Span(self.first(state), self.block_size, state.round, self.block_size)

    def forward(self, state: W, kind: Tensor, before: int = 0, behind: int = 0, all_rows: bool = False) -> Forward:
        """The forward of each row's kind [B]: the whole canvas, or where it is WINDOW what the cache leaves over.

        Args:
            before, behind: positions around the block that a window recomputes with it (dual, vicinity).
            all_rows: predictions are wanted for all that is recomputed, not for the block alone.
        """
        first, narrow = self.first(state), kind == Kind.WINDOW
        begin = torch.where(narrow, (first - before).clamp(min=0), 0)
        stop, seen = state.limit, torch.where(narrow, state.limit, 0)
        if self.cache == "prefix":
            seen = torch.where(narrow, first, 0)
        else:
            stop = torch.where(narrow, torch.minimum(stop, first + self.block_size + behind), stop)
        positions = begin[:, None] + torch.arange(state.canvas.shape[1], device=first.device)
        targets = positions if all_rows else self.block(state)
        targets = torch.where(targets < stop[:, None], targets, -1)
        return window(
            state,
            positions,
            positions < stop[:, None],
            torch.zeros_like(positions),
            visible=seen,
            # With token shift the first position of a window has no row in it; it is never open then.
            rows=(targets - state.facts.shift - begin[:, None]).clamp(min=0),
            targets=targets,
            kind=kind,
            cached=self.cache != "none",
        )

    def settle(self, state: W, forward: Forward, token: Tensor, chosen: Tensor) -> W:
        """The state with the chosen tokens [B, R] written, and the forward counted."""
        block = self.block(state)
        state = state.fill(forward.targets, token, chosen)
        pending = state.open_at(block).any(-1)
        return replace(state, round=torch.where(pending, state.round + 1, 0), done=~state.unfinished())


@dataclass(frozen=True, kw_only=True)
class RefreshedBlocks(Windows[WindowState]):
    """Fast-dLLM's loop: a refresh at the beginning of each block, which decides positions too, then windows.

    With token shift a window cannot predict its own first position, so the first refresh of a block decides that one
    and nothing else, however unsure it is.
    """

    steps: int | None = option(
        None, "forwards planned in all, each commits its share; None: the selection rule decides", low=1
    )
    eps: float = option(1e-3, "end of the time grid by which steps are planned with token shift", low=0.0, high=1.0)
    refresh_every: int | None = option(
        None, "forwards of a block between two refreshes; None: one refresh a block", low=1
    )

    def bind(self, family: Family, new_tokens: int) -> Self:
        blocks = round_up(new_tokens, self.block_size) // self.block_size
        if self.steps is not None and self.steps % blocks:
            raise UnmaskError(f"{self.name}: steps {self.steps} is not a multiple of the {blocks} blocks")
        if self.refresh_every is not None and self.cache == "none":
            raise UnmaskError(f"{self.name}: refresh_every needs cache prefix or dual; without one nothing goes stale")
        return super().bind(family, new_tokens)

    def start(self, state: State) -> WindowState:
        return extend(WindowState, state, round=torch.zeros_like(state.prompt))

    def confidence(self, state: WindowState) -> ScoreRule:
        """How the selection rule of the paper wants its scores."""
        raise NotImplementedError

    def score_rule(self, state: WindowState) -> ScoreRule:
        own = self.confidence(state)
        if self.steps is not None:
            own = replace(own, rank="entropy" if state.facts.shift else "prob")
        return self.ranked(own)

    def plan(self, state: WindowState) -> Forward:
        if self.cache == "none":
            return self.forward(state, torch.full_like(state.prompt, Kind.DENOISE))
        due = state.round % resolve(self.refresh_every, state.new_tokens) == 0
        return self.forward(state, torch.where(due, Kind.REFRESH, Kind.WINDOW))

    def candidates(self, state: WindowState, forward: Forward, scores: Scores) -> Tensor:
        """The positions the rule may choose from: bool [B, R]."""
        eligible = state.open_at(forward.targets)
        if self.cache == "none" or not state.facts.shift:
            return eligible
        return eligible & ((state.round > 0)[:, None] | (forward.targets == self.first(state)[:, None]))

    def commit(self, state: WindowState, forward: Forward, scores: Scores) -> WindowState:
        eligible = self.candidates(state, forward, scores)
        state, token, chosen = self.choose(state, forward, scores, eligible, self._quota(state, eligible))
        return self.settle(state, forward, token, chosen)

    def _quota(self, state: WindowState, eligible: Tensor) -> Tensor:
        """How many positions this forward has to commit at least [B]."""
        one, at = torch.ones_like(state.round), state.round
        if self.steps is None:
            return one
        steps = self.steps * self.block_size // round_up(state.new_tokens, self.block_size)
        if not state.facts.shift:
            size = (self.block(state) < state.limit[:, None]).sum(-1)
            return (size // steps + (at < size % steps).long()).clamp(min=1)
        left = eligible.sum(-1)
        # float32 as in the official sampler: the truncation to whole positions depends on it.
        grid = torch.linspace(1, self.eps, steps + 1, device=left.device)
        share = 1 - grid[(at + 1).clamp(max=steps)] / grid[at.clamp(max=steps)]
        quota = torch.where(at + 1 >= steps, left, (left * share).long())
        return quota if self.cache == "none" else torch.where(at == 0, one, quota)
