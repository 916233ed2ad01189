"""Block diffusion: one block at a time, bidirectional inside, exact cache of the blocks before.

Papers: "Block Diffusion: Interpolating Between Autoregressive and Diffusion Language Models" (BD3-LM, arXiv
2503.09573) and "SDAR" (arXiv 2510.06303; official code JetAstra/SDAR). Follows SDAR's evaluation code for greedy
decoding: the confidence is the probability before top-k and top-p, known tokens of a partial first block are kept. On
purpose different: `entropy_bounded` uses the entropy of the distribution (the script reads an undefined variable),
temperature 0 is greedy rather than a division by zero, and a step never overwrites a known token when fewer masks are
left than its quota.

    unmask generate JetLM/SDAR-4B-Chat "..." --method block_diffusion --set threshold=0.9
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.decoding.forward import Forward, Kind, State, prompt_window, window
from unmask.decoding.method import Blockwise, extend, need_mask, option, register, resolve
from unmask.decoding.sampling import ScoreRule, Scores
from unmask.decoding.select import EntropyBounded, Leftmost, Rule, Static, Threshold
from unmask.decoding.selecting import Selecting
from unmask.decoding.stop import Span
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.models.families import Family

STRATEGIES = {
    "sequential": "sequential",
    "low_confidence_static": "static",
    "static": "static",
    "low_confidence_dynamic": "dynamic",
    "dynamic": "dynamic",
    "entropy_bounded": "entropy_bounded",
}


@dataclass(frozen=True, kw_only=True)
class BlockState(State):
    """start [B]: first position of the block in work; all slots before it are permanent. round [B]: forwards spent on
    the block."""

    start: Tensor
    round: Tensor


@register("block_diffusion", title="SDAR / BD3-LM block diffusion", arxiv="2510.06303")
@dataclass(frozen=True, kw_only=True)
class BlockDiffusion(Selecting[BlockState], Blockwise[BlockState]):
    """Blocks at absolute multiples of `block_size`; the forward that stores a finished block's K/V already looks at the
    next block."""

    steps: int | None = option(
        None, "forwards planned a block; None: one token each", alias=("denoising_steps",), low=1
    )
    strategy: str = option(
        "dynamic", "which positions are committed", alias=("remasking_strategy",), choices=STRATEGIES
    )
    threshold: float = option(
        0.9, "confidence above which dynamic commits (strict)", alias=("confidence_threshold",), low=0.0
    )
    entropy_bound: float = option(
        0.1, "summed entropy in nats allowed a forward", alias=("eb_threshold", "gamma"), low=0.0
    )
    confidence: str = option(
        "raw", "probability before (raw) or after (filtered) top-k/top-p", choices=("raw", "filtered")
    )
    fused_commit: bool = option(
        True,
        "store a finished block in the forward that first looks at the next one: one forward a block less, same text",
    )

    def check(self, family: Family) -> None:
        """Refuses families that this kind of decoding is not sound on."""
        need_mask(self.name, family)
        if family.shift:
            raise UnmaskError(
                f"{self.name}: this {family.name} model predicts the next position (token shift); "
                "use fast_dllm_v2 or d2f"
            )
        if family.attention == "full":
            raise UnmaskError(
                f"{self.name}: this {family.name} model was trained with full attention; use masked or fast_dllm, "
                "or d2f with its adapter"
            )

    def bind(self, family: Family, new_tokens: int) -> BlockDiffusion:
        self.check(family)
        block = resolve(self.block_size, resolve(family.block_size, 4))
        return replace(self, block_size=block, steps=resolve(self.steps, block))

    def score_rule(self, state: BlockState) -> ScoreRule:
        raw = self.confidence == "raw"
        rank = "entropy" if self.strategy == "entropy_bounded" else "prob"
        own = ScoreRule("raw" if raw else "filtered", rank, filters=("top_k", "top_p"), ban=(state.facts.mask_id,))
        return self.ranked(own)

    def span(self, state: BlockState) -> Span:
        _, first, round_ = self._work(state)
        return Span(first, self.size, round_, resolve(self.steps, 1))

    def _work(self, state: BlockState) -> tuple[Tensor, Tensor, Tensor]:
        """Whether the block in front is finished, where the block begins that this forward decides in (the next one
        then, if fused), and how many forwards were spent on it: all [B]."""
        offset = torch.arange(self.size, device=state.canvas.device)
        full = ~state.open_at(state.start[:, None] + offset).any(-1)
        ahead = full & self.fused_commit
        return full, state.start + ahead * self.size, torch.where(ahead, 0, state.round)

    def own_rule(self) -> Rule:
        if self.strategy == "dynamic":
            return Threshold(self.threshold)
        if self.strategy == "entropy_bounded":
            return EntropyBounded(self.entropy_bound)
        return Leftmost() if self.strategy == "sequential" else Static()

    def start(self, state: State) -> BlockState:
        start = self.first_block(state)
        return extend(BlockState, state, start=start, round=torch.zeros_like(start))

    def prefill(self, state: BlockState) -> Forward | None:
        width = state.longest // self.size * self.size
        if width == 0:
            return None
        none = state.canvas[:, :0]
        return prompt_window(state, state.start, width, self.size, rows=none, targets=none)

    def plan(self, state: BlockState) -> Forward:
        full, first, _ = self._work(state)
        column = torch.arange(self.size * (2 if self.fused_commit else 1), device=state.canvas.device)
        positions = state.start[:, None] + column
        targets = first[:, None] + column[: self.size]
        return window(
            state,
            positions,
            (column < self.size) | (full[:, None] & (positions < state.limit[:, None])),
            (column // self.size).expand_as(positions),
            visible=state.start,
            rows=targets - state.start[:, None],
            targets=targets,
            kind=torch.where(full, Kind.COMMIT, Kind.DENOISE),
        )

    def commit(self, state: BlockState, forward: Forward, scores: Scores) -> BlockState:
        if not forward.rows.shape[1]:  # the prefill
            return state
        steps = resolve(self.steps, 1)
        full, first, round_ = self._work(state)
        eligible = state.open_at(forward.targets)
        quota = self.size // steps + (round_ < self.size % steps).long()
        state, token, chosen = self.choose(state, forward, scores, eligible, quota)
        state = state.fill(forward.targets, token, chosen)
        if self.fused_commit:  # what the last block's keys would be good for never comes
            end = first + self.size
            finished = ~state.open_at(forward.targets).any(-1)
            done = finished & ((state.first_eos() < end) | (end >= state.limit))
            return replace(state, start=first, round=round_ + 1, done=done)
        start = torch.where(full, state.start + self.size, state.start)
        done = full & ((state.first_eos() < start) | (start >= state.limit))
        return replace(state, start=start, round=torch.where(full, 0, state.round + 1), done=done)
