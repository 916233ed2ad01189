"""Memory: bytes worked out by hand, and rows that fit."""

from __future__ import annotations

import pytest
import torch
from dummies import tiny_dummy

from unmask.bench import memory
from unmask.bench.memory import measure, weights, work
from unmask.bench.throughput import Contender
from unmask.decoding import build
from unmask.engine.engine import Engine

AR = Contender(build("autoregressive", {}), {})
PER_SLOT = 2 * 2 * 1 * 16 * 4  # keys and values, layers, heads, dimensions, float32


def test_bytes_by_hand() -> None:
    lm = tiny_dummy()
    found = measure(lm, AR, 3, 100, 30, page_size=16)
    rows = -(-130 // 16)
    assert found["pages"] == {
        "bytes": (3 * rows + 1) * 16 * PER_SLOT,  # and the spare page
        "pages": 3 * rows + 1,
        "page_size": 16,
        "per_page": 16 * PER_SLOT,
        "per_row": rows * 16 * PER_SLOT,
    }
    floats = sum(p.numel() for p in lm.model.parameters()) + 8  # the angles' frequencies
    assert found["weights"] == 4 * floats
    assert found["per_row"] == found["pages"]["per_row"] + found["state"] // 3
    assert found["state"] > 3 * (100 + 30) * (8 + 1)  # canvas and open, whatever else there is
    unknown = ("graphs", "other", "outside", "peak_allocated", "peak_reserved", "device", "rows_fit")
    assert all(found[name] is None for name in unknown)


def test_as_many_rows_fit_as_fill_the_rest() -> None:
    lm = tiny_dummy()
    free = measure(lm, AR, 2, 40, 24)
    for room, fit in ((0, 0), (-1, 0), (5 * free["per_row"], 5), (5 * free["per_row"] - 1, 4)):
        found = measure(lm, AR, 2, 40, 24, device_bytes=free["weights"] + room)
        assert found["rows_fit"] == fit and found | {"device": None, "rows_fit": None} == free


def test_what_the_device_says_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"graphs": 600, "other": 10_000, "outside": 5_000, "peak_allocated": 1, "peak_reserved": 2, "device": 10**6}
    monkeypatch.setattr(memory, "_unknown", lambda: dict(said))
    found = measure(tiny_dummy(), AR, 2, 40, 24)
    assert found["per_row"] == found["pages"]["per_row"] + (found["state"] + 600) // 2
    assert found["rows_fit"] == (10**6 - found["weights"] - 15_000) // found["per_row"]


def test_the_pool_of_the_graphs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_dummy(), "autoregressive", rows=1, max_prompt=4, max_new_tokens=4)
    engine.runner.pool = (0, 7)  # type: ignore[assignment]
    sizes = [((0, 7), 100), ((0, 0), 1000), ((0, 7), 20)]
    segments = [{"segment_pool_id": pool, "total_size": size} for pool, size in sizes]
    for name, value in {
        "memory_snapshot": segments,
        "mem_get_info": (3000, 9000),
        "max_memory_reserved": 5000,
        "memory_reserved": 4000,
        "max_memory_allocated": 3500,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *at, value=value: value)
    assert memory._on_gpu(engine, 1500) == {
        "graphs": 120,
        "other": 5000 - 1500 - 120,
        "outside": 9000 - 3000 - 4000,
        "peak_allocated": 3500,
        "peak_reserved": 5000,
        "device": 9000,
    }


def test_rounded_weights_take_less() -> None:
    lm = tiny_dummy()
    plain = measure(lm, AR, 1, 8, 8)["weights"]
    narrow = measure(tiny_dummy(), AR, 1, 8, 8, quantise="fp8")["weights"]
    layers = sum(p.numel() for name, p in lm.model.named_parameters() if ".layers." in name and p.dim() == 2)
    outputs = 2 * (32 + 2 * 16 + 32 + 2 * 64 + 32)  # a scale for each, in the place of three bytes a weight
    head = lm.model.config.vocab_size
    assert plain - narrow == 3 * (layers + 32 * head) - 4 * (outputs + head)


def test_joint_weights_count_once() -> None:
    lm = tiny_dummy()
    engine = Engine(lm, "autoregressive", rows=1, max_prompt=4, max_new_tokens=4, quantise="fp8")
    once = weights(engine)
    lm.model.register_buffer("again", lm.model.embedding.detach()[:3])
    assert weights(engine) == once


@pytest.mark.parametrize("method", ["autoregressive", "fast_dllm_v2", "d2f"])
def test_an_engine_is_left_empty(method: str) -> None:
    lm = tiny_dummy()
    engine = Engine(lm, method, rows=2, max_prompt=20, max_new_tokens=40, share_prefixes=False)
    for _ in range(2):
        work(engine, lm, 2, 20)
        assert engine.idle and engine.pool.used_pages == 0
    assert engine.steps >= 2 * memory.STEPS


def test_too_little_memory_is_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(memory, "_measured", full)
    assert measure(tiny_dummy(), AR, 2, 4, 8) == {
        "method": "autoregressive",
        "options": {},
        "batch": 2,
        "reason": "out of memory: CUDA out of memory.",
    }
