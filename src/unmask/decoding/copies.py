"""Base of methods that forward several drafts of one window as copies of it and keep what proves right.

A copy sees the cache and itself. Each form of such a method says which columns run, what they see and store, and when
the window moves; building the drafts, checking them and writing what is accepted is here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.decoding.forward import Forward, Kind, State
from unmask.decoding.method import Blockwise, extend
from unmask.decoding.reveal import Reveal, States, accepted
from unmask.decoding.sampling import ScoreRule, Scores
from unmask.layout import Layout, copies


@dataclass(frozen=True, kw_only=True)
class DraftState(State):
    """The window and its drafts.

    start [B]: first position of the window. tokens, masks [B, K, W], added, used [B, K]: the drafts to be verified next
    (`States`). tree [B, M, R]: the states drafts are chosen from.
    """

    start: Tensor
    tokens: Tensor
    masks: Tensor
    added: Tensor
    used: Tensor
    tree: Tensor

    @property
    def drafts(self) -> States:
        return States(self.tokens, self.masks, self.added, self.used)


D = TypeVar("D", bound=DraftState)


@dataclass(frozen=True)
class Accepted:
    """The accepted draft of each row.

    best: its number [B]. left [B, W]: what it leaves open. guess, sure [B, W, 2]: the two best predictions of that and
    their probabilities, -1 where there is none. certain [B, W]: which of the first are what the decoder does next.
    """

    best: Tensor
    left: Tensor
    guess: Tensor
    sure: Tensor
    certain: Tensor


def kind_of(state: DraftState, plain: int) -> Tensor:
    """DRAFT where the next forward holds anything that is not decided yet, else `plain`: [B]."""
    return torch.where((state.used & (state.added > 0)).any(-1), Kind.DRAFT, plain)


@dataclass(frozen=True, kw_only=True)
class Copies(Blockwise[D]):
    """Drafts of a window of `width` positions, `count` of them a forward, checked against the decoder `reveal`."""

    @property
    def count(self) -> int:
        raise NotImplementedError

    @property
    def width(self) -> int:
        raise NotImplementedError

    @property
    def reveal(self) -> Reveal:
        raise NotImplementedError

    @property
    def subset(self) -> bool:
        """Whether drafts need to match in what they hold alone (`accepted`)."""
        return False

    @property
    def at_once(self) -> bool:
        """Whether what a prediction makes certain is decided with it, not with the next draft."""
        return True

    def tree(self) -> Tensor:
        """The states that drafts are chosen from: int64 [M, R]."""
        raise NotImplementedError

    def score_rule(self, state: D) -> ScoreRule:
        return ScoreRule("raw", ban=(state.facts.mask_id,))

    def first(self, state: State) -> DraftState:
        """The state before the first forward: the window at the first block, and nothing known of it."""
        start, none = self.first_block(state), torch.zeros_like(state.prompt)
        at = start[:, None] + torch.arange(self.width, device=start.device)
        copy = torch.arange(self.count, device=start.device)
        return extend(
            DraftState,
            state,
            start=start,
            tokens=state.tokens_at(at)[:, None].repeat(1, self.count, 1),
            masks=state.open_at(at)[:, None].repeat(1, self.count, 1),
            added=none[:, None].repeat(1, self.count),
            used=(copy == 0).repeat(len(start), 1),
            tree=self.tree().to(start.device).expand(len(start), -1, -1),
        )

    def positions(self, state: D) -> Tensor:
        """The window [B, W]; it may reach beyond the canvas."""
        return state.start[:, None] + torch.arange(self.width, device=state.start.device)

    def decided(self, state: D) -> Tensor:
        """How many positions behind the prompt are decided [B]: with the position, what a random draw depends on."""
        return state.limit - state.prompt - state.open.sum(-1)

    def draft(self, state: D, taken: Accepted, moved: Tensor, alone: Tensor, ahead: Tensor) -> D:
        """The state with its window moved on and new drafts from what the accepted one predicts.

        Args:
            moved: [B], positions.
            alone: [B], rows whose next forward holds the window as it is and nothing else.
            ahead: [B], rows in which what is certain has been decided.
        """
        state = replace(state, start=state.start + moved)
        at, column = self.positions(state), torch.arange(self.width, device=moved.device) + moved[:, None]
        is_open = state.open_at(at)
        known = is_open & (column < self.width) & ~alone[:, None]
        both = column.clamp(max=self.width - 1)[..., None].expand(-1, -1, 2)
        sure = torch.where(known[..., None], taken.sure.gather(1, both), -1.0)
        window = (state.tokens_at(at), is_open, taken.guess.gather(1, both), sure)
        first = torch.zeros_like(state.start)
        if not self.at_once:  # drafts begin with a step of the decoder
            first = torch.where(ahead, 0, self.reveal.step(is_open, sure[..., 0]).sum(-1))
        drafts = self.reveal.drafts(*window, state.tree, self.count, first)
        return replace(state, tokens=drafts.tokens, masks=drafts.open, added=drafts.added, used=drafts.used)

    def forward(self, state: D, valid: Tensor, order: Tensor, **more: Any) -> Forward:
        """The forward over all drafts, copy after copy, predicting what each leaves open.

        Args:
            valid: [B, K, W], which columns hold a token.
            order: [W].
            more: visible, store and kind of the forward.
        """
        at = self.positions(state)
        zero, wide = torch.zeros_like(at), (len(at), -1)
        base = Layout(order.expand_as(at), zero, zero, at.clamp(max=state.canvas.shape[1] - 1))
        column = torch.arange(self.count * self.width, device=at.device)
        drafts = state.drafts
        return Forward(
            tokens=drafts.tokens.reshape(wide),
            layout=copies(base, self.count).with_padding(valid.reshape(wide)),
            # With token shift the first column's row is missing; that position is never open then.
            rows=(column - state.facts.shift).clamp(min=0).expand(wide),
            targets=torch.where(valid & drafts.open, at[:, None], -1).reshape(wide),
            draws=(self.decided(state)[:, None] + drafts.added).repeat_interleave(self.width, 1),
            **more,
        )

    def accept(self, state: D, forward: Forward, scores: Scores) -> tuple[D, Accepted]:
        """The state with the accepted draft written."""
        drafts, at, shape = state.drafts, self.positions(state), state.tokens.shape
        spare = (0, shape[1] * shape[2] - forward.targets.shape[1])
        guess = F.pad(scores.token, spare).view(shape)
        sure = F.pad(torch.where(forward.targets >= 0, scores.prob, -1.0), spare, value=-1.0).view(shape)
        certain = self.reveal.step(drafts.open, sure)
        best = accepted(drafts, guess, certain, self.subset)
        pick = best[:, None, None].expand(-1, 1, shape[2])
        chosen = (drafts.tokens, drafts.open, guess, sure, certain)
        tokens, left, guess, sure, certain = (x.gather(1, pick)[:, 0] for x in chosen)
        state = state.fill(at, tokens, state.open_at(at) & ~left)
        second, other = self._second(state, scores.logits, best, guess)
        return state, Accepted(best, left, torch.stack([guess, second], -1), torch.stack([sure, other], -1), certain)

    def _second(self, state: D, logits: Tensor, best: Tensor, guess: Tensor) -> tuple[Tensor, Tensor]:
        """The best predictions but for `guess` [B, W] and their probabilities [B, W]."""
        if not logits.shape[1] or state.tree.shape[1] <= self.count:  # nothing predicted, or a chain of first guesses
            return guess, torch.zeros_like(guess, dtype=torch.float32)
        column = best[:, None] * self.width + torch.arange(self.width, device=best.device)
        row = torch.arange(len(best), device=best.device)[:, None]
        prob = logits[row, column.clamp(max=logits.shape[1] - 1)].float().softmax(-1)
        banned = torch.full_like(guess, state.facts.mask_id)
        other = prob.scatter(-1, torch.stack([guess, banned], -1), -1.0).max(-1)
        return other.indices, other.values

    def decide(self, state: D, taken: Accepted, certain: Tensor) -> D:
        """The state with the accepted draft's predictions at `certain` [B, W] written."""
        return state.fill(self.positions(state), taken.guess[..., 0], certain)
