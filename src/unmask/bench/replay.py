"""Replayed acceptance: how many tokens a forward decides is told, not found, where a model has random weights.

Random weights are never sure of anything, so a method would decide one token a forward on them. `replaying` makes a
method that runs as always (plan, forward, scores, its own rule over its own windows) but sees other confidences: those
of the positions that are to be decided lie above every threshold, all others are zero.

How many: after f forwards, prefill not counted, a row has decided floor(f * tpf) of its tokens, as far as the method's
window and its own obligations allow; what it is behind it makes up for in the next forwards. Commit forwards and bridge
tokens count like all others, so the run as a whole has the tokens per forward asked for. Each row keeps to it by
itself, so rows of equal length end together.

Which: where several blocks are in flight (D2F) each gets as many tokens on average, however many of its positions are
open, and the leading one what it is owed besides. So at 3.1 tokens a forward about 0.4 of them fall into the leading
block, and 4.4 blocks are in a forward (3.4 where at most 4 may be in work). D2F's own control agrees: with one block at
a time it is 1.7 to 3.0 times slower, 2.6 on average (arXiv 2508.09192, eight pairs of model and task), and 1 / 2.6 is
0.38. Within a block positions are decided from left to right. The draw between blocks is a hash of the row's seed,
forward and position, so that weights, batch and precision change nothing of a run.
"""

from __future__ import annotations

from collections.abc import Callable
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

SURE = 2.0  # above every threshold on a probability
SALT = 0x5E1EC7
CLOSE = 0.02  # what the forwards of a run may be off, or one forward


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
    chosen = _drawn(state, forward.targets, size, due)
    sure = torch.where(chosen, SURE, 0.0).to(scores.prob.dtype)
    return replace(scores, prob=sure, score=-forward.targets.to(scores.score.dtype))


def _drawn(state: State, targets: Tensor, size: int, due: Tensor) -> Tensor:
    """Which open positions of the window are decided: bool [B, R], `due` [B] of each row as far as there are as many.

    Pairs of columns are compared where one would sort: there are few, and a captured step has a kernel less.
    """
    is_open = state.open_at(targets)
    block = (targets - state.prompt[:, None]).clamp(min=0) // size
    same = _pairs(block, torch.eq) & is_open[:, None, :]  # for each column, the open ones of its block
    # Drawing without replacement: a weight divides the logarithm of a uniform number. All of a block weigh 1 together.
    lots = uniform(state.draw.seed, state.step, targets, SALT).log() * same.sum(-1)
    ahead = _pairs(torch.where(is_open, lots, -torch.inf), torch.lt).sum(-1)
    drawn = is_open & (ahead < due[:, None])
    share = (same & drawn[:, None, :]).sum(-1)
    return is_open & ((same & _pairs(targets, torch.gt)).sum(-1) < share)


def _pairs(x: Tensor, compare: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """compare(x of a column, x of another) for all pairs: [B, R, R]."""
    return compare(x[:, :, None], x[:, None, :])


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
    forwards = new_tokens / tpf
    if abs(new_tokens / found - forwards) > max(1.0, CLOSE * forwards):
        raise UnmaskError(
            f"{method.name}: {tpf:g} tokens a forward cannot be replayed over {new_tokens} tokens with these options; "
            f"the nearest is {found:.2f}"
        )
    return made
