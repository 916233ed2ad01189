"""Decoding that reveals masks step by step: its order, drafts of its next states, and which of them it would have made.

All functions are batched over leading dimensions. A window is W positions in blocks of equal length; `is_open` marks
its masks, `sure` is the confidence of the token guessed for each (-1 where there is no guess).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from heapq import heappop, heappush

import torch
from torch import Tensor

from unmask.decoding.select import rank

# How branches are weighed: a factor for each mask a state adds, one for each time a mask is passed over for one behind
# it in the order, and the power of a confidence that is the chance of its guess to stay. They decide forwards, never
# text; chosen on the one-token paths of random models and of a trained one.
ADDED, PASSED, SHARP = 0.6, 0.5, 0.5


@dataclass(frozen=True)
class States:
    """K states of a window. tokens, open: [B, K, W]. added [B, K]: masks filled. used [B, K]: False for copies that no
    guesses are left for; the first is always used."""

    tokens: Tensor
    open: Tensor
    added: Tensor
    used: Tensor


@dataclass(frozen=True)
class Reveal:
    """A decoder, by what it reveals after one forward.

    Blocks are filled one after the other; in the first unfinished one the surest mask goes (ties: the leftmost).

    Args:
        block: length of a block.
        threshold: all masks of that block go whose confidence reaches it, at least the surest; None: one alone.
        leftmost: the leftmost mask goes instead of the surest.
    """

    block: int
    threshold: float | None = None
    leftmost: bool = False

    def order(self, is_open: Tensor, sure: Tensor) -> Tensor:
        """In which place each mask would be revealed if no guess changed: int64 [..., W], W where there is none."""
        blocks, before = self._blocks(is_open)
        score = sure.unflatten(-1, (-1, self.block))
        inside = rank(torch.zeros_like(score) if self.leftmost else score, blocks)
        return (inside + before).flatten(-2).masked_fill(~is_open, is_open.shape[-1])

    def step(self, is_open: Tensor, sure: Tensor) -> Tensor:
        """The masks revealed now: bool [..., W]."""
        chosen = self.order(is_open, sure) == 0
        if self.threshold is not None:
            blocks, before = self._blocks(is_open)
            chosen |= (blocks & (before == 0)).flatten(-2) & (sure >= self.threshold)
        return chosen & (sure >= 0)

    def _blocks(self, is_open: Tensor) -> tuple[Tensor, Tensor]:
        """`is_open` by block [..., n, block], and the masks before each block [..., n, 1]."""
        blocks = is_open.unflatten(-1, (-1, self.block))
        count = blocks.sum(-1, keepdim=True)
        return blocks, count.cumsum(-2) - count

    def drafts(
        self, tokens: Tensor, is_open: Tensor, guess: Tensor, sure: Tensor, tree: Tensor, count: int, first: Tensor
    ) -> States:
        """The `count` likeliest states of `tree` that can be built.

        Args:
            tokens, is_open: [B, W].
            guess, sure: [B, W, 2], the two best guesses of each position.
            tree: [B, M, R], see `chain` and `branches`; the state that adds nothing is its first.
            first: [B], masks that all states hold, the first ones in order.
        """
        best, width = sure[..., 0], is_open.shape[-1]
        order = self.order(is_open, best)
        known = (is_open & (best >= 0)).sum(-1) - first
        later = torch.where(order < width, order - first[:, None], width)
        value = _value(tree, self._by_order(later, sure, tree.shape[-1]), known)
        likely = value.sort(dim=-1, descending=True, stable=True)
        picked = likely.indices[:, :count]
        chosen = tree.gather(1, picked[..., None].expand(-1, -1, tree.shape[-1]))
        reach = later.clamp(0, tree.shape[-1] - 1)[:, None].expand(-1, count, -1)
        pick = torch.where((later < tree.shape[-1])[:, None], chosen.gather(2, reach), 0)
        pick = torch.where((later < 0)[:, None], 1, pick) * is_open[:, None]
        filled = torch.where(pick == 2, guess[:, None, :, 1], guess[:, None, :, 0])
        return States(
            torch.where(pick > 0, filled, tokens[:, None]),
            is_open[:, None] & (pick == 0),
            (pick > 0).sum(-1),
            likely.values[:, :count] > -torch.inf,
        )

    def _by_order(self, later: Tensor, sure: Tensor, places: int) -> Tensor:
        """For each place in the order [B, R]: log chances of both guesses and the number of the block: [B, R, 3]."""
        stays = sure[..., 0].clamp(0, 1) ** SHARP
        other = (1 - stays) * sure[..., 1].clamp(0, 1) / (1 - sure[..., 0]).clamp(min=1e-6)
        block = torch.arange(later.shape[-1], device=later.device) // self.block
        what = torch.stack([stays.clamp(1e-6, 1).log(), other.clamp(1e-6, 1).log(), block.expand_as(stays)], -1)
        size = max(places, later.shape[-1]) + 1
        at = torch.where(later < 0, size - 1, later)[..., None].expand_as(what)
        return what.new_zeros(len(what), size, 3).scatter(1, at, what)[:, :places]


def _value(tree: Tensor, chances: Tensor, known: Tensor) -> Tensor:
    """Log chance [B, M] of each state of a tree, -inf where it needs more than `known` [B] masks or skips a block."""
    member, place = tree > 0, torch.arange(tree.shape[-1], device=tree.device)
    gap = member.int().cumprod(-1).sum(-1)  # the first place that is passed over
    passed = torch.where(member, place - member.int().cumsum(-1) + 1, 0).sum(-1)
    guess = torch.where(tree == 2, chances[:, None, :, 1], chances[:, None, :, 0])
    value = torch.where(member, guess + math.log(ADDED), 0.0).sum(-1) + passed * math.log(PASSED)
    block = chances[..., 2]
    here = block.gather(1, gap.clamp(max=tree.shape[-1] - 1))
    wrong = member & (
        (place >= known[:, None])[:, None] | (place > gap[..., None]) & (block[:, None] != here[..., None])
    )
    return value.masked_fill(wrong.any(-1), -torch.inf)


def chain(count: int) -> Tensor:
    """States [count, R] each of which adds the next mask in order. Entry [m, r] says what state m holds of the mask in
    place r of the order: 0 nothing, 1 the guess, 2 the second guess."""
    return torch.ones(count, max(count - 1, 1), dtype=torch.long).tril(-1)


@cache
def branches(count: int, skip: bool) -> Tensor:
    """States among which `count` are chosen each time: the likeliest by how many masks they hold, pass over in the
    order (if `skip`) and guess second best. Each comes behind the one that lacks its last mask."""
    heap: list[tuple[float, tuple[tuple[int, int], ...]]] = [(0.0, ())]
    states: list[tuple[tuple[int, int], ...]] = []
    while heap and len(states) < 6 * count:
        cost, state = heappop(heap)
        states.append(state)
        start = state[-1][0] + 1 if state else 0
        for place in range(start, count if skip else start + 1):
            for guess, chance in ((1, 0.9), (2, 0.25)):
                step = (place - len(state)) * math.log(PASSED) + math.log(chance * ADDED)
                if len(state) < count - 1:
                    heappush(heap, (cost - step, (*state, (place, guess))))
    table = torch.zeros(len(states), max(count, 1), dtype=torch.long)
    for row, state in enumerate(states):
        for place, guess in state:
            table[row, place] = guess
    return table


def accepted(drafts: States, guess: Tensor, certain: Tensor, subset: bool) -> Tensor:
    """The last draft that can be reached from the first by steps of the decoder: int64 [B].

    Args:
        guess: [B, K, W], tokens predicted from each draft.
        certain: [B, K, W], the masks a step from it reveals.
        subset: a draft counts as reached if a step reveals all it holds, and maybe more; otherwise states must be
            equal. With a threshold this accepts drafts that threshold decoding would not have passed through.
    """
    after = torch.where(certain, guess, drafts.tokens)
    same = after[:, :, None] == drafts.tokens[:, None]  # [B, from, to, W]; open positions hold the mask id
    if subset:
        same |= drafts.open[:, None]
    place = torch.arange(drafts.used.shape[1], device=guess.device)
    reach = same.all(-1) & drafts.used[:, None] & drafts.used[:, :, None]
    jump = torch.where(reach, place, place[:, None]).amax(-1)
    for _ in range((len(place) - 1).bit_length()):  # doubles the length of every chain
        jump = jump.gather(1, jump)
    return jump[:, 0]
