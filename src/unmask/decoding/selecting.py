"""Base of the methods whose window leaves open which positions are committed: selection and stop rules combine freely
with all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from unmask.decoding.forward import Forward, S
from unmask.decoding.method import Method, option
from unmask.decoding.sampling import ScoreRule, Scores
from unmask.decoding.select import RULES, Rule
from unmask.decoding.stop import STOPS, Span, Stop
from unmask.errors import UnmaskError


@dataclass(frozen=True, kw_only=True)
class Selecting(Method[S]):
    """A method with a selection rule that can be exchanged, and room for a stop rule.

    Class attributes: one_block says that a forward decides positions of one span alone, which rules with a memory and
    stop rules need; why_not is the reason shown where it is False. whole says that a forward can speak of every
    position, the prompt's too.
    """

    one_block: ClassVar[bool] = True
    why_not: ClassVar[str] = ""
    whole: ClassVar[bool] = False

    select: Any = option(None, "selection rule instead of the method's own, as name:key=value,...", specs=RULES)  # noqa: RUF009
    stop: Any = option(None, "stop rule that takes all that is open at once, as name:key=value,...", specs=STOPS)  # noqa: RUF009

    def __post_init__(self) -> None:
        super().__post_init__()
        if getattr(self.stop, "context", False) and not self.whole:
            raise UnmaskError(
                f"{self.name}: no stop rule that averages over the prompt too (region=all, masked_only=false): its "
                "forwards speak of a block alone"
            )
        if self.one_block:
            return
        if self.stop is not None:
            raise UnmaskError(f"{self.name}: no stop rule: {self.why_not}")
        if getattr(self.select, "per_block", False):
            raise UnmaskError(f"{self.name}: no selection rule with a memory (credit): {self.why_not}")

    def own_rule(self) -> Rule:
        """The paper's selection rule under the method's options."""
        raise NotImplementedError

    def rule(self) -> Rule:
        """The selection rule in force."""
        return self.own_rule() if self.select is None else self.select

    def own_stop(self) -> Stop | None:
        """The paper's stop rule under the method's options, None where it has none."""
        return None

    def stopping(self) -> Stop | None:
        """The stop rule in force, None if there is none."""
        return self.own_stop() if self.stop is None else self.stop

    def span(self, state: S) -> Span:
        """What is in work."""
        raise NotImplementedError

    def stop_span(self, state: S) -> Span:
        """What a stop rule looks at, and takes where it fires: what is in work, unless a method says otherwise."""
        return self.span(state)

    def ranked(self, own: ScoreRule) -> ScoreRule:
        """The method's own score rule, with the ranking that a selection rule given in its place needs."""
        needed = None if self.select is None else self.select.rank
        return own if needed is None else replace(own, rank=needed)

    def adjust(self, state: S, forward: Forward, logits: Tensor) -> tuple[S, Tensor]:
        change = getattr(self.rule(), "adjust", None)
        if change is None:
            return state, logits
        span = self.span(state)
        column = forward.targets - span.first[:, None]
        eligible = state.open_at(forward.targets) & (column >= 0) & (column < span.size)
        mask_id = state.facts.mask_id
        memory, logits = change(state.memory, span.first, column, eligible, span.size, logits, mask_id)
        return replace(state, memory=memory), logits

    def choose(
        self, state: S, forward: Forward, scores: Scores, eligible: Tensor, quota: Tensor
    ) -> tuple[S, Tensor, Tensor]:
        """What this forward decides: the state, tokens [B, R], and where they become final [B, R].

        Args:
            eligible: [B, R], the open positions the selection rule may take.
            quota: [B], how many it has to take at least.
        """
        chosen = self.rule()(scores.prob, scores.score, eligible, quota)
        stop = self.stopping()
        if stop is None:
            return state, scores.token, chosen
        span = self.stop_span(state)
        state, fires = stop(state, forward, scores, span)
        taken = fires[:, None] & state.open_at(forward.targets) & span.holds(forward.targets)
        return state, torch.where(taken, scores.greedy, scores.token), chosen | taken
