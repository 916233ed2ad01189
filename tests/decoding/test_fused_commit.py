"""A finished block stored in the forward that first looks at the next one: same text, a forward less a block."""

from __future__ import annotations

import pytest

from checkpoints import tiny
from random_models import MASK, random_lm, random_prompts

SETTINGS = [
    {"block_size": 4, "threshold": 0.5},
    {"block_size": 2, "threshold": 0.9},
    {"block_size": 4, "steps": 3, "threshold": 0.4},
    {"block_size": 8, "strategy": "static"},
    {"block_size": 4, "select": "factor:factor=1.0"},
    {"block_size": 4, "select": "credit:tau=0.6"},
]


def both(lm, prompts, **options):
    fused = lm.generate(prompts, fused_commit=True, **options)
    return fused, lm.generate(prompts, fused_commit=False, **options)


@pytest.mark.parametrize("chunk", range(4))
def test_fused_commit_gives_the_same_text_on_random_models(chunk):
    for seed in range(50 * chunk, 50 * chunk + 50):
        lm = random_lm(seed, "sdar", layers=1 + seed % 2)
        options = SETTINGS[seed % len(SETTINGS)] | {"early_exit": seed % 2 == 0}
        fused, plain = both(lm, random_prompts(seed, 2), method="block_diffusion", max_new_tokens=10, **options)
        assert [r.ids for r in fused] == [r.ids for r in plain]
        for short, long in zip(fused, plain):
            commits = long.counters.forwards["commit"]
            saved = long.counters.decode_forwards - short.counters.decode_forwards
            assert saved == commits  # every commit forward but the last one is shared, the last one is not needed


def test_a_fused_forward_reads_what_the_finished_block_reads_and_stores_both():
    lm = tiny("sdar-tiny")
    result = lm.generate(
        [1, 2, 3], method="block_diffusion", max_new_tokens=13, strategy="static", early_exit=False, trace=True
    )
    commits = [s for s in result.trace if s.kind == "commit"]
    assert [(s.first, s.width, s.reads, s.stores) for s in commits] == [(-3 + 4 * i, 8, 4 * i, 8) for i in range(3)]
    assert all(len(s.positions) == 1 for s in commits)  # they decide the next block's first token


@pytest.mark.parametrize("threshold", [0.6, 0.9])
def test_fast_dllm_v2_with_a_fused_commit_ends_without_masks_and_saves_forwards(threshold):
    saved = 0
    for seed in range(6):
        lm = random_lm(seed, "fast-dllm-v2", block=8)
        options = {"sub_block_size": 4, "threshold": threshold, "max_new_tokens": 30, "early_exit": False}
        fused, plain = both(lm, random_prompts(seed, 2), method="fast_dllm_v2", **options)
        assert all(MASK not in r.ids for r in fused)
        saved += sum(p.counters.decode_forwards - f.counters.decode_forwards for f, p in zip(fused, plain))
    assert saved > 0


def test_fast_dllm_v2_fused_equals_unfused_where_a_block_is_one_token():
    lm = random_lm(3, "fast-dllm-v2", block=1)
    fused, plain = both(lm, random_prompts(3, 3), method="fast_dllm_v2", sub_block_size=1, max_new_tokens=12)
    assert [r.ids for r in fused] == [r.ids for r in plain]
