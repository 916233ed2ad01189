"""The eager loop: prefill, then plan, forward, score, commit until every row is done. The reference for every faster
loop.

It owns what is the same for all methods: the cache, padding and trimming, guidance, counting, ends of rows, traces,
and the events from which streamers are fed. Finished rows leave the batch at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unmask.cache.contiguous import ContiguousCache
from unmask.decoding.counters import NAMES, Counters
from unmask.decoding.evaluate import logits_of, scores_of, with_carry
from unmask.decoding.forward import Facts, Forward, State, blank
from unmask.decoding.method import Method
from unmask.decoding.sampling import Draw, Scores
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.models.network import Network


@dataclass(frozen=True, slots=True)
class TraceStep:
    """One forward of one row: its number, kind, window, use of the cache, and what it fixed.

    Positions count from the end of the prompt. The window is [first, first + span), `width` tokens are run for it (more
    than its span when there are copies of it). `visible` leading slots are readable, `reads` of them are read (the
    window overwrites the others), `stores` slots are written. A confidence is None where the position was decided
    without a score of its own.
    """

    forward: int
    kind: str
    first: int
    span: int
    width: int
    visible: int
    reads: int
    stores: int
    positions: list[int]
    tokens: list[int]
    confidences: list[float | None]


@dataclass(slots=True)
class Row:
    """One decoded row: every position behind its prompt, which of them are still open, counts, trace."""

    canvas: list[int] = field(default_factory=list)
    open: list[bool] = field(default_factory=list)
    counters: Counters = field(default_factory=Counters)
    trace: list[TraceStep] = field(default_factory=list)


Observer = Callable[[list[int], State], None]


def decode(
    model: Network,
    method: Method[Any],
    prompts: list[list[int]],
    *,
    facts: Facts,
    draw: Draw,
    new_tokens: int,
    trace: bool = False,
    observe: Observer | None = None,
) -> list[Row]:
    """Decodes a batch.

    Args:
        method: already bound to the checkpoint (`Method.bind`).
        prompts: token ids; lengths may differ, and be 0 where a method writes whole texts (`mdlm`).
        draw: sampling settings [B] on the model's device.
        observe: called after every commit with the original numbers of the rows still decoded and the state.

    Raises:
        UnmaskError: the model gave logits that are not finite; names layer and position.
    """
    limits = [method.limit(len(p), new_tokens) for p in prompts]
    state = method.start(blank(prompts, limits, new_tokens, facts, draw))
    config = model.config
    cache = ContiguousCache(
        config.num_layers,
        len(prompts),
        config.num_kv_heads,
        max(map(method.slots, limits)) if method.cached else 0,
        config.head_dim,
        device=model.device,
        dtype=model.dtype,
    )
    out = [Row() for _ in prompts]
    numbers = list(range(len(prompts)))
    forward = method.prefill(state)
    while numbers:
        prefilling = forward is not None
        forward = _trim(forward if forward is not None else method.plan(state))
        before = state
        state, scores = _forward(model, cache, method, state, forward, numbers)
        state = method.commit(state, forward, scores)
        state = replace(state, step=state.step + (0 if prefilling else 1))
        _record([out[n] for n in numbers], before, state, forward, scores, trace)
        if method.early_exit:
            state = replace(state, done=state.done | ~state.unfinished() | state.settled())
        if observe:
            observe(numbers, state)
        numbers, state = _drop_done(out, numbers, state, cache)
        forward = None
    return out


def _trim(forward: Forward) -> Forward:
    """Cuts trailing columns that no row uses: methods plan fixed shapes, the eager loop need not pay for them."""
    width = _used(forward.valid)
    rows = _used(forward.targets >= 0)
    return replace(
        forward,
        tokens=forward.tokens[:, :width],
        layout=forward.layout.map(lambda x: x[:, :width]),
        store=forward.store[:, :width],
        rows=forward.rows[:, :rows],
        targets=forward.targets[:, :rows],
        guide=None if forward.guide is None else forward.guide[:, :width],
        blend=None if forward.blend is None else forward.blend[:, :width],
        draws=None if forward.draws is None else forward.draws[:, :rows],
    )


def _used(columns: Tensor) -> int:
    """One more than the last column that is True in any row."""
    found = columns.any(0).nonzero()
    return int(found[-1]) + 1 if len(found) else 0


def _forward(
    model: Network,
    cache: ContiguousCache,
    method: Method[Any],
    state: State,
    forward: Forward,
    numbers: list[int],
) -> tuple[State, Scores]:
    with torch.inference_mode():
        if forward.move is not None:
            cache.move(*forward.move)
        logits = with_carry(logits_of(model, cache.window, forward).float(), forward)
        used = forward.targets >= 0
        if not bool((logits.isfinite().all(-1) | ~used).all()):
            raise _not_finite(model, cache, forward, logits, numbers)
    return scores_of(model, method, state, forward, logits)


def _not_finite(
    model: Network, cache: ContiguousCache, forward: Forward, logits: Tensor, numbers: list[int]
) -> UnmaskError:
    """The error that names the first layer whose input is not finite."""
    attend = cache.window(forward.layout, forward.visible, forward.store)
    found = model.first_nonfinite(forward.tokens, forward.layout.positions, attend)
    if found is None:
        row, column = ((~logits.isfinite()).any(-1) & (forward.targets >= 0)).nonzero()[0].tolist()
        position = int(forward.targets[row, column])
        return UnmaskError(
            f"logits for position {position} of row {numbers[row]} are not finite, though every layer's input is: "
            "check the head"
        )
    layer, row, column = found
    position = int(forward.layout.positions[row, column])
    return UnmaskError(
        f"logits are not finite: the input of layer {layer} is already NaN or infinite at position {position} "
        f"of row {numbers[row]} (token id {int(forward.tokens[row, column])})"
    )


def _record(rows: list[Row], before: State, after: State, forward: Forward, scores: Scores, trace: bool) -> None:
    """Counts the forward for each row that had a token in it, and notes what it fixed."""
    took_part = forward.valid.any(-1).tolist()
    kinds = forward.kind.tolist()
    for i, row in enumerate(rows):
        if took_part[i]:
            if trace:
                number = sum(row.counters.forwards.values())
                row.trace.append(_trace_step(i, number, before, after, forward, scores))
            row.counters.forwards[NAMES[kinds[i]]] += 1


def _trace_step(i: int, number: int, before: State, after: State, forward: Forward, scores: Scores) -> TraceStep:
    fixed = (before.open[i] & ~after.open[i]).nonzero()[:, 0]
    prompt = int(before.prompt[i])
    # Of several copies that speak of a position the first one counts whose token it got.
    spoken = zip(forward.targets[i].tolist(), scores.token[i].tolist(), scores.prob[i].tolist())
    prob = {(place, token): p for place, token, p in reversed(list(spoken))}
    place = forward.layout.positions[i][forward.valid[i]]
    first, last = int(place.min()), int(place.max())
    stored = forward.store[i][forward.store[i] >= 0]
    visible = int(forward.visible[i])
    tokens: list[int] = after.canvas[i][fixed].tolist()
    return TraceStep(
        forward=number,
        kind=NAMES[int(forward.kind[i])],
        first=first - prompt,
        span=last - first + 1,
        width=len(place),
        visible=visible,
        reads=visible - int((stored.unique() < visible).sum()),
        stores=len(stored),
        positions=(fixed - prompt).tolist(),
        tokens=tokens,
        confidences=[prob.get(pair) for pair in zip(fixed.tolist(), tokens)],
    )


def _drop_done(out: list[Row], numbers: list[int], state: State, cache: ContiguousCache) -> tuple[list[int], State]:
    done = state.done.tolist()
    if not any(done):
        return numbers, state
    for i, number in enumerate(numbers):
        if done[i]:
            first, last = int(state.prompt[i]), int(state.limit[i])
            out[number].canvas = state.canvas[i, first:last].tolist()
            out[number].open = state.open[i, first:last].tolist()
    keep = (~state.done).nonzero()[:, 0]
    cache.select(keep)
    return [n for n, d in zip(numbers, done) if not d], state.select(keep)
