"""D2F: several unfinished blocks in flight, block-causal, with an exact cache of finished ones.

Paper: "Diffusion LLMs Can Do Faster-Than-AR Inference via Discrete Diffusion Forcing" (arXiv 2508.09192; official
code zhijie-group/Discrete-Diffusion-Forcing). The prompt is one bidirectional block; the block grid starts behind it.
A finished block is encoded once more inside the next forward, whose keys become permanent: no forward is spent on
caching. With token shift the first token of the leading block is predicted by the row of the last permanent position,
remembered from the forward that committed it (the carry row). On purpose different: the mask token is never proposed;
rows of a batch are independent.

    unmask generate GSAI-ML/LLaDA-8B-Instruct --adapter SJTU-Deng-Lab/D2F_LLaDA_Instruct_8B_Lora "..." --method d2f
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from unmask.decoding.forward import Forward, Kind, State, window
from unmask.decoding.method import doubling, extend, need_mask, option, register, resolve, round_up
from unmask.decoding.sampling import ScoreRule, Scores, rank_of
from unmask.decoding.select import Rule, Threshold
from unmask.decoding.selecting import Selecting
from unmask.layout import block_index

if TYPE_CHECKING:
    from unmask.models.families import Family

RANKS = {
    "default": "prob",
    "prob": "prob",
    "margin_confidence": "margin",
    "margin": "margin",
    "neg_entropy": "entropy",
    "entropy": "entropy",
}


@dataclass(frozen=True, kw_only=True)
class PipelineState(State):
    """Response blocks of each row, n in all.

    blocks [B]: appended so far. active [B, n]: fully activated (sticky). cached [B]: blocks whose slots are
    permanent, the prompt before them. carry [B, V]: logits of the last permanent position.
    """

    blocks: Tensor
    active: Tensor
    cached: Tensor
    carry: Tensor | None = None

    def complete(self, size: int) -> Tensor:
        """Filled positions of each response block: int64 [B, n]."""
        span = torch.arange(self.active.shape[1] * size, device=self.canvas.device)
        is_open = self.open_at(self.prompt[:, None] + span)
        return size - is_open.view(len(self.prompt), -1, size).sum(-1)


@register("d2f", title="Discrete Diffusion Forcing (D2F)", arxiv="2508.09192")
@dataclass(frozen=True, kw_only=True)
class D2F(Selecting[PipelineState]):
    """Pipelined parallel decoding with three thresholds."""

    any_length: ClassVar[bool] = True
    one_block = False
    why_not = "several blocks are in flight at once"

    block_size: int = option(32, "tokens a block, counted from the end of the prompt", low=1)
    add_threshold: float = option(
        0.1,
        "filled share of the last block at which a new one is appended",
        alias=("block_add_threshold",),
        low=0.0,
        high=1.0,
    )
    activate_threshold: float = option(
        0.95,
        "filled share of its predecessor at which a block may force a token",
        alias=("decoded_token_threshold",),
        low=0.0,
        high=1.0,
    )
    threshold: float = option(
        0.9, "confidence above which a position is committed (strict)", alias=("skip_threshold",), low=0.0
    )
    rank: str = option("prob", "which position a forced token takes", alias=("sampling_strategy",), choices=RANKS)
    max_active_blocks: int | None = option(
        None, "blocks in flight at most; None: no bound, as the official code", low=1
    )

    def bind(self, family: Family, new_tokens: int) -> D2F:
        need_mask(self.name, family)
        return self

    def score_rule(self, state: PipelineState) -> ScoreRule:
        return self.ranked(ScoreRule("filtered", rank_of(self.rank), filter_greedy=True, ban=(state.facts.mask_id,)))

    def own_rule(self) -> Rule:
        return Threshold(self.threshold)

    def limit(self, prompt: int, new_tokens: int) -> int:
        return prompt + round_up(new_tokens, self.block_size)

    def grain(self) -> int | None:
        return 0

    def _most(self, new_tokens: int) -> int:
        """Blocks in flight at most."""
        count = round_up(new_tokens, self.block_size) // self.block_size
        return min(resolve(self.max_active_blocks, count), count)

    def reaches(self, new_tokens: int) -> tuple[int, ...]:
        return tuple(blocks * self.block_size for blocks in doubling(1, self._most(new_tokens)))

    def start(self, state: State) -> PipelineState:
        none = torch.zeros_like(state.prompt)
        count = round_up(state.new_tokens, self.block_size) // self.block_size
        active = (torch.arange(count, device=none.device) == 0).expand(len(none), -1)
        return extend(PipelineState, state, blocks=none + 1, active=active, cached=none)

    def _window(self, state: PipelineState, base: Tensor, width: int, kind: Tensor) -> Forward:
        """The forward over the appended part of [base, base + width), predictions wanted for all of it."""
        shift = state.facts.shift
        column = torch.arange(width, device=state.canvas.device)
        positions = base[:, None] + column
        valid = positions < (state.prompt + state.blocks * self.block_size)[:, None]
        return window(
            state,
            positions,
            valid,
            self._order(state, positions),
            visible=base,
            rows=(column - shift).expand_as(positions),
            targets=torch.where(valid, positions, -1),
            kind=kind,
        )

    def _order(self, state: PipelineState, positions: Tensor) -> Tensor:
        """Who sees whom: the block of each position [B, W], the prompt is block 0."""
        return block_index(positions, self.block_size, state.prompt[:, None])

    def prefill(self, state: PipelineState) -> Forward:
        """The prompt and the first block in one forward."""
        kind = torch.full_like(state.prompt, Kind.PREFILL)
        forward = self._window(state, torch.zeros_like(state.prompt), state.longest + self.block_size, kind)
        rows = state.prompt[:, None] + torch.arange(self.block_size, device=state.canvas.device)
        return replace(forward, rows=rows - state.facts.shift, targets=rows)

    def plan(self, state: PipelineState) -> Forward:
        base = state.prompt + state.cached * self.block_size
        finished = self._leading(state) > state.cached
        kind = torch.where(finished, Kind.COMMIT, Kind.DENOISE)
        forward = self._window(state, base, state.active.shape[1] * self.block_size, kind)
        return replace(forward, carry=state.carry)

    def _leading(self, state: PipelineState) -> Tensor:
        """How many blocks at the front are complete [B]: after a forward that held them, their slots are permanent."""
        index = torch.arange(state.active.shape[1], device=state.canvas.device)
        complete = (state.complete(self.block_size) == self.block_size) & (index < state.blocks[:, None])
        return complete.int().cumprod(-1).sum(-1)

    def commit(self, state: PipelineState, forward: Forward, scores: Scores) -> PipelineState:
        cached = self._leading(state)
        row = self._next_row(state, cached).clamp(max=scores.logits.shape[1] - 1)
        carry = scores.logits[torch.arange(len(row), device=row.device), row] if state.facts.shift else state.carry
        state = self._accept(state, forward.targets, scores)
        return self._advance(replace(state, cached=cached, carry=carry))

    def _next_row(self, state: PipelineState, cached: Tensor) -> Tensor:
        """Which row of the window [B] speaks of the first position behind `cached` blocks."""
        return (cached - state.cached) * self.block_size

    def _accept(self, state: PipelineState, targets: Tensor, scores: Scores) -> PipelineState:
        """Fills positions of the window `targets` [B, R]. One rule call over all blocks: a block is a row, its quota
        says whether it may force a token."""
        size = self.block_size
        block = state.cached[:, None] + torch.arange(targets.shape[1] // size, device=targets.device)
        quota = state.active.gather(1, block.clamp(max=state.active.shape[1] - 1)).long()
        eligible = state.open_at(targets)
        prob, rank, is_open = (x.reshape(-1, size) for x in (scores.prob, scores.score, eligible))
        chosen = self.rule()(prob, rank, is_open, quota.reshape(-1)).view(targets.shape)
        return state.fill(targets, scores.token, chosen)

    def _advance(self, state: PipelineState) -> PipelineState:
        """The blocks of the next forward; ends rows with nothing left."""
        state = self._grow(state)
        eos, blocks = state.first_eos(), state.blocks
        if self.early_exit:  # nothing before the end token depends on a later block
            holds = torch.div(eos - state.prompt, self.block_size, rounding_mode="floor") + 1
            blocks = torch.minimum(blocks, torch.where(eos < state.canvas.shape[1], holds, blocks))
        return replace(state, blocks=blocks, done=self._complete(state, blocks))

    def _grow(self, state: PipelineState) -> PipelineState:
        """Appends at most one block, activates successors of well filled blocks."""
        filled = state.complete(self.block_size)
        last = filled.gather(1, state.blocks[:, None] - 1)[:, 0] / self.block_size
        ended = state.first_eos() < state.canvas.shape[1]
        room = torch.div(state.limit - state.prompt, self.block_size, rounding_mode="floor")
        grow = (last >= self.add_threshold) & (state.blocks < room) & ~ended
        if self.max_active_blocks is not None or state.reach is not None:
            at_most = state.within(self._most(state.new_tokens) * self.block_size)
            grow &= state.blocks - self._leading(state) < (at_most + self.block_size - 1) // self.block_size
        share = torch.cat([torch.ones_like(last)[:, None], filled[:, :-1] / self.block_size], dim=1)
        active = state.active | (share >= self.activate_threshold)
        return replace(state, blocks=state.blocks + grow.long(), active=active)

    def _complete(self, state: PipelineState, blocks: Tensor) -> Tensor:
        """Rows whose first `blocks` [B] blocks are filled: bool [B]."""
        index = torch.arange(state.active.shape[1], device=blocks.device)
        return ((state.complete(self.block_size) == self.block_size) | (index >= blocks[:, None])).all(-1)
