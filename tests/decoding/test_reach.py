"""How far a row may look by the load: told one thing, a row decodes as under the option of that size."""

from __future__ import annotations

import random
from dataclasses import fields, replace

import pytest
import torch
from oracle import EOS, Oracle, family

from checkpoints import tiny
from random_models import random_lm, random_prompts
from unmask.attention.dense import DenseAttention
from unmask.decoding import build
from unmask.decoding.forward import Facts
from unmask.decoding.loop import Row, decode
from unmask.decoding.sampling import Draw
from unmask.layout import Layout
from unmask.lm import LM


def told(lm: LM, name: str, options: dict, prompts: list[list[int]], new: int, reach) -> list[Row]:
    """Decodes with `reach`: a number, or a function of nothing that is asked before each forward."""
    say = reach if callable(reach) else lambda: reach
    method = build(name, options).bind(lm.family, new)
    kind = type(method)

    class Told(kind):
        def start(self, state):
            return kind.start(self, replace(state, reach=torch.tensor([say() for _ in state.prompt])))

        def commit(self, state, forward, scores):
            after = kind.commit(self, state, forward, scores)
            return replace(after, reach=torch.tensor([say() for _ in after.prompt]))

    n = len(prompts)
    draw = Draw(torch.zeros(n), torch.ones(n), torch.zeros(n).long(), torch.arange(n))
    made = Told(**{f.name: getattr(method, f.name) for f in fields(method)})
    return decode(lm.model, made, prompts, facts=lm.facts, draw=draw, new_tokens=new)


SAME = [
    ("d2f", "dream-tiny", {"block_size": 4, "threshold": 0.5}, 8, {"max_active_blocks": 2}),
    ("d2f", "llada-tiny", {"block_size": 4, "threshold": 0.5}, 4, {"max_active_blocks": 1}),
    ("wedlm", "wedlm-tiny", {"window_size": 8, "entropy_threshold": 3.0}, 2, {"window_size": 2}),
    ("wedlm", "wedlm-tiny", {"window_size": 8, "entropy_threshold": 3.0, "verify": True}, 4, {"window_size": 4}),
    ("fast_dllm_v2", "fast-dllm-v2-tiny", {"sub_block_size": 4}, 4, {"sub_block_cache": True}),
    ("fast_dllm_v2", "fast-dllm-v2-tiny", {"sub_block_size": 4, "sub_block_cache": True, "trim": True}, 4, {}),
]


@pytest.mark.parametrize(("name", "model", "options", "reach", "narrow"), SAME)
def test_a_row_that_is_told_one_thing_decodes_as_under_the_option(name, model, options, reach, narrow):
    lm, prompts = tiny(model), [p[:9] for p in random_prompts(4, 5)]
    assert reach in build(name, options).bind(lm.family, 40).reaches(40)
    rows = told(lm, name, options, prompts, 40, reach)
    for row, expected in zip(rows, lm.generate(prompts, method=name, max_new_tokens=40, **(options | narrow))):
        assert row.canvas[: len(expected.ids)] == expected.ids
        if name != "wedlm":  # a window that is told to be narrow begins as wide as the prefill made it
            assert row.counters.forwards == expected.counters.forwards


@pytest.mark.parametrize("name", ["jacobi", "jacobi-block"])
@pytest.mark.parametrize("seed", range(3))
def test_jacobi_gives_the_autoregressive_text_however_far_it_looks(name, seed):
    lm, rng = tiny("wedlm-tiny"), random.Random(seed)
    prompts = random_prompts(seed, 4)
    options = {"block_size": 6, "schedule": "block" if name == "jacobi-block" else "window"}
    rows = told(lm, "jacobi", options, prompts, 24, lambda: rng.choice((1, 2, 4, 6)))
    for row, expected in zip(rows, lm.generate(prompts, method="autoregressive", max_new_tokens=24)):
        assert row.canvas[: len(expected.ids)] == expected.ids
    lone = told(lm, "jacobi", options | {"prefill_draft": "none"}, prompts, 24, 1)
    for row, expected in zip(lone, lm.generate(prompts, method="autoregressive", max_new_tokens=24)):
        assert row.counters.forwards["draft"] == expected.counters.forwards["denoise"]


