"""Stop rules alone: schedules and pooling worked out by hand, and what a row remembers."""

from __future__ import annotations

from dataclasses import replace
from math import exp

import pytest
import torch

from unmask.decoding.forward import Facts, State, blank, window
from unmask.decoding.sampling import Draw, Scores
from unmask.decoding.stop import STOPS, Prophet, Sched, Span

PROMPT, SIZE, VOCAB = 3, 6, 8


def state_of(open_rows: list[list[bool]], shift: int = 0) -> State:
    """Rows with a prompt of three tokens, and six positions of which the given ones are open."""
    n = len(open_rows)
    draw = Draw(torch.zeros(n), torch.ones(n), torch.zeros(n).long(), torch.zeros(n).long())
    state = blank([[1, 2, 3]] * n, [PROMPT + SIZE] * n, SIZE, Facts(VOCAB - 1, (VOCAB - 2,), shift), draw)
    is_open = torch.cat([torch.zeros(n, PROMPT, dtype=torch.bool), torch.tensor(open_rows)], 1)
    return replace(state, open=is_open)


def look(rule, state: State, z: torch.Tensor, step: int = 0, steps: int = 6, whole: bool = False) -> tuple[State, list]:
    """One forward as the rule sees it: logits [B, R, V] for the answer, or for the prompt too."""
    rows = len(state.prompt)
    at = torch.arange(0 if whole else PROMPT, PROMPT + SIZE).expand(rows, -1)
    index = torch.arange(PROMPT + SIZE).expand(rows, -1)
    none = torch.zeros_like(state.prompt)
    row = (at - state.facts.shift).clamp(min=0)
    yes = torch.ones_like(index, dtype=torch.bool)
    forward = window(state, index, yes, index * 0, visible=none, rows=row, targets=at, kind=none, cached=False)
    best = z.argmax(-1)
    scores = Scores(best, best, z.softmax(-1).amax(-1), z.softmax(-1).amax(-1), z)
    state, fires = rule(state, forward, scores, Span(state.prompt, SIZE, none + step, steps))
    return state, fires.tolist()


def with_margins(margins: list[float], token: int = 2) -> torch.Tensor:
    """Logits whose best token is ahead of the second by so much at each position: [1, R, V]."""
    z = torch.zeros(1, len(margins), VOCAB)
    z[0, :, token] = torch.tensor(margins)
    return z


def level(rule, step: int, steps: int) -> float:
    one = torch.zeros(1, dtype=torch.long)
    return float(rule.level(Span(one, SIZE, one + step, steps)))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Sched(kind="linear"), [7.5, 6.25, 5, 3.75, 2.5]),
        (Sched(kind="cosine"), [7.5, 6.768, 5, 3.232, 2.5]),
        (Sched(kind="exp", k=4), [7.5, 4.339, 3.177, 2.749, 2.592]),
        (Sched(kind="exp", k=16), [7.5, 2.592, 2.502, 2.5, 2.5]),
        (Sched(kind="exp", k=16, low=0.0), [7.5, 0.137, 0.0025, 0.0, 0.0]),
        (Sched(), [7.5, 6.768, 5, 3.232, 2.5]),
        (Prophet(), [7.5, 5, 5, 2.5, 2.5]),
    ],
)
def test_schedules_of_five_forwards(rule, expected):
    assert [level(rule, i, 5) for i in range(5)] == pytest.approx(expected, abs=1e-3)


def test_schedules_fall_begin_and_end_where_they_should():
    for kind in ("linear", "cosine", "exp"):
        rule = Sched(kind=kind)
        levels = [level(rule, i, 33) for i in range(40)]
        assert levels == sorted(levels, reverse=True)
        assert levels[0] == 7.5
        assert level(rule, 0, 1) == 2.5  # a single forward
        assert levels[33:] == [levels[32]] * 7  # more forwards than planned
        assert levels[32] == pytest.approx(2.5 + 5 * exp(-4) if kind == "exp" else 2.5)
    assert [level(Sched(kind="linear"), i, 9) for i in (0, 4, 8)] == pytest.approx(
        [level(Sched(kind="cosine"), i, 9) for i in (0, 4, 8)]
    )
    assert [level(Sched(kind="exp", k=0.0), i, 9) for i in range(9)] == [7.5] * 9


