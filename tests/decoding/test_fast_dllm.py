"""Fast-dLLM v1 and dParallel: what their papers promise of caches, rules and plans, on models with random weights."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
import torch
from oracle import MASK as ORACLE_MASK
from oracle import Oracle, run

from random_models import MASK, random_lm, random_prompts
from unmask.attention.dense import DenseAttention
from unmask.decoding.dparallel import DParallel
from unmask.decoding.fast_dllm import FastDLLM
from unmask.decoding.forward import Facts, Kind
from unmask.decoding.loop import decode
from unmask.decoding.sampling import Draw
from unmask.decoding.stop import STOPS
from unmask.errors import UnmaskError
from unmask.layout import full

TEXT = [(i * 7 + 3) % 60 for i in range(200)]
CACHES = ["none", "prefix", "dual"]


def generate(lm, prompt, method="fast_dllm", **options):
    """Three blocks of four tokens."""
    fixed = {"max_new_tokens": 12, "early_exit": False, "trace": True}
    options = {"block_size": 4} | options if method != "masked" else options
    return lm.generate(prompt, method=method, **(fixed | options))


def decisions(results):
    return [[(s.positions, s.tokens) for s in result.trace if s.positions] for result in results]


# Degenerate settings


@pytest.mark.parametrize("steps", [12, 6, 3])
@pytest.mark.parametrize("block", [12, 4])
def test_planned_steps_without_a_cache_are_lladas_sampler(block, steps):
    lm, batch = random_lm(0, "llada"), random_prompts(0, 4)
    ours = generate(lm, batch, block_size=block, steps=steps)
    assert decisions(ours) == decisions(generate(lm, batch, "masked", block_size=block, steps=steps))


@pytest.mark.parametrize("steps", [12, 5, 1])
def test_planned_steps_without_a_cache_in_one_block_are_dreams_sampler(steps):
    lm, batch = random_lm(1, "dream"), random_prompts(1, 4)
    ours = generate(lm, batch, block_size=12, steps=steps)
    assert decisions(ours) == decisions(generate(lm, batch, "masked", steps=steps, alg="entropy"))


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("cache", CACHES)
def test_a_threshold_above_one_takes_one_token_a_forward(cache, family):
    lm, batch = random_lm(2, family), random_prompts(2, 2)
    results = generate(lm, batch, cache=cache, threshold=1.1)
    assert [len(s.positions) for result in results for s in result.trace] == [1] * 24
    if family == "llada":
        assert decisions(results) == decisions(generate(lm, batch, cache=cache, steps=12))
        assert decisions(results) == decisions(generate(lm, batch, cache=cache, factor=0.0))


@pytest.mark.parametrize("cache", CACHES)
def test_threshold_zero_takes_a_block_at_once_and_so_does_a_large_entropy(cache):
    lm = random_lm(3, "llada")
    for method, options in (("fast_dllm", {"threshold": 0.0}), ("dparallel", {"tau": 9.0})):
        result = generate(lm, [1, 2, 3], method, cache=cache, **options)
        assert [s.positions for s in result.trace] == [list(range(i, i + 4)) for i in (0, 4, 8)]
        assert {s.kind for s in result.trace} == {"denoise" if cache == "none" else "refresh"}
    dream = generate(random_lm(3, "dream"), [1, 2, 3], cache=cache, threshold=0.0)
    assert len(dream.trace) == (3 if cache == "none" else 6)


def test_entropy_zero_takes_one_token_a_forward_the_most_certain_one():
    result = generate(random_lm(4, "llada"), [1, 2, 3], "dparallel", tau=0.0)
    assert [len(s.positions) for s in result.trace] == [1] * 12
    assert [s.positions[0] // 4 for s in result.trace] == [0] * 4 + [1] * 4 + [2] * 4


def test_dparallel_with_another_rule_is_fast_dllm():
    lm, batch = random_lm(5, "llada"), random_prompts(5, 4)
    for cache in CACHES:
        ours = generate(lm, batch, "dparallel", cache=cache, select="threshold:tau=0.6,strict=false")
        assert decisions(ours) == decisions(generate(lm, batch, cache=cache, threshold=0.6))
        entropy = generate(lm, batch, cache=cache, select="entropy:tau=0.7")
        assert decisions(entropy) == decisions(generate(lm, batch, "dparallel", cache=cache, tau=0.7))


# Caches


@pytest.mark.parametrize("seed", range(2))
def test_on_one_layer_prefix_and_dual_cache_are_exact(seed):
    """Keys of the first layer depend on their own token alone."""
    lm, batch = random_lm(seed, "llada", layers=1), random_prompts(seed, 4)
    for options in ({"threshold": 0.5}, {"factor": 1.0}, {"steps": 6}, {"select": "credit:tau=0.6"}):
        plain = decisions(generate(lm, batch, **options))
        for cache in ("prefix", "dual"):
            assert decisions(generate(lm, batch, cache=cache, **options)) == plain
    dream = random_lm(seed, "dream", layers=1)
    prefix, dual = (generate(dream, batch, cache=c, threshold=0.5) for c in ("prefix", "dual"))
    assert decisions(prefix) == decisions(dual)


def test_on_more_layers_they_are_not():
    lm = random_lm(6, "llada", layers=3)
    texts = [[r.ids for r in generate(lm, random_prompts(6, 6), cache=c, threshold=0.5)] for c in CACHES]
    assert texts[0] != texts[1] != texts[2] != texts[0]


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_refreshed_at_every_forward_a_cache_is_exact(cache):
    lm, batch = random_lm(7, "llada", layers=3), random_prompts(7, 4)
    often = generate(lm, batch, cache=cache, threshold=0.5, refresh_every=1)
    assert decisions(often) == decisions(generate(lm, batch, threshold=0.5))
    assert {s.kind for result in often for s in result.trace} == {"refresh"}


def test_refresh_every_counts_the_forwards_of_a_block():
    result = generate(random_lm(8, "llada"), [4, 5], cache="dual", threshold=1.1, refresh_every=3)
    assert "".join(s.kind[0] for s in result.trace) == "rwwr" * 3


def test_in_a_single_block_prefix_and_dual_cache_are_one_window():
    for family in ("llada", "dream"):
        lm, batch = random_lm(9, family, layers=3), random_prompts(9, 4)
        a, b = (generate(lm, batch, cache=c, block_size=12, threshold=0.6) for c in ("prefix", "dual"))
        assert decisions(a) == decisions(b)
        assert [[s.width for s in r.trace] for r in a] == [[s.width for s in r.trace] for r in b]


def uncached(lm, canvas):
    with torch.inference_mode():
        attend = DenseAttention(full(len(canvas)))
        return lm.model(torch.tensor([canvas]), torch.arange(len(canvas))[None], attend)[0]


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_each_refresh_decides_what_an_uncached_forward_would(cache, family):
    """The first position alone where the model predicts the next one, whatever its confidence."""
    lm = random_lm(10, family, layers=3)
    shift = lm.family.shift
    for result in generate(lm, random_prompts(10, 4), cache=cache, threshold=0.6):
        prompt = result.prompt_ids
        canvas = prompt + [MASK] * 12
        for step in result.trace:
            if step.kind == "refresh":
                z = uncached(lm, canvas).index_fill(1, torch.tensor([MASK]), -torch.inf)
                said = [int(z[p + len(prompt) - shift].argmax()) for p in step.positions]
                assert step.tokens == said
                assert not shift or (len(step.positions) == 1 and step.positions[0] % 4 == 0)
            for p, t in zip(step.positions, step.tokens):
                canvas[p + len(prompt)] = t
        assert sum(s.kind == "refresh" for s in result.trace) == 3


@dataclass(frozen=True, kw_only=True)
class Watching(FastDLLM):
    """Decides nothing in a refresh, so the window behind it runs on the same canvas; ends after that."""

    def commit(self, state, forward, scores):
        LOGITS.append(scores.logits)
        return replace(state, round=state.round + 1, done=forward.kind == Kind.WINDOW)


LOGITS: list[torch.Tensor] = []


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_window_on_an_unchanged_canvas_gives_the_logits_of_the_refresh(cache):
    lm = random_lm(11, "llada", layers=3)
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8, 9]]
    draw = Draw(torch.zeros(2), torch.ones(2), torch.zeros(2).long(), torch.zeros(2).long())
    LOGITS.clear()
    decode(lm.model, Watching(block_size=8, cache=cache), prompts, facts=Facts(MASK, (), 0), draw=draw, new_tokens=16)
    refresh, window = LOGITS
    assert torch.allclose(refresh, window, atol=1e-5)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("cache", CACHES)
def test_windows_lie_where_the_paper_puts_them_and_speak_of_the_right_positions(cache, shift):
    sure = [0.3 + (i * 37 % 100) / 150 for i in range(200)]
    lengths = [1, 5, 16, 23]
    options = {"block_size": 8, "threshold": 0.7, "cache": cache, "early_exit": False}
    for method in ("fast_dllm", "dparallel"):
        given = options if method == "fast_dllm" else {k: v for k, v in options.items() if k != "threshold"}
        rows = run(Oracle(TEXT, shift, sure), method, given, lengths, 21, attention="full")
        for row, n in zip(rows, lengths):
            assert row.canvas == TEXT[n : n + 21]  # the last block is cut at 21
            for step in row.trace:
                block = min(step.positions) // 8 * 8
                end = min(block + 8, 21)
                if step.kind != "window":
                    expected = (-n, n + 21, 0, 0)
                elif cache == "prefix":
                    expected = (block, 21 - block, n + block, n + block)
                else:
                    expected = (block, end - block, n + 21, n + 21 - (end - block))
                assert (step.first, step.width, step.visible, step.reads) == expected
                assert step.stores == (0 if cache == "none" else step.width)


# Plans, pools, budgets


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("cache", CACHES)
def test_no_budget_leaves_masks_and_no_forward_is_wasted_by_a_rule(cache, family):
    lm = random_lm(12, family)
    rng = random.Random(12)
    for steps in (3, 6, 12, 24):
        result = generate(lm, [1, 2, 3], cache=cache, steps=steps)
        assert sorted(p for s in result.trace for p in s.positions) == list(range(12))
        assert len(result.trace) <= max(steps, 12 if family == "llada" else 6)
    for _ in range(8):
        rule = rng.choice([{"threshold": rng.random()}, {"factor": 3 * rng.random()}])
        size, new = rng.randint(1, 6), rng.randint(1, 12)
        result = generate(lm, [1, 2, 3], cache=cache, block_size=size, max_new_tokens=new, **rule)
        assert sorted(p for s in result.trace for p in s.positions) == list(range(new))
        assert all(s.positions for s in result.trace)
        assert MASK not in result.ids


def test_a_plan_splits_each_block_evenly_the_shorter_last_one_too():
    options = {"block_size": 8, "steps": 9, "cache": "dual", "early_exit": False}
    (row,) = run(Oracle(TEXT, 0), "fast_dllm", options, [4], 21, attention="full")
    assert [len(s.positions) for s in row.trace] == [3, 3, 2, 3, 3, 2, 2, 2, 1]


def test_one_grid_step_a_block_leaves_nothing_with_token_shift():
    """The official code ends with masks here."""
    options = {"block_size": 4, "steps": 2, "cache": "prefix", "early_exit": False}
    (row,) = run(Oracle(TEXT, 1), "fast_dllm", options, [6], 8, attention="full")
    assert [s.positions for s in row.trace] == [[0], [1, 2, 3], [4], [5, 6, 7]]
    assert ORACLE_MASK not in row.canvas


def test_a_pool_releases_the_surest_positions_step_by_step():
    """Four positions in two steps: of the two surest one is below the threshold and waits, then the rest is free."""
    sure = [0.99, 0.95, 0.6, 0.97, 0.8]
    options = {"block_size": 4, "pool_steps": 2, "threshold": 0.9, "early_exit": False}
    (row,) = run(Oracle(TEXT[:5], 1, sure), "fast_dllm", options, [1], 4, attention="full")
    assert [s.positions for s in row.trace] == [[0, 2], [3], [1]]
    low = {"block_size": 4, "pool_steps": 2, "threshold": 0.5, "early_exit": False}
    (row,) = run(Oracle(TEXT[:5], 1, sure), "fast_dllm", low, [1], 4, attention="full")
    assert [s.positions for s in row.trace] == [[0, 2], [1, 3]]


# Combinations and refusals


@dataclass(frozen=True)
class SecondForward:
    def __call__(self, state, forward, scores, span):
        return state, span.step >= 1


@pytest.mark.parametrize("cache", CACHES)
def test_a_stop_rule_takes_the_rest_of_the_block(cache, monkeypatch):
    monkeypatch.setitem(STOPS.known, "second_forward", SecondForward)
    for method, more in (("fast_dllm", {"threshold": 1.1}), ("dparallel", {"tau": 0.0})):
        result = generate(random_lm(13, "llada"), [1, 2], method, cache=cache, stop="second_forward", **more)
        assert [len(s.positions) for s in result.trace] == [1, 3] * 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 0.9, "factor": 1.0}, "threshold and factor are two selection rules"),
        ({"steps": 4, "threshold": 0.9}, "steps and threshold are two selection rules"),
        ({"steps": 4}, "steps 4 is not a multiple of the 3 blocks"),
        ({"refresh_every": 2}, "refresh_every needs cache prefix or dual"),
        ({"cache": "vicinity"}, "'vicinity'"),
    ],
)
def test_unsound_options_are_refused(options, words):
    with pytest.raises(UnmaskError, match=words):
        generate(random_lm(0, "llada"), [1, 2, 3], **options)


@pytest.mark.parametrize(("family", "other"), [("sdar", "block_diffusion"), ("fast-dllm-v2", "fast_dllm_v2")])
def test_models_of_blocks_are_sent_to_their_own_methods(family, other):
    for method in ("fast_dllm", "dparallel"):
        with pytest.raises(UnmaskError, match=f"block attention.*{other}"):
            generate(random_lm(0, family), [1, 2, 3], method)


def test_official_names_of_the_options_are_understood():
    assert DParallel(block_size=8) == replace(DParallel(), block_size=8)
    lm = random_lm(14, "llada")
    a = lm.generate([1, 2], method="dparallel", block_length=8, threshold=0.3, max_new_tokens=16)
    assert a.ids == lm.generate([1, 2], method="dparallel", block_size=8, tau=0.3, max_new_tokens=16).ids
