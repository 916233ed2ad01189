"""Degenerate settings reduce to simpler methods; what makes a method exact is what its paper says makes it so."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from checkpoints import tiny
from unmask.decoding.d2f import D2F
from unmask.lm import LM
from unmask.models.checkpoint import Checkpoint
from unmask.models.transformer import Transformer


def prompts(seed: int, count: int, longest: int = 40) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(170) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def pairs(result):
    return [(s.positions, s.tokens) for s in result.trace if s.positions]


def test_fast_dllm_v2_with_blocks_of_one_is_autoregressive_decoding_of_the_same_weights():
    lm = tiny("fast-dllm-v2-tiny")
    ones, bases = (
        lm.generate(prompts(0, 6), max_new_tokens=16, **method)
        for method in ({"method": "fast_dllm_v2", "block_size": 1}, {"method": "autoregressive"})
    )
    for ours, base in zip(ones, bases):
        assert ours.ids == base.ids
        assert ours.counters.forwards["denoise"] == 0
        assert ours.counters.decode_forwards == base.counters.decode_forwards


def test_d2f_with_blocks_of_one_and_token_shift_is_greedy_decoding_behind_a_bidirectional_prompt():
    same = {"method": "d2f", "block_size": 1, "max_new_tokens": 12, "add_threshold": 1.0, "trace": True}
    for one in tiny("dream-tiny").generate(prompts(1, 4), **same):
        assert [s.positions for s in one.trace] == [[i] for i in range(len(one.ids))]


def test_block_diffusion_with_one_block_over_everything_is_the_vanilla_sampler():
    lm = tiny("llada-tiny")
    checkpoint = replace(lm.checkpoint, family=replace(lm.family, attention="block"))  # one block over all of it
    for prompt in ([5, 6, 7, 8, 9, 10, 11, 12], [3] * 20):
        new = 32 - len(prompt)
        block = LM(checkpoint, None).generate(
            prompt, method="block_diffusion", block_size=32, strategy="static", max_new_tokens=new, trace=True
        )
        vanilla = lm.generate(prompt, method="masked", max_new_tokens=new, trace=True)
        assert pairs(block) == pairs(vanilla)


def test_masked_without_guidance_equals_weight_zero_and_one_block_equals_none():
    lm = tiny("llada-tiny")
    prompt = prompts(2, 1)[0]
    plain = lm.generate(prompt, method="masked", max_new_tokens=16, trace=True)
    for options in ({"cfg_scale": 0.0}, {"block_size": 16}, {"steps": 16}):
        assert pairs(lm.generate(prompt, method="masked", max_new_tokens=16, trace=True, **options)) == pairs(plain)


def test_masked_guidance_changes_the_text():
    lm = tiny("llada-tiny")
    plain, guided = (lm.generate(prompts(3, 4), method="masked", max_new_tokens=16, cfg_scale=w) for w in (0.0, 2.0))
    assert [r.ids for r in plain] != [r.ids for r in guided]


def test_d2f_that_activates_every_block_at_once_is_the_single_state_pipeline():
    lm = tiny("llada-tiny")
    same = {"method": "d2f", "block_size": 4, "max_new_tokens": 24, "threshold": 0.8, "early_exit": False}
    same |= {"add_threshold": 0.5, "trace": True}
    two, one = (lm.generate(prompts(4, 3), activate_threshold=x, **same) for x in (0.5, 0.0))
    assert [pairs(r) for r in two] == [pairs(r) for r in one]


def test_d2f_with_one_block_never_commits():
    result = tiny("llada-tiny").generate([4, 5, 6], method="d2f", block_size=32, max_new_tokens=32, early_exit=False)
    assert result.counters.forwards["commit"] == 0


def test_d2f_needs_its_carry_row(monkeypatch):
    def texts():
        rows = tiny("dream-tiny").generate(prompts(5, 6), method="d2f", block_size=4, max_new_tokens=24)
        return [row.ids for row in rows]

    right, commit = texts(), D2F.commit

    def forgetful(self, state, forward, scores):
        state = commit(self, state, forward, scores)
        return replace(state, carry=torch.zeros_like(state.carry))

    monkeypatch.setattr(D2F, "commit", forgetful)
    assert texts() != right


def one_layer(lm: LM, seed: int) -> LM:
    """A random model of one layer with the head and sizes of another."""
    config = replace(lm.model.config, num_layers=1)
    model = Transformer(config).eval()
    model.init_weights(std=0.4, generator=torch.Generator().manual_seed(seed))
    old = lm.checkpoint
    return LM(Checkpoint(model, config, lm.family, old.config_json, None, old.folder), None)


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_sub_block_cache_is_exact_on_one_layer(seed, trim):
    """Keys of the first layer depend on their own token alone, so only the window's own keys may change."""
    lm, batch = one_layer(tiny("fast-dllm-v2-tiny"), seed), prompts(seed, 3)
    same = {"method": "fast_dllm_v2", "max_new_tokens": 64, "threshold": 0.5}
    for cached, plain in zip(lm.generate(batch, sub_block_cache=True, trim=trim, **same), lm.generate(batch, **same)):
        assert cached.ids == plain.ids
        assert cached.counters.forwards["window"] > 0


def test_the_sub_block_cache_is_not_exact_on_deeper_models_and_is_off_by_default():
    lm = tiny("fast-dllm-v2-tiny")
    same, batch = {"method": "fast_dllm_v2", "max_new_tokens": 64}, prompts(9, 6)
    cached = lm.generate(batch, sub_block_cache=True, **same)
    assert [r.ids for r in cached] != [r.ids for r in lm.generate(batch, **same)]
