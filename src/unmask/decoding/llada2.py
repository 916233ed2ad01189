"""LLaDA2.0 block decoding, and LLaDA2.1's editing of tokens already written.

Papers: "LLaDA2.0" (arXiv 2512.15745) and "LLaDA2.1" (arXiv 2602.08676); official code: `generate` of the checkpoints'
modelling files. Without editing it is block diffusion with LLaDA2's settings: at least the planned number of
positions a forward, all above the threshold. With editing a forward fills masked positions above `threshold` and
changes tokens of the block that it sees otherwise with confidence above `edit_threshold`; a block without masks goes
on until a forward changes nothing, or `max_post_steps` of them were spent. Such a quiet forward has stored the block's
final keys, so no forward is spent on caching.

On purpose different: the exact block cache; attention is block-causal (the released 2.1 code adds a 0/1 mask to the
scores, so that earlier blocks see later ones a little); early exit looks at every forward (2.0: only at those that
write an end token); the mask token is never proposed. The model card's modes are threshold 0.7, edit_threshold 0.5
("quality") and 0.5, 0 ("speed").

    unmask generate inclusionAI/LLaDA2.1-mini "..." --set editing=true --set threshold=0.7 --set edit_threshold=0.5
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.decoding.block_diffusion import BlockDiffusion, BlockState
from unmask.decoding.forward import Forward, Kind, State
from unmask.decoding.method import extend, option, register, resolve
from unmask.decoding.sampling import Scores
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.models.families import Family


@dataclass(frozen=True, kw_only=True)
class EditState(BlockState):
    """post [B]: forwards spent on the block since it has no masks.

    With editing, positions of the block in work stay open until it is finished: the canvas holds tokens there that
    may still change, the mask id where there is none yet.
    """

    post: Tensor

    def masked_at(self, positions: Tensor) -> Tensor:
        """Open positions [B, R] without a token."""
        return self.open_at(positions) & (self.tokens_at(positions) == self.facts.mask_id)


@register("llada2", title="LLaDA2.0 (arXiv 2512.15745) and LLaDA2.1 editing", arxiv="2602.08676")
@dataclass(frozen=True, kw_only=True)
class LLaDA2(BlockDiffusion):
    """Threshold decoding of blocks, with or without editing."""

    threshold: float = option(0.95, "confidence above which a masked position is filled (strict)", low=0.0)
    confidence: str = option(
        "filtered", "probability before (raw) or after (filtered) top-k/top-p", choices=("raw", "filtered")
    )
    minimal_topk: int = option(1, "allows max_new_tokens / this steps a block at most (not with editing)", low=1)
    editing: bool = option(False, "LLaDA2.1: tokens of the block in work may change")
    edit_threshold: float = option(
        0.9, "confidence above which a token is changed (strict; editing)", alias=("editing_threshold",), low=0.0
    )
    max_post_steps: int = option(16, "forwards on a block without masks at most (editing)", low=0)
    min_commit: int = option(
        1, "masked positions filled by a forward at least (editing)", alias=("num_to_transfer",), low=1
    )
    early_exit: bool = option(
        True,
        "stop a row as soon as its text up to the first end token is final (never changes the text)",
        alias=("eos_early_stop",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.editing:
            return
        reasons = {
            "strategy": "forwards fill by threshold",
            "steps": "a block has no plan",
            "stop": "what it takes could still be edited",
        }
        for f in fields(self):
            if f.name in reasons and getattr(self, f.name) != f.default:
                raise UnmaskError(f"llada2: {f.name} does not go with editing: {reasons[f.name]}")
        if getattr(self.select, "per_block", False):
            raise UnmaskError("llada2: selection rules with a memory (credit) do not go with editing")

    def bind(self, family: Family, new_tokens: int) -> LLaDA2:
        self.check(family)
        block = resolve(self.block_size, resolve(family.block_size, 32))
        if self.editing:
            return replace(self, block_size=block)
        most = max(new_tokens // self.minimal_topk, 1)
        return replace(self, block_size=block, steps=min(resolve(self.steps, block), most))

    def start(self, state: State) -> EditState:
        begun = super().start(state)
        return extend(EditState, begun, post=torch.zeros_like(begun.start))

    def plan(self, state: BlockState) -> Forward:
        forward = super().plan(state)
        assert isinstance(state, EditState)
        if not self.editing:
            return forward
        is_draft = (forward.kind == Kind.DENOISE) & ~state.masked_at(forward.targets).any(-1)
        return replace(forward, kind=torch.where(is_draft, Kind.DRAFT, forward.kind))

    def commit(self, state: BlockState, forward: Forward, scores: Scores) -> BlockState:
        if not self.editing or not forward.rows.shape[1]:
            return super().commit(state, forward, scores)
        assert isinstance(state, EditState)
        at, token = forward.targets, scores.token
        is_open, masked = state.open_at(at), state.masked_at(at)
        least = torch.full_like(state.start, self.min_commit)
        filled = self.rule()(scores.prob, scores.score, masked, least)
        other = is_open & ~masked & (token != state.tokens_at(at))
        edited = other & (scores.prob > self.edit_threshold)
        state = replace(state, canvas=state.fill(at, token, filled | edited).canvas)

        post = state.post + (forward.kind == Kind.DRAFT)
        quiet = ~(masked | edited).any(-1)
        finished = is_open.any(-1) & ~state.masked_at(at).any(-1) & (quiet | (post >= self.max_post_steps))
        state = state.fill(at, state.tokens_at(at), is_open & finished[:, None])
        start = state.start + self.size * (forward.kind == Kind.COMMIT)
        return replace(
            state,
            # After a quiet forward the block's slots hold the keys of its final tokens already.
            start=start + self.size * (finished & quiet),
            post=torch.where(finished, 0, post),
            done=finished & (start + self.size >= state.limit),
        )
