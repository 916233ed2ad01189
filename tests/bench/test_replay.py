"""Replayed acceptance: the rate that was asked for, whatever the weights, the batch and the loop."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from math import ceil
from typing import Any

import pytest
import torch
from dummies import tiny_dummy

from unmask import UnmaskError
from unmask.bench.dummy import SHAPES
from unmask.bench.replay import _drawn, attained, replayed, replaying
from unmask.decoding import build
from unmask.decoding.forward import State, blank
from unmask.decoding.loop import Row, decode
from unmask.decoding.sampling import Draw
from unmask.engine.engine import Engine
from unmask.models.families import Family, resolve

V2 = replace(resolve(SHAPES["fast-dllm-v2-7b"]), eos_ids=())
SDAR = replace(V2, name="sdar", shift=0, next_token=False)
CAPPED = {"max_active_blocks": 4}


def draw(rows: int) -> Draw:
    return Draw(torch.zeros(rows), torch.ones(rows), torch.zeros(rows).long(), torch.arange(rows))


@pytest.mark.parametrize(
    ("method", "options", "tpf", "family"),
    [
        ("fast_dllm_v2", {}, 1.0, V2),
        ("fast_dllm_v2", {}, 2.64, V2),
        ("fast_dllm_v2", {}, 6.4, V2),  # one forward a sub-block and one to commit: no more is possible
        ("fast_dllm_v2", {"sub_block_size": 32}, 9.0, V2),
        ("fast_dllm_v2", {"sub_block_cache": True}, 2.64, V2),
        ("fast_dllm_v2", {"fused_commit": True}, 2.64, V2),
        ("d2f", {}, 3.1, V2),
        ("d2f", CAPPED, 3.1, V2),
        ("d2f", CAPPED, 8.0, V2),
        ("block_diffusion", {"strategy": "dynamic"}, 2.5, SDAR),
    ],
)
def test_a_run_has_the_rate_asked_for(method: str, options: dict[str, Any], tpf: float, family: Family) -> None:
    found = attained(replayed(build(method, options), tpf, family, 64, 64), family, 64, 64)
    assert abs(64 / found - 64 / tpf) <= 1.0 + 1e-6, (found, tpf)
    assert 64 / found >= 64 / tpf - 0.01 or tpf == 1.0  # never faster: where there is a bridge token, one fewer


@pytest.mark.parametrize(("method", "options"), [("fast_dllm_v2", {}), ("d2f", CAPPED)])
def test_weights_batch_and_loop_change_nothing(method: str, options: dict[str, Any]) -> None:
    lm, new, prompts = tiny_dummy(), 64, [[1] * 40, [2] * 33, [3] * 64]
    made = replaying(build(method, options), 2.7)
    bound = made.bind(lm.family, new)
    eager = decode(lm.model, bound, prompts, facts=lm.facts, draw=draw(3), new_tokens=new)
    engine = Engine(tiny_dummy(seed=1), made, rows=4, max_prompt=64, max_new_tokens=new, share_prefixes=False)
    requests = [engine.add(p, seed=i) for i, p in enumerate(prompts)]
    engine.run()
    for i, (row, request) in enumerate(zip(eager, requests)):
        assert request.counters is not None and request.counters.forwards == row.counters.forwards
        assert not any(request.open[:new])
        alone = attained(bound, lm.family, len(prompts[i]), new, seed=i)
        assert new / alone == pytest.approx(row.counters.decode_forwards)
        assert row.counters.decode_forwards in (ceil(new / 2.7), ceil(new / 2.7) + 1)


@cache
def traced(at_most: int | None) -> list[Row]:
    """Four rows of D2F with so many blocks in flight at most."""
    lm = tiny_dummy()
    made = replaying(build("d2f", {"max_active_blocks": at_most}).bind(lm.family, 256), 3.1)
    return decode(lm.model, made, [[1] * 8] * 4, facts=lm.facts, draw=draw(4), new_tokens=256, trace=True)


@pytest.mark.parametrize(("at_most", "blocks"), [(None, 4.4), (4, 3.4)])
def test_blocks_in_flight_share_as_the_text_says(at_most: int | None, blocks: float) -> None:
    share, widths = Counter[int](), []
    for row in traced(at_most):
        is_open = set(range(256))
        for step in row.trace:
            if step.kind != "prefill":
                widths.append(step.width // 32)
                share.update(p // 32 - min(is_open) // 32 for p in step.positions)
            is_open -= set(step.positions)
    assert share[0] / share.total() == pytest.approx(0.4, abs=0.03)
    assert sum(widths) / len(widths) == pytest.approx(blocks, abs=0.1)


def test_a_row_is_never_far_behind() -> None:
    for row in traced(4):
        decided = 0
        for number, step in enumerate(row.trace[1:], 1):
            decided += len(step.positions)
            assert min(int(number * 3.1), 256) <= decided + len(row.trace[0].positions) <= number * 3.1 + 5


def test_within_a_block_the_leftmost_are_taken() -> None:
    torch.manual_seed(0)
    rows, size = 50, 8
    state: State = blank([[1] * 3] * rows, [3 + 4 * size] * rows, 4 * size, tiny_dummy().facts, draw(rows))
    state = replace(state, open=state.open & (torch.rand(state.open.shape) < 0.6))
    targets = (torch.arange(4 * size) + 3).repeat(rows, 1)
    targets[:, -5:] = -1  # columns that are not used
    due = torch.arange(rows) - 5
    chosen = _drawn(state, targets, size, due)
    is_open = state.open_at(targets)
    assert not (chosen & ~is_open).any()
    assert torch.equal(chosen.sum(-1), torch.minimum(due.clamp(min=0), is_open.sum(-1)))
    assert len({tuple(x.view(4, size).sum(-1).tolist()) for x in chosen[10:20]}) > 5  # not one block after the other
    for taken, free in zip(chosen.view(-1, size), is_open.view(-1, size)):
        assert torch.equal(taken[free], torch.arange(int(free.sum())) < taken.sum())


@pytest.mark.parametrize(
    ("method", "options", "tpf", "message"),
    [
        ("fast_dllm_v2", {}, 7.0, "7 tokens a forward cannot be replayed .* the nearest is 6.40"),
        ("fast_dllm_v2", {}, 0.5, "the nearest is 1.0"),
        ("jacobi", {}, 2.0, "jacobi: its acceptance cannot be replayed: "),
        ("fast_dllm_v2", {"select": "static"}, 2.0, "under another selection or stop rule"),
    ],
)
def test_what_cannot_be_replayed_is_refused(method: str, options: dict[str, Any], tpf: float, message: str) -> None:
    with pytest.raises(UnmaskError, match=message):
        replayed(build(method, options), tpf, V2, 64, 128)
