"""Fast-dLLM v2: blocks with an exact cache, sub-blocks left to right inside, an optional approximate sub-block cache.

Paper: "Fast-dLLM v2: Efficient Block-Diffusion LLM" (arXiv 2509.26328; official code NVlabs/Fast-dLLM, folder v2, and
the checkpoints' own modelling file). Every row decides for itself whether it needs a whole block or a sub-block, so a
batch equals its rows alone. On purpose different from the official batch code: prompts of exactly one block are used,
every row gets its bridge token, an end token that arrives as a bridge token ends the row, any block size works. The
mask token is never proposed. `trim`, `fused_commit` and what rows do under a load (sub-blocks instead of blocks, or one
token after the other as autoregressive decoding of the same weights) are ours.

    unmask generate nano "..." --method fast_dllm_v2 --set threshold=0.9
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.decoding.forward import Forward, Kind, State, prompt_window, window
from unmask.decoding.method import Blockwise, extend, need_mask, option, register, resolve
from unmask.decoding.sampling import ScoreRule, Scores
from unmask.decoding.select import Rule, Threshold
from unmask.decoding.selecting import Selecting
from unmask.decoding.stop import Span
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.models.families import Family


@dataclass(frozen=True, kw_only=True)
class SubBlockState(State):
    """start [B]: first position of the block in work. scratch [B]: the block's slots hold usable keys (of this block,
    maybe stale). round [B]: forwards spent on the sub-block. With `trim`, or under a load, kept [B]: positions
    before it have keys of their tokens, not of masks; chain [B]: the block is decoded token by token, under a causal
    mask, and its keys stay."""

    start: Tensor
    scratch: Tensor
    round: Tensor
    kept: Tensor | None = None
    chain: Tensor | None = None


@register("fast_dllm_v2", title="Fast-dLLM v2: Efficient Block-Diffusion LLM", arxiv="2509.26328")
@dataclass(frozen=True, kw_only=True)
class FastDLLMv2(Selecting[SubBlockState], Blockwise[SubBlockState]):
    """Threshold decoding of sub-blocks; a finished block's forward stores its K/V and gives the next block's first
    token."""

    sub_block_size: int = option(8, "tokens a sub-block; must divide the block", alias=("small_block_size",), low=1)
    threshold: float = option(0.9, "confidence above which a position is committed (strict)", low=0.0)
    sub_block_cache: bool = option(
        False,
        "reuse the block's keys between forwards (approximate, narrower forwards)",
        alias=("use_block_cache",),
    )
    trim: bool = option(
        False,
        "with sub_block_cache, run a sub-block from the first position on whose key is not yet of its token, which may "
        "lie in the one before; a block is then run as a whole once, not once a sub-block, before it is complete",
    )
    greedy_bridge: bool = option(
        True, "take the first token of a block greedily even when sampling, as the official code does"
    )
    fused_commit: bool = option(
        False,
        "look at the next block in the forward that stores a finished one: a forward less a block; that look does not "
        "know the block's first token yet, so the text may differ",
    )

    def bind(self, family: Family, new_tokens: int) -> FastDLLMv2:
        need_mask(self.name, family)
        if not family.shift:
            raise UnmaskError(
                f"fast_dllm_v2: needs a model with token shift; this {family.name} model predicts in place, "
                "use block_diffusion"
            )
        if family.attention == "full":
            raise UnmaskError(
                f"fast_dllm_v2: this {family.name} model was trained with full attention; use masked or fast_dllm, "
                "or d2f with its adapter"
            )
        block = resolve(self.block_size, resolve(family.block_size, 32))
        sub = min(self.sub_block_size, block)
        if block % sub:
            raise UnmaskError(f"fast_dllm_v2: sub_block_size {sub} does not divide block_size {block}")
        if self.trim and not self.sub_block_cache:
            raise UnmaskError("fast_dllm_v2: trim needs sub_block_cache, whose keys it reads")
        return replace(self, block_size=block, sub_block_size=sub)

    def reaches(self, new_tokens: int) -> tuple[int, ...]:
        return tuple(sorted({1, self.sub_block_size, self.sub_block_size if self.sub_block_cache else self.size}))

    def start(self, state: State) -> SubBlockState:
        start = self.first_block(state)
        return extend(
            SubBlockState,
            state,
            start=start,
            scratch=torch.zeros_like(state.done),
            round=torch.zeros_like(start),
            kept=None if state.reach is None and not self.trim else start,
            chain=None if state.reach is None else state.reach == 1,
        )

    def score_rule(self, state: SubBlockState) -> ScoreRule:
        return self.ranked(ScoreRule(ban=(state.facts.mask_id,)))

    def own_rule(self) -> Rule:
        return Threshold(self.threshold)

    def span(self, state: SubBlockState) -> Span:
        return Span(self._first(state, self._open(state)), self.sub_block_size, state.round, self.sub_block_size)

    def _open(self, state: SubBlockState) -> Tensor:
        """The first open position of the block in work [B]; its start where there is none."""
        column = torch.arange(self.size, device=state.canvas.device)
        return state.start + state.open_at(state.start[:, None] + column).int().argmax(-1)

    def _first(self, state: SubBlockState, position: Tensor) -> Tensor:
        """First position of the sub-block that `position` lies in [B]."""
        return position - (position - state.start) % self.sub_block_size

    def _stale(self, state: SubBlockState, first: Tensor) -> Tensor:
        """Where a window begins [B] whose first prediction is of the position `first`: at a row that speaks of it, and
        at the latest where keys are not yet of tokens."""
        assert state.kept is not None
        return torch.minimum(state.kept, first - 1).clamp(min=0)

    def prefill(self, state: SubBlockState) -> Forward | None:
        width = state.longest // self.size * self.size
        if width == 0:
            return None
        rows = (state.start[:, None] - 1).clamp(min=0)
        targets = torch.where(state.start > 0, state.start, -1)[:, None]
        return prompt_window(state, state.start, width, self.size, rows, targets)

    def plan(self, state: SubBlockState) -> Forward:
        block, sub = self.size, self.sub_block_size
        column = torch.arange(block * (2 if self.fused_commit else 1), device=state.canvas.device)
        waiting = state.open_at(state.start[:, None] + column[:block]).any(-1)
        one, stop = self._open(state), state.start + block
        first = self._first(state, one)
        narrow = waiting & state.scratch
        if self.trim:
            begin = torch.where(narrow, self._stale(state, one), state.start)
            last = first + sub - 1
            # The row of a mask in the last column speaks of the next sub-block.
            few = last + 1 - state.open_at(last[:, None])[:, 0].long() - begin
        else:
            narrow &= ~state.open_at(first[:, None])[:, 0]
            begin, few = torch.where(narrow, first, state.start), sub
        width = torch.where(narrow, few, torch.where(waiting, block, len(column)))
        # A narrow row reads the block's scratch slots too, all but those it overwrites.
        seen = torch.where(narrow, stop, state.start)
        targets = torch.where(waiting, first, stop)[:, None] + column[:sub]
        if not self.fused_commit:  # a finished block gives the next one's first token alone
            targets = torch.where(waiting[:, None] | (column[:sub] == 0), targets, -1)
        targets = torch.where(targets < torch.where(waiting, stop, state.limit)[:, None], targets, -1)
        kind = torch.where(narrow, Kind.WINDOW, torch.where(waiting, Kind.DENOISE, Kind.COMMIT))
        order = (column // block).expand(len(begin), -1)
        if state.chain is not None:
            chain, lone = state.chain, state.chain[:, None]
            begin = torch.where(chain, self._stale(state, one), begin)
            width, seen = torch.where(chain, one - begin, width), torch.where(chain, begin, seen)
            targets = torch.where(lone, torch.where(column[:sub] == 0, one[:, None], -1), targets)
            order, kind = torch.where(lone, column, order), torch.where(chain, Kind.DENOISE, kind)
        positions = begin[:, None] + column
        return window(
            state,
            positions,
            (column < width[:, None]) & (positions < state.limit[:, None]),
            order,
            visible=seen,
            # The first position of a block or of a narrow window has no row here; it is never open then.
            rows=(targets - 1 - begin[:, None]).clamp(min=0),
            targets=targets,
            kind=kind,
        )

    def commit(self, state: SubBlockState, forward: Forward, scores: Scores) -> SubBlockState:
        eligible = state.open_at(forward.targets)
        full, kept = forward.kind == Kind.COMMIT, state.kept
        if kept is not None:  # what stands before the first open position has been run with its tokens
            kept = torch.where(forward.kind == Kind.PREFILL, kept, self._open(state))
        passing = full | (forward.kind == Kind.PREFILL)  # the first target is a block's first token
        bridge = passing[:, None] & (torch.arange(eligible.shape[1], device=passing.device) == 0)
        state, token, chosen = self.choose(state, forward, scores, eligible & ~bridge, (~passing).long())
        token = torch.where(bridge, scores.greedy, token) if self.greedy_bridge else token
        state = state.fill(forward.targets, token, chosen | (bridge & eligible))
        ended, start = full, torch.where(full, state.start + self.size, state.start)
        kept, chain = None if kept is None else torch.where(full, start, kept), state.chain
        begun = state.open_at(forward.targets).any(-1) & (self.fused_commit | ~passing)
        scratch = (forward.kind == Kind.DENOISE) | (forward.kind == Kind.WINDOW) | (full & self.fused_commit)
        if chain is not None and state.reach is not None:
            scratch &= ~chain & (self.sub_block_cache | (state.reach < self.size))
            # Where rows may look further again, the block is run as a whole as its last forward.
            block = state.start[:, None] + torch.arange(self.size, device=start.device)
            complete, further = chain & ~state.open_at(block).any(-1), state.reach > 1
            ended, chain = ended | complete, torch.where(full | complete, ~further, chain)
            start = torch.where(complete & ~further, start + self.size, start)
        else:
            scratch &= self.sub_block_cache
        stop = state.start + self.size
        done = ended & ((state.first_eos() < stop) | (stop >= state.limit))
        round_ = torch.where(begun, state.round + 1, 0)
        return replace(state, start=start, scratch=scratch, round=round_, kept=kept, chain=chain, done=done)