def by_hand(lm: LM, prompt: list[int], new: int, block: int) -> list[int]:
    """One token after the other, recomputing everything: whole blocks of the prompt see themselves, all else is
    causal."""
    ids, whole = list(prompt), len(prompt) // block * block
    while len(ids) < len(prompt) + new:
        at = torch.arange(len(ids))
        order = torch.where(at < whole, at // block * block, at)[None]
        zero = torch.zeros_like(order)
        with torch.inference_mode():
            z = lm.model(torch.tensor([ids]), at[None], DenseAttention(Layout(order, zero, zero, at[None])))[0, -1]
        ids.append(int(z.index_fill(0, torch.tensor([lm.facts.mask_id]), -torch.inf).argmax()))
        if ids[-1] in lm.facts.eos_ids:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("sub", [1, 4])
@pytest.mark.parametrize("seed", range(2))
def test_fast_dllm_v2_that_looks_at_one_token_decodes_under_a_causal_mask(seed, sub):
    lm = random_lm(seed, "fast-dllm-v2", block=8)
    prompts = random_prompts(seed, 6)
    rows = told(lm, "fast_dllm_v2", {"block_size": 8, "sub_block_size": sub}, prompts, 20, 1)
    for prompt, row in zip(prompts, rows):
        expected = by_hand(lm, prompt, 20, 8)
        assert row.canvas[: len(expected)] == expected
        assert {k for k, n in row.counters.forwards.items() if n} <= {"prefill", "denoise"}
        assert row.counters.decode_forwards <= 20


@pytest.mark.parametrize("cache", [{}, {"sub_block_cache": True}, {"sub_block_cache": True, "trim": True}])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_every_change_of_mind_reads_the_right_rows(cache, fused, seed):
    """A model that says a token by its position alone: one row off, anywhere, and the text is another one."""
    rng = random.Random(seed)
    text = [rng.randrange(60) for _ in range(90)] + [EOS] + [1] * 40
    oracle = Oracle(text, 1, [rng.choice((0.5, 0.95)) for _ in text])
    about = family(1, block=8)
    lm = type("Lm", (), {"model": oracle, "family": about, "facts": Facts(63, (EOS,), 1)})()
    options = {
        "block_size": 8,
        "sub_block_size": 4,
        "fused_commit": fused,
        **cache,
    }
    prompts = [text[:n] for n in (1, 7, 8, 9, 16, 21)]
    rows = told(lm, "fast_dllm_v2", options, prompts, 96, lambda: rng.choice((1, 1, 4, 8)))
    for prompt, row in zip(prompts, rows):
        found = row.canvas[: row.canvas.index(EOS) + 1]
        assert prompt + found == text[:91]


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_where_a_row_looks_further_again_its_block_is_stored_as_a_whole(seed, length):
    """From there on it decodes as if all the text so far had been its prompt."""
    lm, prompt = random_lm(seed, "fast-dllm-v2", block=4), [seed + 1, 5][:length]
    said = iter([1] * (3 - length) + [4] * 500)
    options = {"block_size": 4, "sub_block_size": 4}
    (row,) = told(lm, "fast_dllm_v2", options | {"early_exit": False}, [prompt], 24, lambda: next(said))
    alone = by_hand(lm, prompt, 4 - length, 4)
    assert row.canvas[: len(alone)] == alone
    if len(alone) == 4 - length and alone[-1] not in lm.facts.eos_ids:
        rest = lm.generate(prompt + alone, method="fast_dllm_v2", max_new_tokens=24 - len(alone), **options)
        assert row.canvas[len(alone) :][: len(rest.ids)] == rest.ids
        assert row.counters.forwards["commit"] > 0
