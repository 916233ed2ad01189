"""Stop rules: after which forward everything that is still open is taken as the model sees it now.

A stop rule looks at every forward of a method that commits positions by a selection rule. Where it fires, all open
positions of the span become the best token, whatever the selection rule says; each row decides for itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from unmask.decoding.forward import Forward, S, State
from unmask.decoding.sampling import Scores
from unmask.decoding.specs import Specs
from unmask.errors import UnmaskError, unknown

STOPS = Specs("stop rule")


@dataclass(frozen=True)
class Span:
    """What a method works on at the moment: the block, or the whole answer. All [B] but the numbers.

    first: its first position; size: of it; step: forwards spent on it before this one; steps: forwards it takes at
    most.
    """

    first: Tensor
    size: int
    step: Tensor
    steps: int

    def holds(self, positions: Tensor) -> Tensor:
        """Which positions [B, R] lie in it: bool."""
        column = positions - self.first[:, None]
        return (column >= 0) & (column < self.size)


class Stop(Protocol):
    """A stop rule.

    One that wants to see the positions before the span too has an attribute `context`, True.
    """

    def __call__(self, state: S, forward: Forward, scores: Scores, span: Span) -> tuple[S, Tensor]:
        """The state with what the rule wants to remember (`State.memory`), and which rows stop: bool [B]."""
        ...


STATS = ("mean", "median", "quantile", "min")
REGIONS = ("span", "all")
KINDS = ("linear", "cosine", "exp")


@dataclass(frozen=True)
class MarginRule:
    """Stops when the best logits are far enough ahead of the second best: base of SchED and Prophet.

    Args:
        masked_only: average over positions that are still masked, else over decided ones too.
        region: "span" (the block in work; for `masked` the whole answer) or "all" (and all before it, the prompt too).
        first, count: only this part of the span, counted from its beginning; count 0: all that follows.
        stat, q: mean, median (the lower one), the quantile q, or min.
        max_change: share of the masked positions whose best token may be another one than a forward ago.
        patience: forwards in a row that must have passed `max_change` and `min_progress` before the one that stops.
        min_progress: share of the region that has to be decided.

    Raises:
        UnmaskError: a name that does not exist, or a number out of range.
    """

    masked_only: bool = True
    region: str = "span"
    first: int = 0
    count: int = 0
    stat: str = "mean"
    q: float = 0.2
    max_change: float = 1.0
    patience: int = 0
    min_progress: float = 0.0

    def __post_init__(self) -> None:
        _one_of("stat", self.stat, STATS)
        _one_of("region", self.region, REGIONS)
        if min(self.first, self.count, self.patience) < 0 or not 0 <= self.q <= 1:
            raise UnmaskError("stop rule: first, count and patience must be at least 0, q between 0 and 1")

    @property
    def context(self) -> bool:
        """Whether positions before the span count in the average."""
        return self.region == "all" and not self.masked_only

    def level(self, span: Span) -> Tensor:
        """The threshold in units of logits, float64 [B]."""
        raise NotImplementedError

    def __call__(self, state: S, forward: Forward, scores: Scores, span: Span) -> tuple[S, Tensor]:
        column = forward.targets - span.first[:, None]
        is_open = state.open_at(forward.targets) & span.holds(forward.targets)
        stop = min(self.first + self.count, span.size) if self.count else span.size
        part = (column >= self.first) & (column < stop)
        size = max(stop - self.first, 0)
        whole = span.first + size if self.region == "all" else torch.full_like(span.first, max(size, 1))
        decided = 1 - (is_open & part).sum(-1) / whole
        memory, change = self._compare(state.memory, scores.greedy, is_open, column, span)
        steady = (change <= self.max_change) & (decided >= self.min_progress) & is_open.any(-1)
        memory["stop_quiet"] = torch.where(steady, memory["stop_quiet"] + 1, 0)
        among = is_open & part if self.masked_only else _told(state, forward) & (part | ((column < 0) & self.context))
        clear = self._pool(_margin(scores), among) >= self.level(span)
        fires = steady & clear & (memory["stop_quiet"] > self.patience) & (size > 0)
        return replace(state, memory=memory), fires

    def _compare(
        self, memory: dict[str, Tensor], best: Tensor, is_open: Tensor, column: Tensor, span: Span
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The memory with this forward's best tokens of the span [B, R] (what was noted of another span is dropped),
        and the share of open positions that had others."""
        none = torch.full_like(span.first, -1)
        same = memory.get("stop_first", none) == span.first
        old = memory.get("stop_best", none[:, None].expand(-1, span.size))
        old = torch.where(same[:, None], old, -1)
        place = column.clamp(0, span.size - 1)
        change = (is_open & (best != old.gather(1, place))).sum(-1) / is_open.sum(-1).clamp(min=1)
        # One column more than there are takes what lies outside.
        room = torch.cat([old, none[:, None]], 1).scatter(1, torch.where(column == place, place, span.size), best)
        quiet = torch.where(same, memory.get("stop_quiet", none), 0)
        return memory | {"stop_first": span.first, "stop_best": room[:, :-1], "stop_quiet": quiet}, change

    def _pool(self, margin: Tensor, among: Tensor) -> Tensor:
        """The margin [B, R] pooled over some positions, float64 [B]; infinite over none: all that matters is
        decided."""
        count = among.sum(-1)
        last = (count - 1).clamp(min=0)
        if self.stat == "mean":
            pooled = torch.where(among, margin, 0).sum(-1) / count.clamp(min=1)
        else:
            share = {"median": 0.5, "quantile": self.q, "min": 0.0}[self.stat]
            at = last * share
            low, high = at.floor().long(), (at.floor() if self.stat == "median" else at.ceil()).long()
            rising = margin.masked_fill(~among, torch.inf).sort(-1).values
            below, above = (rising.gather(1, i[:, None])[:, 0] for i in (low, high))
            pooled = torch.where(low == high, below, below + (above - below) * (at - low))
        return torch.where(count > 0, pooled, torch.inf).double()


