"""Position-oracle tests: each method must reproduce the oracle for any prompt length, and its forward counts follow
the papers."""

from __future__ import annotations

import pytest
from oracle import EOS, MASK, Oracle, run

TEXT = [(i * 7 + 3) % 60 for i in range(400)]
V2 = {"block_size": 32, "sub_block_size": 8}


def text(rows, lengths, count):
    return [r.canvas[:count] == TEXT[n : n + count] for r, n in zip(rows, lengths)]


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("sub", [2, 8, 32])
@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_fast_dllm_v2_reproduces_the_oracle_for_ragged_batches(cache, sub, tau):
    lengths = [1, 31, 32, 33, 40, 64, 70]
    options = {"block_size": 32, "sub_block_size": sub, "threshold": tau, "sub_block_cache": cache}
    rows = run(Oracle(TEXT, 1), "fast_dllm_v2", options, lengths, 50)
    assert all(text(rows, lengths, 50))


def test_fast_dllm_v2_spends_at_most_one_forward_a_sub_block_and_one_commit_when_all_is_sure():
    (row,) = run(Oracle(TEXT, 1), "fast_dllm_v2", V2 | {"threshold": 0.5}, [32], 97)
    assert row.counters.forwards["denoise"] == 3 * 4
    assert row.counters.forwards["commit"] == 3  # the third gives token 97
    assert row.counters.forwards["prefill"] == 1


def test_fast_dllm_v2_at_threshold_one_takes_exactly_one_token_a_forward():
    (row,) = run(Oracle(TEXT, 1), "fast_dllm_v2", V2 | {"threshold": 1.0}, [32], 65)
    assert row.counters.forwards["denoise"] == 2 * 31
    assert row.counters.forwards["commit"] == 2
    assert [len(s.positions) for s in row.trace] == [1] * 65


def test_fast_dllm_v2_threshold_is_strict():
    sure = [0.75] * 400  # exactly representable, so confidence equals the threshold
    (row,) = run(Oracle(TEXT, 1, sure), "fast_dllm_v2", V2 | {"threshold": 0.7501}, [32], 32)
    assert row.counters.forwards["denoise"] == 31
    (row,) = run(Oracle(TEXT, 1, sure), "fast_dllm_v2", V2 | {"threshold": 0.74}, [32], 32)
    assert row.counters.forwards["denoise"] == 4


@pytest.mark.parametrize("where", [32, 35, 63, 64, 65])
def test_fast_dllm_v2_ends_at_an_end_token_wherever_it_arrives(where):
    said = TEXT[:where] + [EOS] + TEXT[where + 1 :]
    (row,) = run(Oracle(said, 1), "fast_dllm_v2", V2 | {"threshold": 0.5}, [32], 80)
    ids = row.canvas[: row.canvas.index(EOS) + 1]
    assert ids == said[32 : where + 1]
    assert MASK not in ids
    assert not any(row.open[: len(ids)])
    if where == 64:  # the bridge token of the first block's commit
        assert row.counters.forwards["commit"] == 1


def test_an_end_token_with_earlier_positions_open_does_not_end_the_row():
    sure = [0.99] * 400
    sure[33:36] = [0.3] * 3
    said = TEXT[:38] + [EOS] + TEXT[39:]
    (row,) = run(Oracle(said, 1, sure), "fast_dllm_v2", V2 | {"threshold": 0.5}, [32], 80)
    assert row.canvas[:7] == said[32:39]
    assert row.counters.forwards["denoise"] == 4  # 36..39 at once, then the three unsure ones


@pytest.mark.parametrize("block", [1, 2, 4, 16])
@pytest.mark.parametrize("strategy", ["sequential", "static", "dynamic", "entropy_bounded"])
def test_block_diffusion_reproduces_the_oracle(block, strategy):
    lengths = [1, 3, 4, 5, 8, 17]
    rows = run(Oracle(TEXT, 0), "block_diffusion", {"block_size": block, "strategy": strategy}, lengths, 21)
    assert all(text(rows, lengths, 21))


def test_block_diffusion_needs_one_denoise_and_one_commit_a_block_at_best():
    options = {"block_size": 4, "threshold": 0.5, "fused_commit": False}
    (row,) = run(Oracle(TEXT, 0), "block_diffusion", options | {"early_exit": False}, [8], 16)
    assert row.counters.forwards["denoise"] == 4
    assert row.counters.forwards["commit"] == 4
    (row,) = run(Oracle(TEXT, 0), "block_diffusion", options, [8], 16)
    assert row.counters.forwards["commit"] == 3  # nobody reads the last block's keys
    (row,) = run(Oracle(TEXT, 0), "block_diffusion", options | {"fused_commit": True}, [8], 16)
    assert row.counters.decode_forwards == 4  # one forward a block: it stores the block before


def test_block_diffusion_dynamic_above_one_is_static_and_full_steps_are_one_token_each():
    sure = [0.3 + (i * 37 % 100) / 150 for i in range(400)]
    dynamic = {"block_size": 8, "strategy": "dynamic", "threshold": 1.0}
    static = {"block_size": 8, "strategy": "static"}
    a, b = (run(Oracle(TEXT, 0, sure), "block_diffusion", o, [5], 30)[0] for o in (dynamic, static))
    assert [(s.positions, s.tokens) for s in a.trace] == [(s.positions, s.tokens) for s in b.trace]
    assert all(len(s.positions) == 1 for s in a.trace if s.kind == "denoise")


@pytest.mark.parametrize(("steps", "counts"), [(3, [3, 3, 2]), (8, [1] * 8), (1, [8]), (5, [2, 2, 2, 1, 1])])
def test_block_diffusion_static_splits_a_block_evenly(steps, counts):
    options = {"block_size": 8, "steps": steps, "strategy": "static", "early_exit": False}
    (row,) = run(Oracle(TEXT, 0), "block_diffusion", options, [8], 8)
    assert [len(s.positions) for s in row.trace if s.kind == "denoise"] == counts


