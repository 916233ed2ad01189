"""Fast-dLLM: blocks of a full-attention model with an approximate cache, and several tokens a forward.

Paper: "Fast-dLLM: Training-free Acceleration of Diffusion LLM by Enabling KV Cache and Parallel Decoding" (arXiv
2505.22618; official code NVlabs/Fast-dLLM, folder v1). Three rules: a planned number of positions (`steps`), all
whose confidence reaches `threshold`, or the most for which the joint choice is still close to the single ones
(`factor`). On purpose different: `factor` is the paper's formula (the code takes the last candidate unseen), a budget
of steps never leaves masks, rows of a batch are independent and may differ in length, the last block may be shorter,
with token shift blocks exist without a cache too (officially not; `pool_steps` and one block give what the code does).

    unmask generate GSAI-ML/LLaDA-8B-Instruct "..." --method fast_dllm --set cache=dual
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from unmask.decoding.forward import Forward
from unmask.decoding.method import option, register
from unmask.decoding.sampling import ScoreRule, Scores
from unmask.decoding.select import Factor, Rule, Static, Threshold, best
from unmask.decoding.windows import RefreshedBlocks, WindowState
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from typing_extensions import Self

    from unmask.models.families import Family


@register("fast_dllm", title="Fast-dLLM", arxiv="2505.22618")
@dataclass(frozen=True, kw_only=True)
class FastDLLM(RefreshedBlocks):
    """Parallel decoding of blocks under a prefix cache, a dual cache, or none."""

    threshold: float | None = option(
        None, "confidence from which a position is committed; None: 0.9 where nothing else is given", low=0.0
    )
    factor: float | None = option(None, "commit the r surest with (r + 1)(1 - confidence) below it", low=0.0)
    pool_steps: int | None = option(
        None, "forwards over which a block's positions become candidates, the surest first; None: all at once", low=1
    )

    def bind(self, family: Family, new_tokens: int) -> Self:
        given = [name for name in ("steps", "threshold", "factor") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UnmaskError(f"fast_dllm: {given[0]} and {given[1]} are two selection rules; give one of them")
        return super().bind(family, new_tokens)

    def own_rule(self) -> Rule:
        if self.steps is not None:
            return Static()
        if self.factor is not None:
            return Factor(self.factor)
        return Threshold(0.9 if self.threshold is None else self.threshold, strict=False)

    def confidence(self, state: WindowState) -> ScoreRule:
        shift = bool(state.facts.shift)
        return ScoreRule("filtered" if shift else "raw", filter_greedy=shift, ban=(state.facts.mask_id,))

    def candidates(self, state: WindowState, forward: Forward, scores: Scores) -> Tensor:
        eligible = super().candidates(state, forward, scores)
        if self.pool_steps is None:
            return eligible
        inside = self.block(state) < state.limit[:, None]
        closed = (inside & ~state.open_at(self.block(state))).sum(-1)
        released = -((state.round + 1) * inside.sum(-1) // -self.pool_steps)
        return eligible & best(scores.score, eligible, (released - closed).clamp(min=1))
