"""Step times: every timed step has the shape asked for and decides one token a row; what is summed and divided."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from dummies import tiny_dummy

from unmask import UnmaskError
from unmask.bench import steps
from unmask.bench.roofline import Ceilings, work
from unmask.bench.steps import Timed, engine_for, host_share, measure, run, timed
from unmask.bench.throughput import _decided
from unmask.decoding.forward import KINDS
from unmask.engine.step import FLAGS

CAN = Ceilings(copy=1e9, product=1e9)
SHAPES = [(1, 1), (3, 1), (1, 8), (2, 16), (1, 24)]


@pytest.mark.parametrize(("batch", "window"), SHAPES)
def test_a_step_is_that_of_a_full_batch(batch: int, window: int) -> None:
    lm = tiny_dummy()
    found = measure(lm, CAN, batch, window, context=32, steps=20)
    assert (found.batch, found.window, found.context, found.steps) == (batch, window, 32, 20)
    assert len(found.walls) == 20 and found.milliseconds == pytest.approx(sum(found.walls) / 20)
    assert (found.gpu, found.gpus, found.host_share) == (None, None, None)  # no device that could be asked
    need = work(lm.model.config, batch, window, 32, window, item=4)
    assert (found.bytes, found.operations) == (need.bytes, need.operations)
    assert found.floor == pytest.approx(1000 * need.floor(CAN)) and found.bound == need.bound(CAN)
    assert found.as_dict()["ratio"] == pytest.approx(found.milliseconds / found.floor, abs=1e-4)


@pytest.mark.parametrize(("batch", "window"), SHAPES)
def test_every_step_decides_one_token_a_row_over_the_whole_window(batch: int, window: int) -> None:
    lm = tiny_dummy()
    engine = engine_for(lm, batch, window, 32, 40)
    draw = steps.random.Random(0)
    for _ in range(batch):
        engine.add(steps.random_ids(draw, lm, 32))
    engine.step()
    assert len(engine.scheduler.running) == batch
    before = _decided(engine)
    walls, timer = run(engine, 35)
    assert _decided(engine) - before == 35 * batch and timer.shapes == [(batch, window, batch * window)] * 35
    forwards = dict(zip(KINDS, engine.batch.status[0, FLAGS:].tolist()))
    assert forwards["denoise"] + forwards["commit"] == 36
    assert forwards["commit"] == (0 if window == 1 else (32 % window + 36) // window)
    assert len(walls) == 35 and min(walls) > 0


def test_steps_of_another_shape_are_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "round_up", lambda position, block: 20)  # the rows end too early
    with pytest.raises(RuntimeError, match="20 steps of 2 x 1 asked for"):
        measure(tiny_dummy(), CAN, 2, 1, context=16, steps=20)


def test_a_model_needs_masks_for_windows() -> None:
    from checkpoints import tiny

    assert measure(tiny("qwen2-tiny"), CAN, 1, 1, context=8, steps=2).steps == 2
    with pytest.raises(UnmaskError, match="no mask token"):
        measure(tiny("qwen2-tiny"), CAN, 1, 8, context=8, steps=2)


def test_the_device_is_timed_around_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    # Events are made by recording them once; then steps of 2, 5 and 3 ms, with 1 ms between them.
    clock = accumulate([0] * 8 + [1, 2, 1, 5, 1, 3])

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("event")
            self.at = next(clock)

        def elapsed_time(self, end: Event) -> int:
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    timer = Timed(lambda *shape: log.append("step"), torch.device("cuda"), 4)  # type: ignore[arg-type]
    log.clear()
    for width, tokens in ((1, None), (4, 20), (2, 16)):
        timer(8, width, (False, frozenset()), tokens)
    assert log == ["event", "step", "event"] * 3
    assert timer.milliseconds() == [2, 5, 3] and timer.shapes == [(8, 1, 8), (8, 4, 20), (8, 2, 16)]


def test_the_engine_gets_its_runner_back() -> None:
    engine = engine_for(tiny_dummy(), 1, 1, 8, 4)
    own = engine.runner
    with pytest.raises(ZeroDivisionError), timed(engine, 2):
        assert engine.runner is not own
        raise ZeroDivisionError
    assert engine.runner is own


def test_the_host_has_the_rest_of_the_time() -> None:
    assert host_share(10.0, 8.0) == pytest.approx(0.2)
    assert host_share(10.0, 10.5) == 0.0  # clocks differ
    assert host_share(10.0, None) is None


def test_random_prompts_hold_no_special_tokens() -> None:
    from checkpoints import tiny

    lm = tiny("fast-dllm-v2-tiny")
    ids = set(steps.random_ids(steps.random.Random(1), lm, 20_000))
    assert ids == set(range(lm.model.config.vocab_size)) - {lm.facts.mask_id, *lm.facts.eos_ids}
