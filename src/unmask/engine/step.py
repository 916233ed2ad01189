"""One step of a fixed batch: plan, forward, scores and commit as pure tensor functions.

Nothing here reads back to the host and every shape follows from the batch, so that a CUDA graph can hold all of it.
Rows that are done, or whose forward does not fit into the width of this step, take part as padding and keep their
state: what a row goes through is what it would go through alone. Where rows use few of their columns, the network runs
on their tokens packed one behind the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unmask.decoding.evaluate import Scorer, Window, blended, logits_of, number_of, scores_of, with_carry
from unmask.decoding.forward import KINDS, Forward, State
from unmask.decoding.method import Method
from unmask.decoding.sampling import Scores, score

if TYPE_CHECKING:
    from unmask.attention.paged import Packing
    from unmask.cache.paged import PagedCache, PagedWindow
    from unmask.layout import Layout
    from unmask.models.network import Network

DONE, FAILED, NEED, FINAL = 0, 1, 2, 3
FLAGS = 4
"""Columns of the status of a row: two flags, how many columns its next forward has, how many tokens are decided without
a gap; behind these the forwards by kind."""
STATUS = FLAGS + len(KINDS)
NARROWEST = 8
"""Columns of the narrowest step; wider ones double them."""


@dataclass(frozen=True)
class Planned:
    """A forward that fits the step. live: rows that take part [B]. widest: columns that the method's forwards have at
    most."""

    forward: Forward
    live: Tensor
    widest: int


def begin(method: Method[Any], state: State, width: int, room: Tensor | None = None) -> Planned:
    """What is run in a step of at most `width` columns, and of at most `room` (one number) tokens of all rows."""
    planned = method.plan(state)
    if planned.draws is None:  # here, where it takes no kernel of its own
        number = number_of(state, planned)
        planned = replace(planned, draws=number[:, None].expand_as(planned.targets))
    live = ~state.done & (columns(planned) <= width)
    if room is not None:
        live &= torch.where(live, _last(planned.valid), 0).cumsum(0) <= room
    return Planned(cut(planned, width, live), live, planned.tokens.shape[1])


def finish(
    method: Method[Any], before: State, state: State, run: Planned, scores: Scores, status: Tensor
) -> tuple[State, Tensor]:
    """The batch behind a forward and its status.

    Args:
        before: the state that was planned from; what rows that did not take part keep.
        state: the same, but for what rules remembered since.
        status: int32 [B, STATUS], of the step before.
    """
    bad = _bad(run.forward, scores)
    new = _ended(method, method.commit(state, run.forward, scores), bad)
    new = merge(run.live, replace(new, step=state.step + 1), before)
    return new, _status(method, new, status, run, bad)


def finish_in_place(
    method: Method[Any], before: State, state: State, run: Planned, scores: Scores, status: Tensor
) -> None:
    """`finish`, written into the tensors of `before` and `status`."""
    new, counted = finish(method, before, state, run, scores, status)
    held, found = tensors(before), tensors(new)
    for name, x in held.items():
        x.copy_(found[name])
    status.copy_(counted)


def pack(packed: Packing, forward: Forward) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens and positions of packed rows [1, M], and where the asked rows stand among them [1, B * R]."""
    rows = packed.start_B[:, None] + forward.rows.clamp(min=0)
    rows_1R = rows.clamp(max=len(packed.place_M) - 1).flatten()[None]
    return packed.take(forward.tokens), packed.take(forward.layout.positions), rows_1R