def test_prophets_thirds_are_exact_and_it_is_a_schedule_of_three_steps():
    levels = [level(Prophet(high=3.0, middle=2.0, low=1.0), i, 18) for i in range(18)]
    assert levels == [3.0] * 5 + [2.0] * 6 + [1.0] * 7  # (i + 1) / 18 < 1/3, < 2/3
    same = [level(Prophet(high=2.0, middle=2.0, low=2.0), i, 18) for i in range(18)]
    assert same == [level(Sched(high=2.0, low=2.0), i, 18) for i in range(18)]


def exit_step(rule, margins: list[float]) -> int:
    """The forward at which the rule stops a run whose mean margin is given, its length if it never does."""
    state = state_of([[True] * SIZE])
    for step, margin in enumerate(margins):
        state, fires = look(rule, state, with_margins([margin] * SIZE), step, len(margins))
        if fires[0]:
            return step
    return len(margins)


def test_lowering_the_end_or_falling_faster_never_stops_later():
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        margins = (torch.rand(16, generator=generator) * 8).tolist()
        by_low = [exit_step(Sched(kind="linear", low=low), margins) for low in (6.0, 4.0, 2.0, 0.0)]
        by_k = [exit_step(Sched(kind="exp", k=k), margins) for k in (0.5, 2.0, 4.0, 16.0)]
        assert by_low == sorted(by_low, reverse=True)
        assert by_k == sorted(by_k, reverse=True)
        assert by_k[-1] < 16


def test_margins_ignore_shifts_and_scale_with_the_logits():
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(1, SIZE, VOCAB, generator=generator)
    top = z.topk(2).values
    mean = float((top[..., 0] - top[..., 1]).mean())
    state = state_of([[True] * SIZE])

    def fires(logits, at):
        return look(Sched(high=at, low=at, max_change=1.0), state, logits)[1][0]

    for logits, scale in ((z, 1), (z + torch.arange(SIZE)[:, None], 1), (3 * z, 3), (z / 2, 0.5)):
        assert fires(logits, scale * mean * 0.999)
        assert not fires(logits, scale * mean * 1.001)


def test_pooling_by_hand():
    margins = [4.0, 1.0, 3.0, 8.0, 2.0, 6.0]
    state = state_of([[True, True, True, True, False, False]])  # open: 1, 3, 4, 8
    cases = {
        "mean": 4.0,
        "median": 3.0,  # the lower of the two in the middle
        "min": 1.0,
        "quantile,q=0.5": 3.5,
        "quantile,q=0.2": 1 + 2 * 0.6,
        "mean,masked_only=false": 4.0,
        "median,masked_only=false": 3.0,
        "min,first=2": 3.0,
        "mean,first=1,count=2": 2.0,
        "mean,first=3,count=2,masked_only=false": 5.0,
    }
    for text, pooled in cases.items():
        for at, expected in ((pooled - 0.01, True), (pooled + 0.01, False)):
            rule = STOPS.parse(f"sched:high={at},low={at},max_change=1,stat={text}")
            assert look(rule, state, with_margins(margins))[1] == [expected], (text, at)


def test_masked_and_whole_span_agree_while_all_is_masked_and_the_prompt_counts_where_asked():
    z = with_margins([9.0] * PROMPT + [1.0] * SIZE)
    state = state_of([[True] * SIZE])
    for at, over_all in ((0.9, True), (1.1, True), (3.6, True), (3.7, False)):
        rule = Sched(high=at, low=at, max_change=1.0)
        answers = [look(replace(rule, masked_only=m), state, z, whole=True)[1][0] for m in (True, False)]
        assert answers == [at < 1] * 2
        # (3 * 9 + 6 * 1) / 9 = 3.67
        assert look(replace(rule, masked_only=False, region="all"), state, z, whole=True)[1][0] == over_all


def test_progress_counts_the_region():
    state = state_of([[False, False, True, True, True, True]])  # 2 of 6, with the prompt 5 of 9, of the first three 2
    for text, share in {"": 2 / 6, "region=all": 5 / 9, "first=0,count=3": 2 / 3, "first=2": 0.0}.items():
        for at, expected in ((share - 0.01, True), (share + 0.01, False)):
            rule = STOPS.parse(f"prophet:high=-1,min_progress={at},{text}")
            assert look(rule, state, with_margins([0.0] * SIZE))[1] == [expected], (text, at)


