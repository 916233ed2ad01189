"""How far rows look by the load: what is chosen from times and acceptance, and an engine that changes its mind."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from traffic import requests, text

from checkpoints import GOLDEN, MASKS, tiny
from unmask.decoding.loop import Row, decode
from unmask.decoding.sampling import Draw
from unmask.engine import step as steps
from unmask.engine.engine import Engine
from unmask.engine.load import BETTER, ENOUGH, FADING, Load, _Row
from unmask.engine.request import Request, Status
from unmask.engine.runner import Runner
from unmask.errors import UnmaskError
from unmask.lm import LM
from unmask.models.checkpoint import load_model

# A card that reads its weights in 4 ms and does 30 tokens a millisecond, once there are more than 120.
CARD = {n: max(4.0, n / 30) for n in (1, 32, 64, 120, 128, 1024, 4096)}


def known(rates: dict[int, tuple[float, float]], times: dict[int, float] = CARD) -> Load:
    """A load that has seen (tokens, columns) a forward of each reach."""
    load = Load(tuple(rates), times, 1)
    for reach, (tokens, columns) in rates.items():
        load._rows["seen"] = _Row(reach)
        load.saw("seen", 0, 0, round(columns))
        load.saw("seen", round(1000 * tokens), 1000, round(columns))
        load.forget("seen")
    return load


@pytest.mark.parametrize(("rows", "best"), [(1, 32), (2, 32), (8, 8), (15, 8), (64, 1), (200, 1)])
def test_the_reach_is_the_one_that_decides_most_tokens_a_second(rows, best):
    load = known({1: (1.0, 1), 8: (2.5, 12), 32: (3.0, 32)})
    names = [str(i) for i in range(rows)]
    for name in names:
        load.enter(name)
    assert load.choose(names) == [best] * rows
    rates = {r: load.rate(r, rows) for r in load.reaches}
    assert max(rates.values()) <= BETTER * rates[best]


def test_what_is_unknown_is_tried_by_one_row_until_it_is_known():
    load, rows = Load((1, 8, 32), CARD, 32), [str(i) for i in range(64)]
    done = dict.fromkeys(rows, (0, 0))
    gains, tried = {1: 1, 8: 3, 32: 4}, []
    for row in rows:
        load.enter(row)
    for _ in range(200):
        told = load.choose(rows)
        others = [r for r in told if r != load.best]
        assert len(others) <= 1
        tried += others
        for row, reach in zip(rows, told):
            tokens, forwards = done[row]
            done[row] = tokens + gains[reach], forwards + 1
            load.saw(row, *done[row], {1: 1, 8: 12, 32: 32}[reach])
    assert set(tried) == {8, 32} and len(tried) < 4 * ENOUGH
    assert load.choose(rows) == [1] * 64
    assert load.rate(8, 64) == pytest.approx(64 * 3 / load.milliseconds(64 * 12), rel=0.05)


def test_a_row_counts_only_once_it_does_what_it_is_told():
    load = Load((1, 8), CARD, 32)
    load._rows["a"] = _Row(1)
    load.saw("a", 1, 0, 1)  # of the prefill
    assert load.counts[1].tokens == load.counts[1].forwards
    load.saw("a", 11, 10, 1)
    load.choose(["a"])  # nothing is known of 8: the row is to try it
    before = load.counts[8].forwards
    load.saw("a", 42, 41, 1)  # its block may not have ended yet
    assert load.counts[8].forwards == before
    load.saw("a", 46, 45, 8)
    load.saw("a", 51, 46, 8)
    assert (load.counts[8].forwards, load.counts[8].tokens) == (before + 1, 5)


def test_one_of_the_new_rows_tries_what_is_unknown():
    load = Load((1, 8, 32), CARD, 32)
    load.weigh(16)
    assert [load.enter(str(i)) for i in range(16)] == [32] + [1] * 15


def test_what_was_given_up_is_tried_again_after_a_while():
    load, rows = known({1: (1.0, 1), 8: (1.0, 12)}), [str(i) for i in range(64)]
    for row in rows:
        load.enter(row)
    assert load.choose(rows) == [1] * 64
    told = [load.choose(rows) for _ in range(6 * FADING)]
    assert any(8 in t for t in told) and load.rate(1, 64) is not None


def test_steps_that_were_not_measured_lie_between_those_that_were():
    load = Load((1, 8), {32: 4.0, 64: 5.0, 128: 9.0}, 1)
    assert [load.milliseconds(n) for n in (1, 32, 48, 96, 256)] == [4.0, 4.0, 4.5, 7.0, 18.0]


CASES = [
    ("fast_dllm_v2", "fast-dllm-v2-tiny", {"block_size": 8, "sub_block_size": 4, "threshold": 0.5}),
    ("fast_dllm_v2", "fast-dllm-v2-tiny", {"block_size": 8, "sub_block_size": 4, "sub_block_cache": True}),
    ("fast_dllm_v2", "fast-dllm-v2-tiny", {"sub_block_size": 4, "sub_block_cache": True, "trim": True}),
    ("d2f", "dream-tiny", {"block_size": 4, "threshold": 0.5}),
    ("wedlm", "wedlm-tiny", {"window_size": 6}),
    ("jacobi", "wedlm-tiny", {"block_size": 6}),
]


@pytest.mark.parametrize(("name", "model", "options"), CASES)
@pytest.mark.parametrize("times", [{1: 1.0, 1000: 1000.0}, {1: 1.0, 1000: 1.001}], ids=["by-token", "flat"])
def test_an_engine_under_load_ends_all_requests_and_holds_nothing(name, model, options, times, monkeypatch):
    """Whatever the card, and while rows change over: complete texts; where text does not depend on it, the same."""
    monkeypatch.setattr(Engine, "_times", lambda self, reaches: times)
    monkeypatch.setattr("unmask.engine.load.ENOUGH", 4)
    lm = tiny(model)
    sizes = {"rows": 4, "max_prompt": 40, "max_new_tokens": 16, "page_size": 16, "prefill_tokens": 16}
    engine = Engine(lm, name, by_load=True, **sizes, **options)
    asked = requests(7, 8, mixed=False)
    made = [engine.add(a["prompt"], temperature=a["temperature"], seed=a["seed"]) for a in asked]
    engine.run()
    assert all(r.status is Status.FINISHED for r in made) and engine.pool.used_pages == 0
    for request in made:
        end = len(text(lm, request))
        assert not any(request.open[:end]) and (lm.facts.mask_id < 0 or lm.facts.mask_id not in text(lm, request))
    if name == "jacobi":
        alone = Engine(lm, "autoregressive", **sizes)
        plain = [alone.add(a["prompt"], temperature=a["temperature"], seed=a["seed"]) for a in asked]
        alone.run()
        assert [text(lm, r) for r in made] == [text(lm, r) for r in plain]
    assert engine.load is not None
    assert sum(count.tokens > 0 for count in engine.load.counts.values()) > 1  # they did change over


@pytest.mark.parametrize(("name", "model", "options"), CASES)
@pytest.mark.parametrize("seed", range(2))
def test_a_row_decodes_as_the_eager_loop_that_is_told_the_same_at_each_forward(name, model, options, seed, monkeypatch):
    """The load changes its mind at random; what stands around a row still changes nothing else of it."""
    monkeypatch.setattr(Engine, "_times", lambda self, reaches: {1: 1.0})
    lm, rng = tiny(model), random.Random(seed)
    sizes = {"rows": 4, "max_prompt": 40, "max_new_tokens": 24, "page_size": 16, "prefill_tokens": 16}
    engine = Engine(lm, name, by_load=True, **sizes, **options)
    load, asked = engine.load, requests(seed, 6, mixed=False)
    assert load is not None
    told: dict[Request, list[int]] = {}

    def enter(row: Request) -> int:
        told[row] = [rng.choice(load.reaches)]
        return told[row][0]

    monkeypatch.setattr(load, "choose", lambda rows: [rng.choice(load.reaches) for _ in rows])
    monkeypatch.setattr(engine.prefills, "enter", enter)
    once = engine.runner._once

    def noting(rows, width, tokens, used):
        before = engine.batch.status[:, steps.FLAGS :].sum(-1).tolist()
        reach = engine.batch.named["reach"].tolist()
        once(rows, width, tokens, used)
        after = engine.batch.status[:, steps.FLAGS :].sum(-1).tolist()
        for row, request in enumerate(engine.scheduler.running):
            told[request] += [reach[row]] * (after[row] - before[row])

    monkeypatch.setattr(engine.runner, "_once", noting)
    made = [engine.add(a["prompt"], temperature=a["temperature"], seed=a["seed"]) for a in asked]
    engine.run()
    for request in made:
        (row,) = as_told(lm, engine.method, request, told[request])
        assert request.canvas[: len(text(lm, request))] == row.canvas[: len(text(lm, request))]
        assert request.counters is not None and request.counters.forwards == row.counters.forwards
    assert len({reach for each in told.values() for reach in each}) == len(load.reaches)


def as_told(lm: LM, method: Any, request: Request, told: list[int]) -> list[Row]:
    """The eager loop, told `told[0]` for the prefill and the next one at each forward."""
    kind, left, now = type(method), iter(told[1:]), []

    class Told(kind):
        def start(self, state):
            return kind.start(self, replace(state, reach=torch.tensor([told[0]])))

        def plan(self, state):
            now[:] = [next(left)]
            return kind.plan(self, replace(state, reach=torch.tensor(now)))

        def commit(self, state, forward, scores):
            return kind.commit(self, replace(state, reach=torch.tensor(now)) if now else state, forward, scores)

    made = Told(**{f.name: getattr(method, f.name) for f in fields(method)})
    draw = Draw(*(torch.tensor([x]) for x in (request.temperature, 1.0, 0, request.seed)))
    return decode(lm.model, made, [request.prompt], facts=lm.facts, draw=draw, new_tokens=request.max_new_tokens)


def test_new_rows_are_told_what_suits_them_all(monkeypatch):
    """One row alone looked far; when many come at once their first blocks are not what suited that one."""
    monkeypatch.setattr("unmask.engine.load.ENOUGH", 4)
    monkeypatch.setattr(Engine, "_times", lambda self, reaches: {1: 1.0, 8: 1.0, 16: 2.0, 1024: 128.0})
    lm, new = tiny("fast-dllm-v2-tiny"), {"max_prompt": 16, "max_new_tokens": 32}
    engine = Engine(lm, "fast_dllm_v2", rows=16, by_load=True, sub_block_cache=True, threshold=0.0, **new)
    assert engine.load is not None
    for seed in range(2):
        engine.add([seed, 5, 6])
        engine.run()
    assert engine.load.best == 8
    made = [engine.add([seed, 7, 8]) for seed in range(16)]
    engine.step()
    assert engine.load.best == 1 and engine.batch.named["chain"].all()
    engine.run()
    assert all(r.status is Status.FINISHED for r in made)


def test_a_row_that_sits_out_steps_of_one_column_needs_as_many_as_before(monkeypatch):
    """Wide steps cost so much that the one row which looks far sits out four of five."""
    monkeypatch.setattr(Engine, "_times", lambda self, reaches: {1: 1.0})
    monkeypatch.setattr(Runner, "cost", lambda self, rows, tokens: float(tokens**2))
    sizes = {"rows": 4, "max_prompt": 8, "max_new_tokens": 64, "by_load": True}
    engine = Engine(tiny("fast-dllm-v2-tiny"), "fast_dllm_v2", sub_block_cache=True, trim=True, threshold=0.5, **sizes)
    assert engine.load is not None
    monkeypatch.setattr(engine.load, "choose", lambda rows: [8] + [1] * (len(rows) - 1))
    choose, waited = engine._choose, []

    def noting(rows: int) -> tuple[int, int | None]:
        planned = engine.method.plan(engine.batch.view(rows, (False, frozenset())))
        for request, passed in engine._passed.items():
            if passed > 1:
                waited.append((engine._need[request], int(steps.columns(planned)[request.row])))
        return choose(rows)

    monkeypatch.setattr(engine, "_choose", noting)
    for seed in range(4):
        engine.add([5, 6, seed])
    engine.run()
    assert len(waited) > 8 and all(need == columns for need, columns in waited)


def test_a_row_that_something_is_tried_on_never_sits_out(monkeypatch):
    """However much less the narrow steps cost: of a reach that is tried enough is soon known."""
    monkeypatch.setattr("unmask.engine.load.ENOUGH", 8)
    monkeypatch.setattr(Engine, "_times", lambda self, reaches: {1: 1.0})
    monkeypatch.setattr(Runner, "cost", lambda self, rows, tokens: float(tokens**2))
    sizes = {"rows": 4, "max_prompt": 8, "max_new_tokens": 64, "by_load": True}
    engine = Engine(tiny("fast-dllm-v2-tiny"), "fast_dllm_v2", sub_block_cache=True, trim=True, threshold=0.5, **sizes)
    load = engine.load
    assert load is not None
    for seed in range(4):
        engine.add([5, 6, seed])
    while load.counts[8].forwards < 8:
        assert not engine.idle
        engine.step()
        assert load.trial not in engine._passed
    assert engine.steps <= 8 + 32  # what it was told takes effect with its next block


@pytest.mark.parametrize(("cache", "reaches"), [(False, (1, 8, 32)), (True, (1, 8))])
def test_an_engine_measures_its_steps_at_the_start(cache, reaches):
    """Up to whole blocks of all rows, also where no row is told to look so far."""
    sizes = {"rows": 4, "max_prompt": 16, "max_new_tokens": 16}
    engine = Engine(tiny("fast-dllm-v2-tiny"), "fast_dllm_v2", by_load=True, sub_block_cache=cache, **sizes)
    assert engine.load is not None and engine.load.reaches == reaches
    assert [n for n, _ in engine.load.times] == [1, 4, 8, 32, 128]
    assert all(ms > 0 for _, ms in engine.load.times)
    assert engine.widths == (1, 8, 16, 32)


def test_a_method_that_cannot_look_less_far_says_so():
    with pytest.raises(UnmaskError, match="autoregressive looks as far under any load; leave out by_load"):
        Engine(tiny("qwen2-tiny"), "autoregressive", by_load=True)
    with pytest.raises(UnmaskError, match="jacobi looks as far under any load; leave out by_load"):
        Engine(tiny("wedlm-tiny"), "jacobi", by_load=True, block_size=1)


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "model", "options"), CASES)
def test_captured_steps_under_load_never_wait_and_end_all_requests(name, model, options, monkeypatch):
    monkeypatch.setattr("unmask.engine.load.ENOUGH", 4)
    folder = GOLDEN / "models" / model
    lm = LM(load_model(folder, device="cuda", dtype=torch.float32, mask_token_id=MASKS.get(model)), None)
    sizes = {"rows": 4, "max_prompt": 40, "max_new_tokens": 16, "page_size": 16}
    engine = Engine(lm, name, by_load=True, **sizes, **options)
    assert engine.load is not None and all(ms > 0 for _, ms in engine.load.times)
    asked, capture = requests(7, 12, mixed=False), engine.runner._capture

    def captured(key):
        """May wait. What the load chooses is a matter of time: a kind of step may be new whenever it likes."""
        torch.cuda.set_sync_debug_mode("default")
        graph = capture(key)
        torch.cuda.set_sync_debug_mode("error")
        return graph

    monkeypatch.setattr(engine.runner, "_capture", captured)
    for _ in range(2):
        torch.cuda.set_sync_debug_mode("error")
        try:
            made = [engine.add(a["prompt"], temperature=0.0, seed=a["seed"]) for a in asked]
            engine.run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert all(r.status is Status.FINISHED for r in made) and engine.pool.used_pages == 0
        assert not any(any(r.open[: len(text(lm, r))]) for r in made)