@dataclass(frozen=True)
class Parts:
    """What a step is made of; the last five may be replaced by faster functions that do the same."""

    model: Network
    method: Method[Any]
    cache: PagedCache
    scorer: Scorer = score
    carry: Callable[[Tensor, Forward], Tensor] = with_carry
    begin: Callable[..., Planned] = begin
    pack: Callable[[Packing, Forward], tuple[Tensor, Tensor, Tensor]] = pack
    finish: Callable[..., None] = finish_in_place

    def window(self, table: Tensor) -> Window:
        """Attention to the pages that `table` [B, T] names; a forward of two views has each row twice."""

        def attend(layout: Layout, seen: Tensor, store: Tensor) -> PagedWindow:
            views = len(seen) // len(table)
            return self.cache.window(table if views == 1 else table.repeat(views, 1), layout, seen, store)

        return attend

    def packed_logits(self, table: Tensor, forward: Forward, tokens: int) -> Tensor:
        """`logits_of` by a network that runs on the rows packed into `tokens`; for forwards of one view."""
        assert forward.guide is None
        attend = self.cache.window(table, forward.layout, forward.visible, forward.store, tokens)
        packed = attend.view.packed
        assert packed is not None
        tokens_1M, positions_1M, rows_1R = self.pack(packed, forward)
        mixed = None
        if forward.blend is not None:
            mixed = packed.take(blended(self.model, forward.tokens, forward.blend))
        return self.model(tokens_1M, positions_1M, attend, rows_1R, mixed).view(*forward.rows.shape, -1)


def step(parts: Parts, state: State, status: Tensor, table: Tensor, width: int, tokens: int | None = None) -> None:
    """One forward of at most `width` columns; the tensors of `state` and `status` are changed in place.

    Args:
        state: with all entries of its memory; `Method`s may leave them out only before a first step.
        status: int32 [B, STATUS].
        table: int32 [B, T], the physical page of each of a row's pages.
        tokens: of all rows at most; fewer than B * width are packed.
    """
    packed = tokens if tokens is not None and tokens < len(status) * width else None
    room = None if packed is None else torch.full((), packed, device=status.device)
    run = parts.begin(parts.method, state, width, room)
    parts.finish(parts.method, state, *_scored(parts, state, run, table, packed), status)


def example(parts: Parts, state: State, table: Tensor) -> tuple[State, Forward]:
    """A state after a step from `state`, and the forward of that step: they show what tensors there are."""
    state, status = prefilled(parts, state, table, parts.method.prefill(state))
    forward = parts.method.plan(state)
    run = begin(parts.method, state, forward.tokens.shape[1])
    return finish(parts.method, state, *_scored(parts, state, run, table), status)[0], forward


def prefilled(parts: Parts, state: State, table: Tensor, forward: Forward | None) -> tuple[State, Tensor]:
    """New rows [B] after the (last part of the) forward over their prompts, and their status [B, STATUS]."""
    status = torch.zeros(len(state.prompt), STATUS, dtype=torch.int32, device=state.canvas.device)
    if forward is None:
        return state, status
    # How wide the forwards of its steps will be, a prefill does not know: more than one width, then.
    run = Planned(forward, torch.ones_like(state.done), NARROWEST + 1)
    state, _, scores = _scored(parts, state, run, table)
    bad = _bad(forward, scores)
    state = _ended(parts.method, parts.method.commit(state, forward, scores), bad)
    return state, _status(parts.method, state, status, run, bad)


def stored(parts: Parts, table: Tensor, forward: Forward) -> None:
    """A part of a prefill that only leaves its keys and values."""
    logits_of(parts.model, parts.window(table), forward)


def _scored(
    parts: Parts, state: State, run: Planned, table: Tensor, packed: int | None = None
) -> tuple[State, Planned, Scores]:
    forward = run.forward
    if forward.move is not None:
        parts.cache.move(table, *forward.move)
    if packed is None:
        logits = logits_of(parts.model, parts.window(table), forward)
    else:
        logits = parts.packed_logits(table, forward, packed)
    logits = parts.carry(logits, forward)
    state, scores = scores_of(parts.model, parts.method, state, forward, logits, parts.scorer)
    return state, run, scores


def _bad(forward: Forward, scores: Scores) -> Tensor:
    """Rows with logits that are not finite: bool [B]."""
    return ((forward.targets >= 0) & ~scores.prob.isfinite()).any(-1)


def _ended(method: Method[Any], state: State, bad: Tensor) -> State:
    done = state.done | bad
    return replace(state, done=done | ~state.unfinished() | state.settled() if method.early_exit else done)