@pytest.mark.parametrize("shift", [0, 1])
def test_d2f_reproduces_the_oracle_whatever_is_in_flight(shift):
    sure = [0.3 + (i * 37 % 100) / 150 for i in range(400)]
    lengths = [1, 5, 16, 23]
    for options in ({}, {"add_threshold": 1.0}, {"activate_threshold": 0.0}, {"max_active_blocks": 1}):
        rows = run(Oracle(TEXT, shift, sure), "d2f", {"block_size": 8, "threshold": 0.7} | options, lengths, 40)
        assert all(text(rows, lengths, 40))


def test_d2f_with_append_at_full_blocks_and_nothing_sure_takes_one_token_a_forward():
    options = {"block_size": 8, "add_threshold": 1.0, "threshold": 1.0, "early_exit": False}
    (row,) = run(Oracle(TEXT, 0), "d2f", options, [5], 32)
    assert sum(row.counters.forwards.values()) == 32


def test_d2f_appends_one_block_a_forward_and_commits_from_left_to_right():
    (row,) = run(Oracle(TEXT, 0), "d2f", {"block_size": 8, "threshold": 0.5}, [5], 64)
    # Forward i decides block i at once; the block before it is made permanent by the same forward.
    assert [s.positions for s in row.trace] == [list(range(8 * i, 8 * i + 8)) for i in range(8)]
    assert [s.visible for s in row.trace] == [0] + [5 + 8 * i for i in range(7)]
    assert [s.width for s in row.trace] == [13] + [16] * 7


def test_d2f_semi_activated_blocks_force_nothing():
    sure = [0.8 - i / 1000 for i in range(400)]
    options = {
        "block_size": 8,
        "add_threshold": 0.0,
        "activate_threshold": 1.0,
        "threshold": 0.9,
        "early_exit": False,
    }
    (row,) = run(Oracle(TEXT, 0, sure), "d2f", options, [5], 32)
    assert [s.positions for s in row.trace] == [[i] for i in range(32)]


def test_d2f_end_token_stops_appending_and_early_exit_drops_later_blocks():
    sure = [0.99] * 400
    sure[6] = 0.2
    said = TEXT[:20] + [EOS] + TEXT[21:]
    full = run(Oracle(said, 0, sure), "d2f", {"block_size": 8, "threshold": 0.5, "early_exit": False}, [5], 64)[0]
    short = run(Oracle(said, 0, sure), "d2f", {"block_size": 8, "threshold": 0.5}, [5], 64)[0]
    assert full.canvas[:16] == short.canvas[:16] == said[5:21]
    assert not all(full.open)
    assert sum(short.counters.forwards.values()) <= sum(full.counters.forwards.values())


def test_autoregressive_is_one_forward_a_token_and_the_prefill_gives_the_first():
    (row,) = run(Oracle(TEXT, 1), "autoregressive", {}, [9], 20, attention="causal")
    assert row.canvas == TEXT[9:29]
    assert row.counters.forwards["prefill"] == 1
    assert row.counters.forwards["denoise"] == 19


@pytest.mark.parametrize(("steps", "block", "counts"), [(16, 16, [1] * 16), (6, 8, [3, 3, 2] * 2), (2, 8, [8, 8])])
def test_masked_even_schedule_splits_each_block(steps, block, counts):
    options = {"steps": steps, "block_size": block, "schedule": "even"}
    (row,) = run(Oracle(TEXT, 0), "masked", options, [4], 16, attention="full")
    assert [len(s.positions) for s in row.trace] == counts
    assert row.canvas == TEXT[4:20]


def test_masked_with_one_token_blocks_goes_strictly_left_to_right():
    (row,) = run(Oracle(TEXT, 0), "masked", {"block_size": 1, "schedule": "even"}, [4], 12, attention="full")
    assert [s.positions for s in row.trace] == [[i] for i in range(12)]


@pytest.mark.parametrize(
    ("tokens", "steps", "counts"),
    [
        (4, 4, [0, 1, 1, 2]),
        (8, 8, [0, 1, 1, 1, 1, 1, 1, 2]),
        (8, 4, [1, 2, 2, 3]),
        (16, 4, [3, 4, 4, 5]),
        (32, 8, [3, 4, 4, 4, 4, 4, 4, 5]),
        (100, 10, [9] + [10] * 8 + [11]),
        (5, 2, [2, 3]),
        (7, 3, [2, 2, 3]),
        (256, 128, [1] + [2] * 126 + [3]),
        (256, 32, [7] + [8] * 30 + [9]),
    ],
)
def test_masked_timestep_schedule_follows_dreams_vectors(tokens, steps, counts):
    options = {"steps": steps, "early_exit": False}
    (row,) = run(Oracle(TEXT, 1), "masked", options, [4], tokens, attention="full")
    assert [len(s.positions) for s in row.trace] == counts
    assert row.canvas == TEXT[4 : 4 + tokens]


def test_masked_ban_eos_never_says_it_and_eos_last_commits_it_last():
    said = [EOS if i in (6, 7) else t for i, t in enumerate(TEXT)]
    options = {"block_size": 8, "schedule": "even", "early_exit": False}
    (row,) = run(Oracle(said, 0), "masked", options | {"ban_eos": True}, [4], 8, attention="full")
    assert EOS not in row.canvas
    (row,) = run(Oracle(said, 0), "masked", options | {"eos_last": True}, [4], 8, attention="full")
    assert sorted(s.positions[0] for s in row.trace[-2:]) == [2, 3]