@STOPS.add("sched")
@dataclass(frozen=True)
class Sched(MarginRule):
    """A threshold that falls from `high` to `low` with the progress p = forward / (forwards - 1): SchED (arXiv
    2512.02892).

    Args:
        kind: how it falls: linear, cosine, or exp (as exp(-k p), so it ends a little above `low`).
    """

    kind: str = "cosine"
    high: float = 7.5
    low: float = 2.5
    k: float = 4.0
    max_change: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("kind", self.kind, KINDS)

    def level(self, span: Span) -> Tensor:
        if span.steps <= 1:
            return torch.full_like(span.step, self.low, dtype=torch.double)
        p = (span.step.double() / (span.steps - 1)).clamp(max=1)
        if self.kind == "linear":
            return self.high + (self.low - self.high) * p
        fall = (1 + (torch.pi * p).cos()) / 2 if self.kind == "cosine" else (-self.k * p).exp()
        return self.low + (self.high - self.low) * fall


@STOPS.add("prophet")
@dataclass(frozen=True)
class Prophet(MarginRule):
    """`high` in the first third of the forwards, `middle` in the second, `low` in the last: Prophet (arXiv
    2508.19982)."""

    high: float = 7.5
    middle: float = 5.0
    low: float = 2.5

    def level(self, span: Span) -> Tensor:
        thrice = 3 * (span.step + 1)  # whole numbers: a third is no float
        late = torch.where(thrice < 2 * span.steps, self.middle, self.low)
        return torch.where(thrice < span.steps, self.high, late).double()


def _margin(scores: Scores) -> Tensor:
    """How far the best allowed token is ahead of any other, in raw logits [B, R]; negative behind a banned one."""
    top = scores.logits.topk(2, dim=-1)
    own = scores.logits.gather(-1, scores.greedy[..., None])[..., 0]
    return own - torch.where(top.indices[..., 0] == scores.greedy, top.values[..., 1], top.values[..., 0])


def _told(state: State, forward: Forward) -> Tensor:
    """Targets [B, R] whose row is the model's word on them: with token shift the first position of a window has no row
    in it. Position 0 takes row 0 there, as in the official code."""
    shift = state.facts.shift
    speaks = forward.layout.positions.gather(1, forward.rows.clamp(min=0)) + shift
    return (forward.targets >= 0) & (speaks == forward.targets.clamp(min=shift))


def _one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise unknown(f"value of {name} (stop rule)", value, allowed)