def _status(method: Method[Any], state: State, old: Tensor, run: Planned, bad: Tensor) -> Tensor:
    """The status behind a forward, which counts for the rows that had a token in it."""
    forward, live, device = run.forward, run.live, old.device
    failed = old[:, FAILED] | (live & bad).int()
    index = torch.arange(state.open.shape[1], device=device)
    final = torch.where(state.open, index, state.end[:, None]).amin(-1).clamp(max=state.end) - state.prompt
    kinds = torch.arange(len(KINDS), device=device)
    count = (forward.kind[:, None] == kinds) & (live & forward.valid.any(-1))[:, None]
    widest = torch.full_like(state.prompt, run.widest)
    if run.widest <= NARROWEST:  # there is one width alone, and nobody asks
        need = widest
    elif forward.tokens.shape[1] == 1:
        # Who looked at one token will nearly always do so again, which saves a second plan. Who will not sits out a
        # step of that width, and is counted with the widest then; who needed more before sat this one out.
        before = old[:, NEED].long()
        need = torch.where(live, 1, torch.where(before > 1, before, widest))
    else:
        need = columns(method.plan(state))
    need = torch.where(state.done, 0, need)
    flags = torch.stack([state.done.int(), failed, need.int(), final.int()], -1)
    return torch.cat([flags, old[:, FLAGS:] + count.int()], -1)


def columns(forward: Forward) -> Tensor:
    """How many leading columns each row uses, of tokens or of predictions: [B]."""
    tokens = _last(forward.valid)
    return torch.maximum(tokens, _last(forward.targets >= 0)) if forward.targets.shape[1] else tokens


def _last(used: Tensor) -> Tensor:
    """One more than the last column that is True, [B]."""
    return torch.where(used, torch.arange(1, used.shape[1] + 1, device=used.device), 0).amax(-1)


def cut(forward: Forward, width: int, live: Tensor) -> Forward:
    """The first `width` columns; rows that are not live [B] become padding."""
    few, keep = slice(0, width), live[:, None]

    def rows(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[:, few]

    move = forward.move
    return replace(
        forward,
        tokens=forward.tokens[:, few],
        layout=forward.layout.map(lambda x: x[:, few]).with_padding(keep),
        visible=torch.where(live, forward.visible, 0),
        store=torch.where(keep, forward.store[:, few], -1),
        rows=forward.rows[:, few].clamp(max=width - 1),
        targets=torch.where(keep, forward.targets[:, few], -1),
        guide=rows(forward.guide),
        blend=rows(forward.blend),
        draws=rows(forward.draws),
        move=None if move is None else (torch.where(keep, move[0], -1), torch.where(keep, move[1], -1)),
    )


def part(forward: Forward, first: int, last: int) -> Forward:
    """The columns [first, last) of a prefill, those before them being in the cache; logits come with the last ones."""
    few = slice(first, last)
    whole = last == forward.tokens.shape[1]
    return replace(
        forward,
        tokens=forward.tokens[:, few],
        layout=forward.layout.map(lambda x: x[:, few]),
        visible=forward.visible.clamp(min=first),
        store=forward.store[:, few],
        rows=forward.rows - first if whole else forward.rows[:, :0],
        targets=forward.targets if whole else forward.targets[:, :0],
    )


def merge(live: Tensor, new: State, old: State) -> State:
    """`new` where a row is live [B], else `old`; entries of the memory that are new come from `new`."""
    before, after = tensors(old), tensors(new)
    kept = {
        name: torch.where(live.view(-1, *[1] * (x.dim() - 1)), x, before[name]) if name in before else x
        for name, x in after.items()
    }
    return with_tensors(new, kept)


def tensors(state: State) -> dict[str, Tensor]:
    """All tensors of a state by name, but those of the sampling settings."""
    named = {f.name: x for f in fields(state) if isinstance(x := getattr(state, f.name), Tensor)}
    return named | {f"memory.{name}": x for name, x in state.memory.items()}


def with_tensors(state: State, named: dict[str, Tensor]) -> State:
    """The state with these tensors in the place of its own; see `tensors`."""
    memory = {name.removeprefix("memory."): x for name, x in named.items() if name.startswith("memory.")}
    return replace(state, memory=memory, **{n: x for n, x in named.items() if not n.startswith("memory.")})
