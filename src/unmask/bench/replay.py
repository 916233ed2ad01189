"""Replayed acceptance: how many tokens a forward decides is told, not found, where a model has random weights.

Random weights are never sure of anything, so a method would decide one token a forward on them. `replaying` makes a
method that runs as always (plan, forward, scores, its own rule over its own windows) but sees other confidences: those
of the positions that are to be decided lie above every threshold, all others are zero.

How many: after f forwards, prefill not counted, a row has decided floor(f * tpf) of its tokens, as far as the method's
window and its own obligations allow; what it is behind it makes up for in the next forwards. Commit forwards and bridge
tokens count like all others, so the run as a whole has the tokens per forward asked for. Each row keeps to it by
itself, so rows of equal length end together.

Which: open positions of the window drawn at random, by a hash of the row's seed, forward and position, so that the
weights, the batch and the precision change nothing. For a method that works on one span at a time they do not matter.
Where several blocks are in flight (D2F), a block gets `DECAY` times as many tokens as the one before it, however many
of its positions are open, and the leading one what it is owed. So about 0.45 of the tokens fall into the leading block,
as D2F's own control has it: with one block at a time it is 1.7 to 3.0 times slower, 2.6 on average (arXiv 2508.09192,
eight pairs of model and task). At 3.1 tokens a forward 3.4 blocks are in a forward then, of 4 that may be.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from unmask.decoding.forward import Facts, Forward, State
from unmask.decoding.loop import decode
from unmask.decoding.method import Method
from unmask.decoding.sampling import Draw, Scores, uniform
from unmask.decoding.selecting import Selecting
from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig
from unmask.models.families import Family
from unmask.models.transformer import Transformer

DECAY = 0.8
DEEPEST = 15  # blocks in flight that are told apart
SURE = 2.0  # above every threshold on a probability
SALT = 0x5E1EC7
CLOSE = 0.03  # what a run may be off


def replaying(method: Method[Any], tpf: float) -> Method[Any]:
    """The same method under the same options, deciding `tpf` tokens a forward whatever the model says.

    Raises:
        UnmaskError: the method takes no selection rule, or takes another one than its own.
    """
    if not isinstance(method, Selecting):
        raise UnmaskError(f"{method.name}: its acceptance cannot be replayed: {method.fixed}")
    if method.select is not None or method.stop is not None:
        raise UnmaskError(f"{method.name}: its acceptance cannot be replayed under another selection or stop rule")
    given = {f.name: getattr(method, f.name) for f in fields(method)}
    return _class(type(method))(**given, tpf=tpf)


@cache
def _class(base: type[Selecting[Any]]) -> type[Any]:
    @dataclass(frozen=True, kw_only=True)
    class Replaying(base):
        tpf: float = 1.0

        def commit(self, state: Any, forward: Forward, scores: Scores) -> Any:
            size = getattr(self, "block_size", None) or state.new_tokens
            return base.commit(self, state, forward, told(state, forward, scores, self.tpf, size))

    return Replaying


def told(state: State, forward: Forward, scores: Scores, tpf: float, size: int) -> Scores:
    """Scores that are sure of those positions alone which this forward is to decide.

    Args:
        tpf: tokens a forward.
        size: of a block, counted from the end of the prompt.
    """
    index = torch.arange(state.open.shape[1], device=state.open.device)
    inside = (index >= state.prompt[:, None]) & (index < state.end[:, None])
    due = ((state.step + 1) * tpf + 1e-6).floor().long() - (~state.open & inside).sum(-1)
    key = _order(state, forward.targets, size)
    ahead = (key[:, None, :] > key[:, :, None]).sum(-1)  # a count instead of a sort: small and easily compiled
    chosen = (ahead < due[:, None]) & key.isfinite()
    sure = torch.where(chosen, SURE, 0.0).to(scores.prob.dtype)
    return replace(scores, prob=sure, score=key.to(scores.score.dtype))


def _order(state: State, targets: Tensor, size: int) -> Tensor:
    """How early each position of the window is drawn [B, R], the highest first, -inf where nothing is open.

    Drawing without replacement by weights: the exponent of a uniform number is one over the weight.
    """
    is_open = state.open_at(targets)
    block = (targets - state.prompt[:, None]).clamp(min=0) // size
    lead = torch.where(is_open, block, torch.iinfo(torch.int64).max).amin(-1, keepdim=True)
    depth = torch.where(is_open, block - lead, 0).clamp(max=DEEPEST)
    here = (depth[:, None, :] == torch.arange(DEEPEST + 1, device=targets.device)[:, None]) & is_open[:, None, :]
    left = here.sum(-1).gather(1, depth).clamp(min=1)
    drawn = uniform(state.draw.seed, state.step, targets, SALT).log() * left / DECAY**depth
    return torch.where(is_open, drawn, -torch.inf)


def attained(method: Method[Any], family: Family, prompt: int, new_tokens: int, seed: int = 0) -> float:
    """Tokens per forward, prefill not counted, of a whole run of a bound method: counted in the eager loop on a tiny
    model, for nothing depends on the weights."""
    vocab = 16
    mask = None if family.mask_id is None else vocab - 1
    facts = Facts(-1 if mask is None else mask, (), family.shift)
    config = ModelConfig(family.name, vocab, 8, 8, 1, 1, 1, 8, 1e-6, 1e4, prompt + 2 * new_tokens + 64)
    model = Transformer(config).eval()
    draw = Draw(torch.zeros(1), torch.ones(1), torch.zeros(1).long(), torch.full((1,), seed))
    with torch.inference_mode():
        (row,) = decode(model, method, [[1] * prompt], facts=facts, draw=draw, new_tokens=new_tokens)
    row.counters.tokens = new_tokens
    return row.counters.tpf


def replayed(method: Method[Any], tpf: float, family: Family, prompt: int, new_tokens: int) -> Method[Any]:
    """`replaying` of the bound method, after a check that a run then has this rate.

    Raises:
        UnmaskError: it cannot have it; says what it has instead.
    """
    made = replaying(method.bind(family, new_tokens), tpf)
    found = attained(made, family, prompt, new_tokens)
    if abs(found / tpf - 1) > CLOSE:
        raise UnmaskError(
            f"{method.name}: {tpf:g} tokens a forward cannot be replayed with these options over {new_tokens} tokens; "
            f"the nearest is {found:.2f}"
        )
    return made
