"""Autoregressive decoding: one token a forward, the baseline of every speed figure.

Sound for any model whose row of a real token predicts the next one (Qwen, Llama, WeDLM, Fast-dLLM v2, Dream under a
causal mask).

    unmask generate nano-ar "..." --method autoregressive
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from unmask.decoding.forward import Forward, Kind, State, prompt_window, window
from unmask.decoding.method import Method, extend, need_next_token, register
from unmask.decoding.sampling import Scores

if TYPE_CHECKING:
    from unmask.models.families import Family


@dataclass(frozen=True, kw_only=True)
class ARState(State):
    """last [B]: the position of the newest token, the one to be fed next."""

    last: Tensor


@register("autoregressive", title="Autoregressive decoding", arxiv="")
@dataclass(frozen=True, kw_only=True)
class Autoregressive(Method[ARState]):
    """Greedy or sampled next-token decoding with a causal mask."""

    any_length: ClassVar[bool] = True

    def bind(self, family: Family, new_tokens: int) -> Autoregressive:
        need_next_token(self.name, family)
        return self

    def grain(self) -> int | None:
        return 1

    def start(self, state: State) -> ARState:
        return extend(ARState, state, last=state.prompt - 1)

    def prefill(self, state: ARState) -> Forward:
        return prompt_window(
            state, state.prompt, state.longest, 1, rows=state.last[:, None], targets=state.prompt[:, None]
        )

    def plan(self, state: ARState) -> Forward:
        at = state.last[:, None]
        return window(
            state,
            at,
            torch.ones_like(at, dtype=torch.bool),
            at,
            visible=state.last,
            rows=torch.zeros_like(at),
            targets=at + 1,
            kind=torch.full_like(state.last, Kind.DENOISE),
        )

    def commit(self, state: ARState, forward: Forward, scores: Scores) -> ARState:
        state = state.fill(forward.targets, scores.token, torch.ones_like(forward.targets, dtype=torch.bool))
        return replace(state, last=state.last + 1, done=~state.unfinished())