def test_a_region_that_is_decided_lets_the_rest_go_and_one_outside_never_stops():
    state = state_of([[False, True, True, True, True, True]])
    unsure = with_margins([0.1] * SIZE)
    assert look(STOPS.parse("prophet:first=0,count=1"), state, unsure)[1] == [True]
    assert look(STOPS.parse("prophet:first=9,count=1"), state, unsure)[1] == [False]
    assert look(STOPS.parse("prophet:high=-1"), state_of([[False] * SIZE]), unsure)[1] == [False]  # nothing left


def test_the_test_for_changes_needs_an_unchanged_forward_and_counts_open_positions_alone():
    rule = Sched(high=-1.0, low=-1.0)
    calm, other = with_margins([1.0] * SIZE), with_margins([1.0] * SIZE, token=3)
    state, fires = look(rule, state_of([[True] * SIZE]), calm)
    assert fires == [False]
    assert look(rule, state, calm)[1] == [True]
    state, fires = look(rule, state, other)
    assert fires == [False]
    mixed = torch.cat([other[:, :3], calm[:, 3:]], 1)
    assert look(rule, state, mixed)[1] == [False]  # half of them changed
    assert look(replace(rule, max_change=0.5), state, mixed)[1] == [True]
    assert look(replace(rule, max_change=0.49), state, mixed)[1] == [False]
    decided = replace(state, open=state_of([[True] * 3 + [False] * 3]).open)
    assert look(rule, decided, mixed)[1] == [True]


def test_patience_counts_calm_forwards_in_a_row():
    rule = Sched(high=-1.0, low=-1.0, patience=2)
    calm, other = with_margins([1.0] * SIZE), with_margins([1.0] * SIZE, token=3)
    state, seen = state_of([[True] * SIZE]), []
    for z in (calm, calm, other, other, other, other):
        state, fires = look(rule, state, z)
        seen += fires
    assert seen == [False] * 5 + [True]


def test_what_was_noted_of_one_block_says_nothing_of_the_next():
    rule = Sched(high=-1.0, low=-1.0)
    state, _ = look(rule, state_of([[True] * SIZE]), with_margins([1.0] * SIZE))
    moved = replace(state, memory=state.memory | {"stop_first": state.memory["stop_first"] - 1})
    assert look(rule, moved, with_margins([1.0] * SIZE))[1] == [False]
    assert look(rule, state, with_margins([1.0] * SIZE))[1] == [True]


def test_rows_stop_for_themselves():
    rule = Sched(high=2.0, low=2.0, max_change=1.0)
    z = torch.cat([with_margins([3.0] * SIZE), with_margins([1.0] * SIZE)])
    assert look(rule, state_of([[True] * SIZE] * 2), z)[1] == [True, False]


def test_a_banned_token_in_front_is_no_margin():
    z = with_margins([5.0] * SIZE, token=VOCAB - 1)
    z[..., 1] = 1.0
    state = state_of([[True] * SIZE])
    best = torch.full((1, SIZE), 1)
    scores = Scores(best, best, best.float(), best.float(), z)
    at = torch.arange(PROMPT, PROMPT + SIZE)[None]
    zero = torch.zeros(1, dtype=torch.long)
    index = torch.arange(PROMPT + SIZE)[None]
    forward = window(state, index, index >= 0, index * 0, visible=zero, rows=at, targets=at, kind=zero, cached=False)
    for high, expected in ((-3.9, False), (-4.1, True)):  # 1 - 5
        rule = Sched(high=high, low=high, max_change=1.0)
        assert rule(state, forward, scores, Span(state.prompt, SIZE, zero, 6))[1].tolist() == [expected]


def test_a_position_without_a_row_of_its_own_is_left_out():
    """With token shift a window that begins with a decided position has no row that speaks of it."""
    state = state_of([[False] + [True] * 5], shift=1)
    zero = torch.zeros(1, dtype=torch.long)
    at = torch.arange(PROMPT, PROMPT + SIZE)[None]
    row = (at - PROMPT - 1).clamp(min=0)
    forward = window(state, at, at >= 0, at * 0, visible=zero, rows=row, targets=at, kind=zero, cached=False)
    z = with_margins([9.0] + [1.0] * 5)
    best = z.argmax(-1)
    for high, expected in ((1.1, False), (0.9, True)):
        rule = Sched(high=high, low=high, max_change=1.0, masked_only=False)
        scores = Scores(best, best, best.float(), best.float(), z)
        assert rule(state, forward, scores, Span(state.prompt, SIZE, zero, 6))[1].tolist() == [expected]
