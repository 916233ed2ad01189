"""Fast-dLLM v2: blocks with an exact cache, sub-blocks left to right inside, an optional approximate sub-block cache.

Paper: "Fast-dLLM v2: Efficient Block-Diffusion LLM" (arXiv 2509.26328; official code NVlabs/Fast-dLLM, folder v2, and
the checkpoints' own modelling file). Every row decides for itself whether it needs a whole block or a sub-block, so a
batch equals its rows alone. On purpose different from the official batch code: prompts of exactly one block are used,
every row gets its bridge token, an end token that arrives as a bridge token ends the row, any block size works. The
mask token is never proposed.

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
    maybe stale). round [B]: forwards spent on the sub-block."""

    start: Tensor
    scratch: Tensor
    round: Tensor


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
        return replace(self, block_size=block, sub_block_size=sub)

    def start(self, state: State) -> SubBlockState:
        start = self.first_block(state)
        return extend(
            SubBlockState, state, start=start, scratch=torch.zeros_like(state.done), round=torch.zeros_like(start)
        )

    def score_rule(self, state: SubBlockState) -> ScoreRule:
        return self.ranked(ScoreRule(ban=(state.facts.mask_id,)))

    def own_rule(self) -> Rule:
        return Threshold(self.threshold)

    def span(self, state: SubBlockState) -> Span:
        return Span(self._first(state), self.sub_block_size, state.round, self.sub_block_size)

    def _first(self, state: SubBlockState) -> Tensor:
        """First position of the sub-block in work [B]."""
        column = torch.arange(self.size, device=state.canvas.device)
        is_open = state.open_at(state.start[:, None] + column)
        return state.start + is_open.int().argmax(-1) // self.sub_block_size * self.sub_block_size

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
        first = self._first(state)
        narrow = waiting & state.scratch & ~state.open_at(first[:, None])[:, 0]
        begin = torch.where(narrow, first, state.start)
        positions = begin[:, None] + column
        # A narrow row reads the block's scratch slots too, all but the sub-block's own, which it overwrites.
        seen = torch.where(narrow, state.start + block, state.start)
        targets = torch.where(waiting, first, state.start + block)[:, None] + column[:sub]
        if not self.fused_commit:  # a finished block gives the next one's first token alone
            targets = torch.where(waiting[:, None] | (column[:sub] == 0), targets, -1)
        targets = torch.where(targets < state.limit[:, None], targets, -1)
        width = torch.where(narrow, sub, torch.where(waiting, block, len(column)))
        kind = torch.where(narrow, Kind.WINDOW, torch.where(waiting, Kind.DENOISE, Kind.COMMIT))
        return window(
            state,
            positions,
            (column < width[:, None]) & (positions < state.limit[:, None]),
            (column // block).expand_as(positions),
            visible=seen,
            # The first position of a block or of a narrow window has no row here; it is never open then.
            rows=(targets - 1 - begin[:, None]).clamp(min=0),
            targets=targets,
            kind=kind,
        )

    def commit(self, state: SubBlockState, forward: Forward, scores: Scores) -> SubBlockState:
        eligible = state.open_at(forward.targets)
        full = forward.kind == Kind.COMMIT
        passing = full | (forward.kind == Kind.PREFILL)  # the first target is a block's first token
        bridge = passing[:, None] & (torch.arange(eligible.shape[1], device=passing.device) == 0)
        state, token, chosen = self.choose(state, forward, scores, eligible & ~bridge, (~passing).long())
        token = torch.where(bridge, scores.greedy, token) if self.greedy_bridge else token
        state = state.fill(forward.targets, token, chosen | (bridge & eligible))
        start = torch.where(full, state.start + self.size, state.start)
        begun = state.open_at(forward.targets).any(-1) & (self.fused_commit | ~passing)
        scratch = (forward.kind == Kind.DENOISE) | (forward.kind == Kind.WINDOW)
        done = full & ((state.first_eos() < start) | (start >= state.limit))
        round_ = torch.where(begun, state.round + 1, 0)
        return replace(state, start=start, scratch=scratch & self.sub_block_cache, round=round_, done=done)
