"""A pool of token sequences guessed before, and the search for continuations in it.

A pool is [B, P, E] ids, oldest first, -1 behind the end of a sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.decoding.verifying import LineState, picked


def guesses(state: LineState, first: Tensor, end: Tensor, stop: Tensor) -> Tensor:
    """What stands in the line as two sequences [B, 2, L] for a pool: all from position `first` to `stop` [B], final
    tokens before the newest included, and the guesses behind the newest token up to `end` [B]."""
    index = torch.arange(state.line.shape[1], device=first.device)
    place, behind = first[:, None] + index, state.last[:, None] + 1 + index
    ahead = place - state.last[:, None]
    everything = torch.where(ahead < 0, state.tokens_at(place), picked(state.line, ahead))
    rest = picked(state.line, (index + 1).expand_as(behind))
    limits = (place < stop[:, None], behind < end[:, None])
    return torch.stack([torch.where(inside, x, -1) for x, inside in zip((everything, rest), limits)], dim=1)


def push(pool: Tensor, entries: Tensor, wanted: Tensor) -> Tensor:
    """The pool with entries [B, M, E] put behind, where `wanted` [B] holds; the oldest leave."""
    longer = torch.cat([pool, entries], dim=1)[:, entries.shape[1] :]
    return torch.where(wanted[:, None, None], longer, pool)


def continuations(pool: Tensor, line: Tensor) -> tuple[Tensor, Tensor]:
    """What followed the first token of `line` [B, n] in earlier sequences, the newest sequence left out.

    Returns:
        Lines [B, P - 1, n], one for each sequence that holds the token: from where it first stands, cut to n tokens,
        or filled up with those of `line`; from newer sequences first. And how many there are [B].
    """
    older = pool[:, :-1].flip(1)
    here = older == line[:, :1, None]
    found = here.any(-1)
    first = here.int().argmax(-1, keepdim=True)
    at = first + torch.arange(line.shape[1], device=line.device)
    taken = older.gather(2, at.clamp(max=older.shape[2] - 1))
    inside = (at < older.shape[2]) & (taken >= 0)
    lines = torch.where(inside, taken, line[:, None])
    order = found.int().argsort(dim=1, descending=True, stable=True)
    return lines.gather(1, order[..., None].expand_as(lines)), found.sum(-1)
