"""MDLM's sampler: its law by enumeration, its forwards, and that skipping forwards changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from tabular import Tabular, counts, exact_law, excess, sample

from checkpoints import GOLDEN, tiny
from unmask import UnmaskError
from unmask.attention.dense import DenseAttention
from unmask.decoding import build
from unmask.decoding.forward import Facts, blank
from unmask.decoding.mdlm import noise_level, reveal_chance, time_at
from unmask.decoding.sampling import Draw, Scores
from unmask.layout import full
from vectors_samplers import SAMPLERS

CASES = [json.loads(line) for line in (GOLDEN / "mdlm-sampler.jsonl").read_text().splitlines()]


def joint(vocab: int, length: int, seed: int = 0) -> Tabular:
    logits = 1.5 * torch.randn(vocab**length, generator=torch.Generator().manual_seed(seed)).double()
    return Tabular(vocab, length, logits.softmax(-1))


@pytest.mark.parametrize("case", CASES, ids=[c["id"] for c in CASES])
def test_official_posteriors_and_races(case):
    assert SAMPLERS["mdlm-sampler"](GOLDEN, case) == ""


def test_steps_compose():
    t, r, s = (torch.tensor(x, dtype=torch.float64) for x in (0.9, 0.6, 0.25))
    stay = (1 - reveal_chance(t, r)) * (1 - reveal_chance(r, s))
    torch.testing.assert_close(1 - reveal_chance(t, s), stay)


def test_the_schedule_is_the_log_linear_one():
    t, s = (torch.tensor(x, dtype=torch.float64) for x in (0.7, 0.4))
    alpha_t, alpha_s = (torch.exp(-noise_level(x)) for x in (t, s))
    torch.testing.assert_close(alpha_t, 1 - (1 - 1e-3) * t)
    torch.testing.assert_close(reveal_chance(t, s), (alpha_s - alpha_t) / (1 - alpha_t))
    grid = [float(time_at(torch.tensor(i), 4)) for i in range(6)]
    assert grid == pytest.approx([*torch.linspace(1, 1e-5, 5, dtype=torch.float64).tolist(), 0.0])


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize(("vocab", "length"), [(3, 3), (2, 2)])
def test_samples_follow_the_law_of_the_ancestral_sampler(vocab, length, steps):
    model = joint(vocab, length)
    observed = counts(model, sample(model, "mdlm", {"steps": steps}, 6000))
    assert abs(excess(observed, exact_law(model, steps))) < 3.5
    # The test would notice the law of another number of steps, and that of the data.
    assert excess(observed, exact_law(model, steps + 1 if steps < 3 else 1)) > 8
    assert excess(observed, model.joint) > 8


def test_the_law_nears_the_data_as_one_over_the_steps():
    model = joint(3, 3)
    distance = {n: float((exact_law(model, n) - model.joint).abs().sum() / 2) for n in (8, 16, 32)}
    scaled = [n * d for n, d in distance.items()]
    assert max(scaled) / min(scaled) < 1.08
    assert distance[32] < 0.06 * float((exact_law(model, 1) - model.joint).abs().sum() / 2)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_two_equal_bits_differ_with_probability_one_over_twice_the_steps(steps):
    model = Tabular(2, 2, torch.tensor([0.5, 0.0, 0.0, 0.5]))
    law = exact_law(model, steps)
    assert float(law[1] + law[2]) == pytest.approx(1 / (2 * steps), abs=2e-5)
    observed = counts(model, sample(model, "mdlm", {"steps": steps}, 4000))
    share = 1 / (2 * steps)
    differing = float(observed[1] + observed[2]) / 4000
    assert abs(differing - share) < 3.5 * (share * (1 - share) / 4000) ** 0.5


@pytest.mark.parametrize("clean_up", ["ancestral", "greedy", "none"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_skipping_empty_steps_saves_forwards_and_changes_no_sample(clean_up, temperature):
    model = joint(3, 3)
    options = {"steps": 20, "clean_up": clean_up}
    every = sample(model, "mdlm", options | {"skip_empty": False, "early_exit": False}, 200, temperature)
    skipping = sample(model, "mdlm", options, 200, temperature)
    assert [r.canvas for r in every] == [r.canvas for r in skipping]
    assert {sum(r.counters.forwards.values()) for r in every} == {20 if clean_up == "none" else 21}
    assert all(1 <= sum(r.counters.forwards.values()) <= 3 for r in skipping)


def test_forwards_are_as_many_as_steps_that_reveal_something():
    steps, length, count = 8, 6, 3000
    model = joint(2, length)
    spent = [sum(r.counters.forwards.values()) for r in sample(model, "mdlm", {"steps": steps}, count)]
    expected = steps * (1 - (1 - 1 / steps) ** length)
    assert abs(sum(spent) / count - expected) < 0.08  # one forward has a standard deviation of 0.9
    assert max(spent) <= length


def test_one_step_is_one_draw_from_the_all_mask_row_of_each_position():
    model = joint(3, 2, seed=1)
    rows = model.probs(torch.full((1, 2), model.mask))[0]
    independent = (rows[0][:, None] * rows[1]).flatten()
    observed = counts(model, sample(model, "mdlm", {"steps": 1}, 5000))
    assert abs(excess(observed, independent)) < 3.5


def test_at_temperature_zero_every_token_is_the_best_one_where_it_is_revealed():
    lm = tiny("mdlm-dit-tiny")
    prompt = [44, 3, 129]
    result = lm.generate(prompt, max_new_tokens=20, steps=30, trace=True, seed=5)
    assert result.method == "mdlm"
    canvas = prompt + [160] * 20
    order = []
    for step in result.trace:
        tokens, layout = torch.tensor([canvas]), full(23)
        with torch.no_grad():
            logits = lm.model(tokens, layout.positions[None], DenseAttention(layout))[0]
        logits[:, 160] = -torch.inf
        order += step.positions
        for position, token in zip(step.positions, step.tokens):
            assert int(logits[position + 3].argmax()) == token
            canvas[position + 3] = token
    assert canvas == prompt + result.ids
    assert sorted(order) == list(range(20)) != order
    assert lm.generate(prompt, max_new_tokens=20, steps=30, seed=6, trace=True).trace[0].positions != order[:1]


def test_ragged_batches_equal_their_rows_alone_on_the_dit():
    lm = tiny("mdlm-dit-tiny")
    prompts = [[5], [7, 8, 9, 160, 11], [3] * 12]
    together = lm.generate(prompts, max_new_tokens=12, temperature=1.0, seed=[1, 2, 3])
    for prompt, seed, row in zip(prompts, (1, 2, 3), together):
        alone = lm.generate(prompt, max_new_tokens=12, temperature=1.0, seed=seed)
        assert (row.ids, row.counters.forwards) == (alone.ids, alone.counters.forwards)


def start(steps: int, new_tokens: int, rows: int = 1, **options: Any) -> tuple[Any, Any]:
    """A bound method and its first state behind one prompt token."""
    model, zero = joint(2, 2), torch.zeros(rows)
    draw = Draw(zero, zero + 1, zero.long(), torch.arange(rows))
    method = build("mdlm", {"steps": steps, **options}).bind(model.family, new_tokens)
    return method, method.start(blank([[3]] * rows, [1 + new_tokens] * rows, new_tokens, Facts(2, (), 0), draw))


def test_the_times_of_revealing_are_uniform_and_independent():
    _, state = start(5, 100, 200)
    times = state.reveal[:, 1:]
    assert abs(excess(torch.bincount(times.flatten(), minlength=6)[:5].double(), torch.ones(5).double())) < 3.5
    pairs = torch.bincount((times[:, :-1] * 5 + times[:, 1:]).flatten(), minlength=25)[:25].double()
    assert abs(excess(pairs, torch.ones(25).double())) < 3.5


def test_the_clean_up_decides_what_the_steps_left_or_leaves_it():
    for clean_up, tokens in {"ancestral": [0, 1], "greedy": [0, 0], "none": [0, 2]}.items():
        method, state = start(4, 2, clean_up=clean_up)
        # Only one position in 10^5 is left to the clean-up, so its time is set by hand.
        state = replace(state, reveal=torch.tensor([[0, 2, 4]]), now=torch.tensor([2]))
        for _ in range(2):
            forward = method.plan(state)
            ones = torch.ones_like(forward.targets)
            first = forward.targets * 0 if not int(state.now) > 2 else ones
            scores = Scores(first, ones * 0, ones.float(), ones.float(), ones[..., None].float())
            state = method.commit(state, forward, scores)
            if bool(state.done):
                break
        assert state.canvas[0, 1:].tolist() == tokens
        assert bool(state.done)


def test_models_that_do_not_fill_masks_anywhere_are_refused():
    with pytest.raises(UnmaskError, match="trained with block attention"):
        tiny("bd3lm-dit-tiny").generate([1, 2], method="mdlm", max_new_tokens=4)
    with pytest.raises(UnmaskError, match="no mask token"):
        tiny("qwen2-tiny").generate([1, 2], method="mdlm", max_new_tokens=4)
    with pytest.raises(UnmaskError, match="no selection rule fits: its positions are drawn at random"):
        tiny("mdlm-dit-tiny").generate([1, 2], max_new_tokens=4, select="static")
