"""A finished block stored in the forward that first looks at the next one: same text, a forward less a block."""

from __future__ import annotations

import pytest

from checkpoints import tiny
from many_models import ManyModels
from random_models import MASK, random_lm, random_prompts

SETTINGS = [
    {"block_size": 4, "threshold": 0.5},
    {"block_size": 2, "threshold": 0.9},
    {"block_size": 4, "steps": 3, "threshold": 0.4},
    {"block_size": 8, "strategy": "static"},
    {"block_size": 4, "select": "factor:factor=1.0"},
    {"block_size": 4, "select": "credit:tau=0.6"},
]


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_fused_commit_gives_the_same_text_on_200_random_models(number):
    models, prompts = ManyModels(100 * number, 34, "sdar", layers=1 + number % 2), random_prompts(number, 68)
    same = SETTINGS[number] | {"early_exit": number % 2 == 0}
    fused, short = models.texts("block_diffusion", prompts, 10, fused_commit=True, **same)
    plain, long = models.texts("block_diffusion", prompts, 10, fused_commit=False, **same)
    assert fused == plain
    for a, b in zip(short, long):
        saved = b.counters.decode_forwards - a.counters.decode_forwards
        # Every commit forward but the last one is shared, the last one is not needed.
        assert saved == b.counters.forwards["commit"]


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
    models, prompts = ManyModels(0, 6, "fast-dllm-v2", layers=2), random_prompts(0, 12)
    same = {"block_size": 8, "sub_block_size": 4, "threshold": threshold, "early_exit": False}
    texts, fused = models.texts("fast_dllm_v2", prompts, 30, fused_commit=True, **same)
    _, plain = models.texts("fast_dllm_v2", prompts, 30, fused_commit=False, **same)
    assert all(MASK not in text for text in texts)
    assert sum(p.counters.decode_forwards - f.counters.decode_forwards for f, p in zip(fused, plain)) > 0


def test_fast_dllm_v2_that_trims_runs_blocks_whole_in_the_forward_that_stores_the_one_before_alone():
    models, prompts = ManyModels(0, 6, "fast-dllm-v2", layers=2), random_prompts(0, 12)
    same = {"block_size": 8, "sub_block_size": 4, "early_exit": False, "sub_block_cache": True, "trim": True}
    texts, rows = models.texts("fast_dllm_v2", prompts, 30, fused_commit=True, threshold=0.6, **same)
    assert all(MASK not in text for text in texts)
    assert all(row.counters.forwards["denoise"] == 1 < row.counters.forwards["commit"] for row in rows)


def test_fast_dllm_v2_fused_equals_unfused_where_a_block_is_one_token():
    lm = random_lm(3, "fast-dllm-v2", block=1)
    same, prompts = {"method": "fast_dllm_v2", "sub_block_size": 1, "max_new_tokens": 12}, random_prompts(3, 3)
    fused, plain = (lm.generate(prompts, fused_commit=fuse, **same) for fuse in (True, False))
    assert [r.ids for r in fused] == [r.ids for r in plain]
