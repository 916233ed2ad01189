"""Steps with their small operations joined by torch.compile decode what plain ones decode."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from test_engine import on_gpu
from test_exact import RUNS
from traffic import check, engine

from checkpoints import tiny
from unmask.engine import compiled
from unmask.engine.fused import asked


@pytest.fixture
def traced(monkeypatch):
    """Functions that were compiled and called, by name. They are traced as on a GPU, and then run by PyTorch: no
    compiler of C++ is needed."""
    called, compile_ = set(), partial(torch.compile, backend="aot_eager")

    def noting(function, **settings):
        traced = compile_(function, **settings)

        def call(*given):
            called.add(function.__name__)
            return traced(*given)

        return call

    monkeypatch.setattr(compiled.torch, "compile", noting)
    return called


def test_compiled_steps_come_out_as_the_eager_loop(traced, monkeypatch):
    monkeypatch.setattr("unmask.engine.engine.GRAIN", 1)  # packed wherever rows differ
    name = "fast_dllm_v2-cache"
    lm = tiny(RUNS[name][0])
    check(lm, name, engine(lm, name, rows=2, compile=True), count=4, seed=1)
    assert traced == {"begin", "pack", "view", "finish_in_place"}


def test_asked_rows_are_those_of_each_row_whatever_the_shape():
    made = torch.compile(asked, fullgraph=True, backend="aot_eager")
    for rows, width, count, parts in ((1, 5, 2, None), (3, 4, 4, 2), (2, 7, 1, 1), (4, 6, 3, 2), (1, 12, 8, 3)):
        x_TC, picked = torch.randn(rows * width, 6), torch.randint(0, width, (rows, count))
        update_TC = None if parts is None else torch.randn(*([parts] if parts > 1 else []), rows * width, 6)
        x, update = made(x_TC, update_TC, picked, width)
        flat = [row * width + column for row in range(rows) for column in picked[row].tolist()]
        assert torch.equal(x, x_TC[flat])
        assert update is None if update_TC is None else torch.equal(update, update_TC[..., flat, :])


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["autoregressive", "fast_dllm_v2-cache", "d2f-dream"])
def test_compiled_steps_that_are_captured_come_out_as_the_eager_loop(name, monkeypatch):
    monkeypatch.setattr("unmask.engine.engine.GRAIN", 1)
    lm = on_gpu(RUNS[name][0])
    torch.use_deterministic_algorithms(False)
    check(lm, name, engine(lm, name, rows=2, compile=True), count=6, seed=2)
