"""Throughput: what is counted over which time, on an engine without a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from dummies import tiny_dummy

from checkpoints import tiny
from unmask import UnmaskError
from unmask.bench import throughput
from unmask.bench.replay import replayed
from unmask.bench.steps import Timed
from unmask.bench.throughput import Contender, beside, measure, prompts_of
from unmask.decoding import build
from unmask.decoding.counters import Counters
from unmask.engine.engine import Engine
from unmask.engine.mirror import Mirror

AR = Contender(build("autoregressive", {}), {})


def test_autoregressive_decoding_has_a_token_a_row_and_step() -> None:
    lm = tiny_dummy()
    entry = measure(lm, AR, prompts_of(lm, 3, 20), 16)
    decode = entry["decode"]
    assert decode["tokens"] == 3 * decode["steps"] and 10 <= decode["steps"] <= 14
    assert entry["decode_tokens_per_second"] == pytest.approx(entry["batch_over_step"])
    assert entry["decode_tokens_per_second"] == pytest.approx(decode["tokens"] / decode["seconds"])
    assert decode["seconds"] == pytest.approx(sum(entry["walls"]) / 1000) and len(entry["walls"]) == decode["steps"]
    assert entry["shapes"] == [[3, 1, 3]] * decode["steps"]  # no row had ended
    assert entry["tokens"] == 48 and entry["forwards"] == {"prefill": 3, "denoise": 45}
    assert entry["tpf"] == pytest.approx(48 / 45)
    assert entry["total_tokens_per_second"] == pytest.approx(48 / entry["seconds"])
    assert entry["seconds"] > decode["seconds"] and len(entry["ttfts"]) == 3
    assert 0 < entry["ttft_ms"] < 1000 * entry["seconds"]
    assert (entry["replayed_tpf"], entry["gpus"], entry["host_share"]) == (None, None, None)


@pytest.mark.parametrize("late", [False, True])
def test_the_decode_time_ends_before_the_first_row_does(late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if late:  # as on a GPU: the host learns of an end when further steps have been launched
        monkeypatch.setattr(Mirror, "ready", lambda self: False)
    lm = tiny_dummy()
    entry = measure(lm, AR, prompts_of(lm, 3, 20), 16, prefill_tokens=20)  # rows begin one after the other
    decode = entry["decode"]
    assert decode["tokens"] == 3 * decode["steps"]  # the first row has 12 steps left when the last has made its first
    assert 10 <= decode["steps"] <= 12


def test_a_run_in_which_a_row_ended_early_or_a_step_was_new_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_dummy()
    engine = Engine(lm, "autoregressive", rows=2, max_prompt=8, max_new_tokens=12, share_prefixes=False)
    prompts, own, asked = prompts_of(lm, 2, 8), throughput._pass, []

    def noted(engine: Engine, prompts: list[list[int]], window: int = 0) -> throughput._Pass:
        asked.append(window)
        if len(asked) == 4:
            engine.runner.captured[2, 1, None, (False, frozenset())] = None  # type: ignore[assignment]
        done = own(engine, prompts, window)
        done.window += 6  # as if the first run had had more steps
        return done

    monkeypatch.setattr(throughput, "_pass", noted)
    done = throughput._settled(engine, prompts)
    first = asked[1]
    assert asked == [0, first, first - 2, first - 4, first - 4] and done.whole and done.walls is not None
    assert done.decided == 2 * len(done.walls) == 2 * (first - 4)


@pytest.mark.parametrize(("method", "tpf"), [("fast_dllm_v2", 2.5), ("d2f", 3.0)])
def test_replayed_acceptance_is_had_and_marked(method: str, tpf: float) -> None:
    lm, options = tiny_dummy(), {"block_size": 16}
    contender = Contender(replayed(build(method, options), tpf, lm.family, 20, 48), options, tpf)
    entry = measure(lm, contender, prompts_of(lm, 2, 20), 48)
    assert entry["replayed_tpf"] == tpf and entry["method"] == method and entry["options"] == options
    assert entry["tokens"] == 96 and entry["tpf"] == pytest.approx(tpf, rel=0.1)
    decode = entry["decode"]
    assert decode["tokens"] / decode["steps"] / 2 == pytest.approx(tpf, rel=0.2)
    assert entry["decode_tokens_per_second"] > 1.8 * entry["batch_over_step"]


@pytest.mark.parametrize("name", ["autoregressive", "fast_dllm_v2"])
def test_texts_that_end_count_as_in_the_eager_loop(name: str) -> None:
    lm = tiny("fast-dllm-v2-tiny")
    draw = throughput.random.Random(2)
    prompts = [throughput.random_ids(draw, lm, length) for length in (9, 30, 17, 4)]
    entry = measure(lm, Contender(build(name, {}), {}), prompts, 40)
    total = Counters()
    for result in lm.generate(prompts, method=name, max_new_tokens=40):
        total.add(result.counters)
    assert entry["tokens"] == total.tokens and entry["tpf"] == pytest.approx(total.tpf)
    assert entry["forwards"] == {kind: n for kind, n in total.forwards.items() if n}


def test_where_no_time_belongs_to_all_rows_there_is_no_decode_rate() -> None:
    lm = tiny_dummy()
    entry = measure(lm, AR, prompts_of(lm, 3, 20), 2, prefill_tokens=1)  # a row ends before the last has begun
    assert entry["decode"] == {"steps": 0, "tokens": 0, "seconds": 0} and entry["tokens"] == 6
    assert entry["decode_tokens_per_second"] is None and entry["step_ms"] is None and entry["walls"] == []
    assert entry["total_tokens_per_second"] > 0


def test_gpu_time_is_that_of_the_decode_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Timed, "milliseconds", lambda self: [1e-4] * len(self.shapes))
    lm = tiny_dummy()
    entry = measure(lm, AR, prompts_of(lm, 2, 8), 12)
    assert len(entry["gpus"]) == len(entry["walls"]) and entry["gpu_step_ms"] == pytest.approx(1e-4)
    assert entry["host_share"] == pytest.approx(1 - 1e-4 / entry["step_ms"])


def test_too_little_memory_is_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore")

    monkeypatch.setattr(throughput, "_measured", full)
    lm = tiny_dummy()
    entry = measure(lm, AR, prompts_of(lm, 2, 4), 8)
    assert entry["reason"] == "out of memory: CUDA out of memory. Tried to allocate" and entry["batch"] == 2


def test_a_request_that_fails_ends_the_measurement() -> None:
    lm = tiny_dummy()
    with torch.no_grad():
        lm.model.embedding[:] = torch.nan
    with pytest.raises(UnmaskError, match="not finite"):
        measure(lm, AR, prompts_of(lm, 2, 4), 8)


def test_beside_autoregressive_decoding_of_the_same_batch() -> None:
    rates = [("autoregressive", 1, 10.0), ("d2f", 1, 25.0), ("autoregressive", 8, 50.0), ("d2f", 8, 40.0)]
    entries = [
        {"method": m, "batch": b, "reason": None, "decode_tokens_per_second": r, "x_autoregressive": None}
        for m, b, r in [*rates, ("d2f", 32, 60.0)]
    ]
    beside([*entries, {"method": "d2f", "batch": 64, "reason": "out of memory"}])
    assert [e["x_autoregressive"] for e in entries] == [1.0, 2.5, 1.0, 0.8, None]


def test_prompts_are_random_or_a_task() -> None:
    lm = tiny_dummy()
    first, second = prompts_of(lm, 2, 30)
    assert len(first) == len(second) == 30 and first != second and prompts_of(lm, 2, 30) == [first, second]
    problems = prompts_of(SimpleNamespace(encode=list), 2, 30, "wordmath")  # type: ignore[arg-type]
    assert len(problems) == 2 and problems[0] != problems[1] and all(text[-1] in ".?" for text in problems)
