"""From a planned forward to its scores: what every loop does between `plan` and `commit`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unmask.attention import Attend
from unmask.decoding.forward import Forward, Kind, State
from unmask.decoding.method import Method
from unmask.decoding.sampling import Draw, ScoreRule, Scores, score
from unmask.layout import Layout

if TYPE_CHECKING:
    from unmask.models.network import Network

Window = Callable[[Layout, Tensor, Tensor], Attend]
"""The cache's attention for a layout [B, W], the leading slots seen [B] and the slots stored to [B, W]."""
Scorer = Callable[[Tensor, ScoreRule, Draw, Tensor, Tensor], Scores]


def logits_of(model: Network, window: Window, forward: Forward) -> Tensor:
    """Logits [B, R, V] of the asked rows in the model's dtype, guidance applied; those of carried rows are void."""
    rows = forward.rows.clamp(min=0)
    positions = forward.layout.positions
    if forward.guide is None:
        attend = window(forward.layout, forward.visible, forward.store)
        if forward.blend is None:
            return model(forward.tokens, positions, attend, rows)
        return model(forward.tokens, positions, attend, rows, blended(model, forward.tokens, forward.blend))
    # Both views of a row share layout and length; guidance is defined without a cache alone.
    twice = forward.layout.map(lambda x: torch.cat([x, x]))
    attend = window(twice, torch.cat([forward.visible] * 2), torch.cat([forward.store] * 2))
    both = model(torch.cat([forward.tokens, forward.guide]), twice.positions, attend, torch.cat([rows, rows]))
    with_prompt, without = both.float().chunk(2)
    return without + (1 + forward.guide_scale) * (with_prompt - without)


def blended(model: Network, tokens: Tensor, blend: Tensor) -> Tensor:
    """Input embeddings [B, W, C] of tokens with a blend (`Forward.blend`) in them."""
    return model.embed(tokens) + blend.to(model.dtype)


def with_carry(logits: Tensor, forward: Forward) -> Tensor:
    """Logits [B, R, V] with the remembered ones where a row is the carried one."""
    if forward.carry is None:
        return logits
    return torch.where((forward.rows == -1).unsqueeze(-1), forward.carry.unsqueeze(1), logits)


def number_of(state: State, forward: Forward) -> Tensor:
    """The number of a forward in each row [B], which its random draws are made of. A prefill may predict positions that
    the first step predicts again: it is number -1, so that draws differ."""
    return state.step - (forward.kind == Kind.PREFILL).long()


def scores_of(
    model: Network, method: Method[Any], state: State, forward: Forward, logits: Tensor, scorer: Scorer = score
) -> tuple[State, Scores]:
    """The scores of logits [B, R, V] as the method wants them, and the state its rules changed on the way."""
    # Outside of inference mode: a method may ask for gradients here.
    state, logits = method.adjust(state, forward, logits)
    with torch.inference_mode():
        number = number_of(state, forward) if forward.draws is None else forward.draws
        rule = method.score_rule(state)
        scores = scorer(logits, rule, state.draw, number, forward.targets)
        if rule.soft is not None:
            scores = replace(scores, soft=model.mix((logits.float() / rule.soft).softmax(-1)))
        return state, scores
