"""Jacobi decoding in several blocks at once, with drafts recycled from what was guessed before.

Paper: "Fast and Accurate Causal Parallel Decoding using Jacobi Forcing" (arXiv 2512.14681, Algorithm 1; official code
hao-ai-lab/JacobiForcing, its multi-block kernel). The block in work is drafted and verified as by `jacobi`. Behind it
stand blocks that are drafted already: what their own rows confirm is frozen, but nothing of it is text before it is
verified again. Beside the draft run candidates, continuations of the newest token found among earlier guesses: the
copy that holds longest wins, and the next forward moves its keys to where they belong. On purpose different from the
released kernel: a promoted block's draft is used (there it is lost, so that several blocks only cost), a single
candidate is tried, drafted blocks follow the winning copy, their first token follows the last row of the block before,
the pool outlives the block, sampling works. `blocks=1, min_candidates=2, pool_scope="block", prefill_draft="update"`
gives the kernel's forwards.

    unmask generate JacobiForcing/JacobiForcing_Coder_7B_v1 "..." --method jacobi_blocks
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.decoding.forward import Forward, Kind, State
from unmask.decoding.jacobi import block_end
from unmask.decoding.method import extend, option, register
from unmask.decoding.ngrams import continuations, guesses, push
from unmask.decoding.sampling import Scores
from unmask.decoding.verifying import LineState, Verifying, holding, moved, picked, widened
from unmask.layout import Layout, copies


@dataclass(frozen=True, kw_only=True)
class BlocksState(LineState):
    """`line` [B, Kn] spans all blocks.

    ahead [B]: blocks drafted behind the one in work. frozen [B, K - 1]: tokens in front of each that are kept. pool
    [B, P, Kn]: earlier guesses. lines [B, P - 1, n]: candidates for the block in work, `count` [B] of them. source,
    target [B, n]: cache slots to copy before the next forward.
    """

    ahead: Tensor
    frozen: Tensor
    pool: Tensor
    lines: Tensor
    count: Tensor
    source: Tensor
    target: Tensor


@dataclass(frozen=True)
class Outcome:
    """A forward as the winning copy saw it: where the block in work ends [B], how many tokens became final [B], and of
    each column [B, Kn] what it held, what it said of the next position, and whether it ran."""

    end: Tensor
    count: Tensor
    line: Tensor
    said: Tensor
    used: Tensor


@register("jacobi_blocks", title="Jacobi Forcing with multi-block decoding and rejection recycling", arxiv="2512.14681")
@dataclass(frozen=True, kw_only=True)
class JacobiBlocks(Verifying[BlocksState]):
    """One block verified, the next ones drafted, candidates from a pool of earlier guesses beside the draft."""

    blocks: int = option(2, "blocks at most, the one in work included", alias=("K",), low=1)
    spawn_ratio: float = option(0.85, "filled share of the last block that starts another", alias=("r",), low=0.0)
    pool_size: int = option(4, "earlier guesses kept; the newest is no candidate", alias=("n_gram_pool_size",), low=1)
    min_candidates: int = option(1, "candidates below which none is run; the released code: 2", low=1)
    recycle_ratio: float = option(
        0.0, "accepted share of the block from which candidates are run", alias=("lookahead_start_ratio",), low=0.0
    )
    pool_scope: str = option("answer", "how long earlier guesses are kept", choices=("answer", "block"))

    def slots(self, limit: int) -> int:
        return limit + (self.pool_size - 1) * self.block_size

    def start(self, state: State) -> BlocksState:
        size, width = self.block_size, self.blocks * self.block_size
        state, last, line = self.begin(state, width)
        none = torch.full_like(last, -1)[:, None]
        return extend(
            BlocksState,
            state,
            last=last,
            line=line,
            ahead=torch.zeros_like(last),
            frozen=torch.zeros_like(none).expand(-1, self.blocks - 1),
            pool=none[..., None].expand(-1, self.pool_size, width),
            lines=none[..., None].expand(-1, self.pool_size - 1, size),
            count=torch.zeros_like(last),
            source=none.expand(-1, size),
            target=none.expand(-1, size),
        )

    def _columns(self, state: BlocksState) -> tuple[Tensor, Tensor, Tensor]:
        """Position, token and cache slot of every column [B, P, Kn]; copy 0 is the draft, the others are candidates
        and store in scratch slots. Slots behind the block in work are -1."""
        size, device = self.block_size, state.canvas.device
        column = torch.arange(state.line.shape[1], device=device)
        copy = torch.arange(self.pool_size, device=device)[:, None]
        place = (state.last[:, None] + column)[:, None].expand(-1, self.pool_size, -1)
        own = place < block_end(state, state.last, size)[:, None, None]
        lines = F.pad(state.lines, (0, len(column) - size, 1, 0))
        tokens = torch.where(own & (copy > 0), lines, state.line[:, None])
        slot = torch.where(copy > 0, state.limit[:, None, None] + (copy - 1) * size + column, place)
        return place, tokens, torch.where(own, slot, -1)

    def plan(self, state: BlocksState) -> Forward:
        place, tokens, slot = self._columns(state)
        end = block_end(state, state.last, self.block_size) + state.ahead * self.block_size
        runs = torch.arange(self.pool_size, device=place.device)[:, None] <= state.count[:, None, None]
        valid = runs & (place < torch.minimum(end, state.limit - 1)[:, None, None])
        zero = torch.zeros_like(place[:, 0])
        layout = copies(
            Layout(place[:, 0], zero, zero, place[:, 0].clamp(max=state.canvas.shape[1] - 1)), len(valid[0])
        )
        targets = torch.where(valid, place + 1, -1).flatten(1)
        return Forward(
            tokens.flatten(1),
            layout.with_padding(valid.flatten(1)),
            state.last,
            torch.where(valid, slot, -1).flatten(1),
            torch.arange(targets.shape[1], device=place.device).expand_as(targets),
            targets,
            torch.full_like(state.last, Kind.DRAFT),
            move=(state.source, state.target),
            draws=self.numbers(state, targets),
        )

    def commit(self, state: BlocksState, forward: Forward, scores: Scores) -> BlocksState:
        place, tokens, slot = self._columns(state)
        wide, size = tokens[0].numel(), self.block_size
        token = widened(scores.token, wide).view_as(tokens)
        ran = (widened(forward.targets, wide, -1) >= 0).view_as(tokens)
        held = torch.where(ran[..., 0], holding(tokens, token, ran & (slot >= 0)), -1)
        winner = held.argmax(-1)[:, None, None].expand(-1, 1, place.shape[2])
        line, said, used, slot = (x.gather(1, winner)[:, 0] for x in (tokens, token, ran, slot))
        won = Outcome(block_end(state, state.last, size), self.advance(forward, held.amax(-1)), line, said, used)
        final = torch.arange(place.shape[2], device=place.device) < won.count[:, None]
        source = torch.where(final & (winner[:, 0] > 0), slot, -1)[:, :size]
        state = replace(state, frozen=self._confirmed(state, won), source=source, target=place[:, 0, :size])
        state = state.fill(place[:, 0] + 1, said, used & final)
        state = replace(state, last=state.last + won.count, done=~state.unfinished())
        rejected = (state.last < won.end) & (forward.kind != Kind.PREFILL)
        return self._spawn(self._recycle(self._redraft(state, won), rejected))

    def _confirmed(self, state: BlocksState, won: Outcome) -> Tensor:
        """How many tokens of each drafted block are to be kept [B, K - 1]: what was, one more, and what holds."""
        shape = (self.blocks - 1, self.block_size)
        column = (won.end - state.last)[:, None] + torch.arange(shape[0] * shape[1], device=won.end.device)
        line, said = (picked(x, column).unflatten(1, shape) for x in (won.line, won.said))
        used = (picked(won.used, column) & (column < won.used.shape[1])).unflatten(1, shape)
        right = (line[..., 1:] == said[..., :-1]) & used[..., 1:]
        right |= torch.arange(shape[1] - 1, device=column.device) < state.frozen[..., None]
        return torch.where(used[..., 0], 1 + right.long().cumprod(-1).sum(-1), 0)

    def _redraft(self, state: BlocksState, won: Outcome) -> BlocksState:
        """New guesses for all blocks in flight; where the one in work is full, the next is promoted."""
        positions = state.last[:, None] + torch.arange(state.line.shape[1], device=won.end.device)
        offset = positions - won.end[:, None]
        block = torch.div(offset, self.block_size, rounding_mode="floor")  # -1: the one in work
        guess, known = moved(won.said, won.used, won.count - 1)
        old, kept = moved(won.line, won.used, won.count)
        # The first token of a drafted block follows the last row before it, frozen or not.
        inside = offset - block * self.block_size
        kept &= (inside > 0) & (inside < picked(F.pad(state.frozen, (1, 0)), block + 1))
        known &= block < state.ahead[:, None]
        line = torch.where(known, torch.where(kept, old, guess), self.drafts(state, positions))
        full = state.last == won.end
        ahead = (state.ahead - full.long()).clamp(min=0)
        frozen = torch.where(full[:, None], state.frozen.roll(-1, 1), state.frozen)
        frozen = frozen * (torch.arange(self.blocks - 1, device=full.device) < ahead[:, None])
        return replace(state, line=self.headed(state, state.last, line), ahead=ahead, frozen=frozen)

    def _recycle(self, state: BlocksState, rejected: Tensor) -> BlocksState:
        """Where guesses were `rejected` [B] the new ones go to the pool; then candidates from it."""
        size = self.block_size
        end = block_end(state, state.last, size)
        pool = state.pool if self.pool_scope == "answer" else torch.where(rejected[:, None, None], state.pool, -1)
        pool = push(pool, guesses(state, end - size, end, end + state.ahead * size), rejected)
        lines, count = continuations(pool, state.line[:, :size])
        wanted = (count >= self.min_candidates) & (state.last - (end - size) >= self.recycle_ratio * size)
        return replace(state, pool=pool, lines=lines, count=torch.where(wanted, count, 0))

    def _spawn(self, state: BlocksState) -> BlocksState:
        """Drafts another block where the newest is nearly full: a copy of what is left to verify, then new drafts."""
        size = self.block_size
        end = block_end(state, state.last, size)
        accepted = torch.cat([(state.last - (end - size))[:, None], state.frozen], dim=1)
        newest = picked(accepted, state.ahead[:, None])[:, 0]
        grows = (newest >= ceil(self.spawn_ratio * size)) & (state.ahead < self.blocks - 1)
        first = end + state.ahead * size - state.last
        column = torch.arange(state.line.shape[1], device=end.device) - first[:, None]
        copied = grows[:, None] & (column >= 0) & (column < (end - state.last)[:, None])
        line = torch.where(copied, picked(state.line, column), state.line)
        return replace(state, line=line, ahead=state.ahead + grows.long())
