"""dInfer: three decoders, a cache whose window takes in the neighbourhood of the block, and iteration smoothing.

Paper: "dInfer: An Efficient Inference Framework for Diffusion Language Models" (arXiv 2510.08666; official code
inclusionAI/dInfer); credit decoding is arXiv 2510.06133. Under cache `vicinity` a window recomputes the block and what
lies next to it; the first forwards of a request (`warmup_steps`) use no cache. Smoothing adds to the embedding of an
open position a growing share of what the last forward expected there, while the threshold falls from 1. On purpose
different: no forward is spent on a block that is complete (the code unrolls its loop and follows every refresh by a
window), the first refresh after the warm-up happens once, credit belongs to one request, rows are independent,
smoothing works for every model, of several positions as sure as the best (within 1e-5) one is forced. The code runs
models without token shift alone, and so does this.

    unmask generate inclusionAI/LLaDA-MoE-7B-A1B-Instruct "..." --method dinfer --set decoder=hierarchical
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.decoding.forward import Forward, Kind, State
from unmask.decoding.method import extend, option, register
from unmask.decoding.sampling import ScoreRule, Scores
from unmask.decoding.select import Credit, Hierarchical, Rule, Threshold
from unmask.decoding.windows import Windows, WindowState
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from typing_extensions import Self

    from unmask.models.families import Family

DECODERS = {
    "threshold": "threshold",
    "hierarchical": "hierarchical",
    "hierarchy": "hierarchical",
    "credit": "credit",
}


@dataclass(frozen=True, kw_only=True)
class VicinityState(WindowState):
    """iteration [B]: of the request, by which smoothing, warm-up and extra refreshes go. age [B]: forwards of this
    block since its last refresh, -1 before the first."""

    iteration: Tensor
    age: Tensor


@register("dinfer", title="dInfer", arxiv="2510.08666")
@dataclass(frozen=True, kw_only=True)
class DInfer(Windows[VicinityState]):
    """Blocks of a full-attention model under no, prefix, dual or vicinity cache."""

    block_size: int = option(64, "tokens a block", alias=("block_length",), low=1)
    cache: str = option(
        "vicinity", "what is not recomputed at each forward", choices=("none", "prefix", "dual", "vicinity")
    )
    decoder: str = option("threshold", "which positions are committed", choices=DECODERS)
    threshold: float = option(0.9, "confidence from which a position is committed", low=0.0)
    low_threshold: float = option(
        0.62, "confidence above which the best of each run of open positions is (hierarchical)", low=0.0
    )
    credit_alpha: float = option(0.7, "weight of the credit (credit)", low=0.0)
    credit_gamma: float = option(
        0.2, "power of the probability that is credited (credit)", alias=("boost_gamma",), low=0.0
    )
    credit_beta: float = option(
        0.8, "what is left of the credit a forward later (credit)", alias=("decay_beta",), low=0.0
    )
    start_block_align: bool = option(False, "blocks at absolute multiples of their size, the first inside the prompt")
    cache_update_freq: int | None = option(None, "iterations between extra refreshes; None: one refresh a block", low=1)
    prefix_look: int = option(16, "positions before the block that are recomputed (vicinity)", low=0)
    after_look: int = option(16, "positions behind the block that are recomputed (vicinity)", low=0)
    warmup_steps: int = option(4, "first forwards of a request without a cache (vicinity)", low=0)
    smoothing: float = option(
        0.3, "largest weight of the expected embedding at open positions; 0: off", alias=("cont_weight",), low=0.0
    )
    smoothing_start: float = option(0.15, "that weight after the first forward", alias=("cont_weight_init",), low=0.0)
    smoothing_growth: float = option(0.02, "its growth an iteration", alias=("cont_weight_growth",), low=0.0)
    threshold_decay: float = option(0.02, "fall of the threshold from 1, an iteration, under smoothing", low=0.0)
    early_stop: bool = option(True, "end a row with the block that holds its first end token")

    def bind(self, family: Family, new_tokens: int) -> Self:
        if family.shift:
            raise UnmaskError(
                f"dinfer: this {family.name} model predicts the next position (token shift), dInfer's windows hold no "
                "row for it; use fast_dllm"
            )
        return super().bind(family, new_tokens)

    def start(self, state: State) -> VicinityState:
        none = torch.zeros_like(state.prompt)
        return extend(VicinityState, state, round=none, iteration=none, age=none - 1)

    def origin(self, state: VicinityState) -> Tensor:
        return torch.zeros_like(state.prompt) if self.start_block_align else state.prompt

    def own_rule(self) -> Rule:
        return self._decoder(self.threshold)

    def _decoder(self, threshold: float | Tensor) -> Threshold | Hierarchical | Credit:
        if self.decoder == "hierarchical":
            return Hierarchical(threshold, self.low_threshold)
        if self.decoder == "credit":
            return Credit(threshold, alpha=self.credit_alpha, gamma=self.credit_gamma, beta=self.credit_beta)
        return Threshold(threshold, strict=False)

    def score_rule(self, state: VicinityState) -> ScoreRule:
        return self.ranked(ScoreRule("raw", ban=(state.facts.mask_id,), soft=1.0 if self.smoothing else None))

    def plan(self, state: VicinityState) -> Forward:
        before, behind = (self.prefix_look, self.after_look) if self.cache == "vicinity" else (0, 0)
        forward = self.forward(state, self._kind(state), before, behind, all_rows=self.smoothing > 0)
        if not self.smoothing or "expected" not in state.memory:
            return forward
        place = forward.layout.positions
        expected = state.memory["expected"]
        blend = expected.gather(1, place[..., None].expand(-1, -1, expected.shape[-1]))
        return replace(forward, blend=torch.where(state.open_at(place)[..., None], blend, 0.0))

    def _kind(self, state: VicinityState) -> Tensor:
        cold = torch.full_like(state.prompt, Kind.DENOISE)
        if self.cache == "none":
            return cold
        due = state.age < 0
        if self.cache_update_freq is not None:
            due |= (state.iteration % self.cache_update_freq == 0) & (state.age > 0)
        kind = torch.where(due, Kind.REFRESH, Kind.WINDOW)
        return torch.where(state.iteration < self.warmup_steps, cold, kind) if self.cache == "vicinity" else kind

    def commit(self, state: VicinityState, forward: Forward, scores: Scores) -> VicinityState:
        span = self.span(state)
        eligible = state.open_at(forward.targets) & span.holds(forward.targets)
        deciding = self._paced(state)
        state, token, chosen = deciding.choose(state, forward, scores, eligible, torch.ones_like(state.round))
        if scores.soft is not None:
            state = self._remember(state, forward, scores.soft)
        state = self.settle(state, forward, token, chosen)
        return self._count(state, forward.kind == Kind.REFRESH, span.first + self.block_size)

    def _paced(self, state: VicinityState) -> Self:
        """The method with the threshold of this iteration."""
        if not self.smoothing or self.select is not None:
            return self
        threshold = (1 - self.threshold_decay * state.iteration).clamp(min=self.threshold)
        return replace(self, select=self._decoder(threshold[:, None]))

    def _remember(self, state: VicinityState, forward: Forward, soft: Tensor) -> VicinityState:
        """Keeps the weighted expected embeddings [B, R, C] of what was recomputed; other positions keep theirs."""
        weight = (self.smoothing_start + self.smoothing_growth * state.iteration).clamp(max=self.smoothing)
        size = state.canvas.shape[1]
        # One position more than there are takes what unused columns say.
        where = torch.where(forward.targets >= 0, forward.targets, size)[..., None].expand_as(soft)
        old = state.memory.get("expected", soft.new_zeros(len(soft), size + 1, soft.shape[-1]))
        new = old.scatter(1, where, soft * weight[:, None, None].to(soft.dtype))
        return replace(state, memory=state.memory | {"expected": new})

    def _count(self, state: VicinityState, refreshed: Tensor, behind: Tensor) -> VicinityState:
        """Counts the forward; ends rows whose block, complete up to `behind` [B], holds an end token."""
        complete = state.round == 0
        age = torch.where(refreshed, 0, torch.where(state.age < 0, -1, state.age + 1))
        # Smoothing and the vicinity cache count forwards, the others a refresh and the window behind it as one.
        paired = refreshed & ~complete & (self.cache != "vicinity" and not self.smoothing)
        done = state.done | (complete & (state.first_eos() < behind)) if self.early_stop else state.done
        return replace(
            state, age=torch.where(complete, -1, age), iteration=state.iteration + (~paired).long(), done=done
        )
