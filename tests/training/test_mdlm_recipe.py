"""MDLM: official times and likelihood bounds, the bound of an exact denoiser, training equal to decoding."""

import json
from dataclasses import fields, replace
from itertools import product
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from decoder_logits import greatest_difference
from echo_task import score, train
from sample_rows import packed, sample, stacked, step_loss
from seen_when_decoding import moments

from checkpoints import tiny
from unmask.decoding import build
from unmask.errors import UnmaskError
from unmask.training.noise import Noise
from unmask.training.recipes import make_recipe
from unmask.training.recipes.base import IGNORE, Batch, Supervised
from unmask.training.recipes.mdlm import Mdlm
from unmask.training.states import States
from unmask.training.times import StepNoise, even_uniform, stratified
from vectors_mdlm import check_mdlm

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = [json.loads(x) for x in (GOLDEN / "training-mdlm.jsonl").read_text().splitlines()]
MASK = 160


def random_batch(rows, length=20, seed=0):
    tokens = torch.randint(0, 150, (rows, length), generator=torch.Generator().manual_seed(seed))
    return Batch.of(tokens, tokens)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"])
def test_times_losses_and_gradients_are_the_official_ones(case):
    assert check_mdlm(GOLDEN, case) == ""


def test_every_token_of_a_sample_is_masked_with_the_chance_of_its_time_and_weighted_by_the_inverse_time():
    batch = random_batch(4000)
    recipe = Mdlm(mask_id=MASK, low_discrepancy=False)
    view = recipe.views(batch, Noise(0))
    masked, t = view.tokens == MASK, 1 / view.weights
    assert torch.equal(masked, view.targets != IGNORE)
    torch.testing.assert_close(t, t[:, :1].expand_as(t))
    assert 1e-3 <= t.min() < 2e-3 and 0.999 < t.max() <= 1
    for low in (0.0, 0.25, 0.5, 0.75):
        rows = (t[:, 0] >= low) & (t[:, 0] < low + 0.25)
        assert masked[rows].float().mean() == pytest.approx(low + 0.125, abs=0.01)
    assert view.normalisers == {"loss": 4000 * 20}


def test_answers_alone_are_noised_and_counted_in_fine_tuning():
    one = sample([5, 11, 7, 9], [3, 9, 1, 14], pad=2)
    batch = packed([one, sample([8, 2], [12, 30, 31])], 16)
    recipe = Mdlm(mask_id=MASK, stage="sft")
    shown = torch.stack([recipe.views(batch, Noise(seed)).tokens[0] == MASK for seed in range(200)])
    assert (shown.any(0) == (batch.labels[0] != IGNORE)).all()
    assert recipe.views(batch, Noise(0)).normalisers == {"loss": 7}


@pytest.mark.parametrize("options", [{}, {"importance_sampling": True}, {"timesteps": 10}], ids=str)
def test_the_times_of_a_step_have_one_in_each_equal_part_however_it_is_cut(options):
    members = (3, 50, 7, 12, 900, 8, 41)
    batch = stacked([packed([sample([1], [2, 3], m)], 8) for m in members])
    recipe, noise = Mdlm(mask_id=MASK, **options), StepNoise(5, 2, members)
    u = even_uniform(noise, 1, batch.sample, torch.zeros_like(batch.sample))[:, 0]
    assert sorted((u * 7).long().tolist()) == list(range(7))
    views = [recipe.views(batch, noise)]
    # 1 x 7 = 7 x 1, packed or not, in any order, with the members known in any order.
    names = [f.name for f in fields(Batch) if f.name != "drafts"]
    single = [recipe.views(Batch(**{n: getattr(batch, n)[i : i + 1] for n in names}), noise) for i in range(7)]
    other = StepNoise(5, 2, members[::-1])
    together = recipe.views(packed([sample([1], [2, 3], m) for m in members[::-1]], 21), other)
    assert torch.equal(torch.cat([v.tokens for v in single]), views[0].tokens)
    assert torch.equal(together.tokens.view(7, 3).flip(0), views[0].tokens[:, :3])
    assert torch.equal(together.weights.view(7, 3).flip(0), views[0].weights[:, :3])


def test_a_sample_meets_every_part_over_the_epochs():
    sampled = torch.tensor([[4], [9]])
    draws = [even_uniform(StepNoise(1, e, tuple(range(4, 14))), 1, sampled, sampled * 0) for e in range(400)]
    counts = torch.stack(draws).flatten(1).mul(10).long()
    for column in (0, 1):
        assert torch.bincount(counts[:, column], minlength=10).float().std() < 12  # 40 each, 6 by chance
    assert ((counts[:, 0] == counts[:, 1]).sum() == 0).item()  # two samples of a step never share a part


def test_the_official_pairing_is_one_draw_in_each_part():
    u = torch.tensor([0.1, 0.9, 0.5])
    torch.testing.assert_close(stratified(u, torch.arange(3), 3), torch.tensor([0.1, 1.9, 2.5]) / 3)


class Exact:
    """Models of three tokens whose law is a table: the denoiser is exact. The mask's own logit, 5, means nothing."""

    def __init__(self, table):
        self.logits = {}
        for seen in product(range(4), repeat=3):
            law = torch.zeros(3, 4, dtype=torch.float64)
            for text in product(*(range(3) if token == 3 else [token] for token in seen)):
                law[range(3), text] += table[text]
            self.logits[seen] = law.log().index_fill(-1, torch.tensor([3]), 5.0)

    def student(self, tokens, layout, index=None):
        logits = torch.stack([self.logits[tuple(row)] for row in tokens.tolist()])
        return States(logits.flatten(0, 1)[index], lambda hidden: hidden, 4)

    def teacher(self, tokens, layout, index=None):
        raise AssertionError

    def module(self, name):
        raise AssertionError


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"noise_eps": 1e-9, "sampling_eps": 1e-6}, 1e-4),
        ({}, 4e-3),
        ({"change_of_variables": True}, 4e-3),
        ({"importance_sampling": True}, 4e-3),
        ({"timesteps": 5000}, 4e-3),
    ],
    ids=str,
)
def test_the_bound_of_the_exact_denoiser_is_the_entropy_of_the_data(options, error):
    """All texts and masks, each with its chance; times by Gauss-Legendre. The default floors cost some 0.1 %."""
    table = torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) ** 2
    table /= table.sum()
    entropy = -float((table * table.log()).sum())
    pairs = list(product(product(range(3), repeat=3), product([False, True], repeat=3)))
    texts, masked = torch.tensor([x for x, _ in pairs]), torch.tensor([m for _, m in pairs])
    recipe = Mdlm(mask_id=3, **options)
    batch, bound = Batch.of(texts, texts), 0.0
    law = torch.stack([table[tuple(x)] for x in texts.tolist()])
    nodes, shares = np.polynomial.legendre.leggauss(12)
    for node, share in zip((nodes + 1) / 2, shares / 2):
        t = recipe.time_at(torch.full(texts.shape, float(node)))
        chance = recipe.mask_chance(t).double()
        chances = torch.where(masked, chance, 1 - chance).prod(1) * law
        view = recipe.views_of(batch, masked, t)
        view = replace(view, weights=(view.weights * chances[:, None]).float())
        bound += share * float(recipe.loss(Exact(table), Supervised.of(view)).sums["loss"])
    assert bound == pytest.approx(entropy, rel=error)


def test_discrete_times_are_rounded_up_to_their_grid():
    recipe = Mdlm(mask_id=MASK, timesteps=8, sampling_eps=1e-3)
    t = recipe.time_at(torch.linspace(0, 0.999, 50))
    assert ((t * 8).frac().abs() < 1e-5).all() and t.min() == 0.125 and t.max() == 1
    fine = Mdlm(mask_id=MASK, timesteps=10**6).time_at(torch.linspace(0, 1, 50))
    torch.testing.assert_close(fine, Mdlm(mask_id=MASK).time_at(torch.linspace(0, 1, 50)), atol=2e-6, rtol=0)


def test_importance_sampling_draws_times_with_a_density_in_proportion_to_their_weight():
    t = Mdlm(mask_id=MASK, importance_sampling=True).time_at(torch.linspace(0.0005, 0.9995, 1000))
    for low, high in ((1e-3, 1e-2), (1e-2, 1e-1), (0.1, 1.0)):
        share = ((t >= low) & (t < high)).float().mean()
        assert share == pytest.approx(log(10) / log(1000), abs=0.002)


@pytest.mark.parametrize("options", [{}, {"change_of_variables": True}, {"stage": "sft"}], ids=str)
def test_packed_samples_train_as_in_rows_of_their_own(options):
    network, recipe = tiny("mdlm-dit-tiny").model, Mdlm(mask_id=MASK, **options)
    one, two = sample([5, 11, 7], [3, 9, 1, 14, 20, 2], 4), sample([8], [12, 30, 31], 9)
    noise = StepNoise(4, 0, (4, 9))
    alone = step_loss(network, recipe, [recipe.views(b, noise) for b in (one, two)]).item()
    assert alone > 0
    joined = recipe.views(packed([one, two], 16), noise)
    assert joined.layout.positions[0].tolist() == [*range(9), *range(4), 0, 0, 0]
    assert step_loss(network, recipe, [joined]).item() == pytest.approx(alone, rel=1e-5)


def test_training_rows_have_the_logits_that_the_decoder_sees():
    lm = tiny("mdlm-dit-tiny")
    method = build("mdlm", {"steps": 8, "early_exit": False})
    run = moments(lm, method, [[5, 80, 33, 7, 140, 61, 9], [90, 12, 44]], 24)
    recipe = Mdlm(mask_id=lm.facts.mask_id)
    count, largest = greatest_difference(lm, run, lambda b, m: recipe.views_of(b, m, torch.ones(b.tokens.shape)))
    assert count == 48
    assert largest < 1e-4


def test_options_are_checked_and_the_decoder_is_known():
    recipe = make_recipe({"name": "mdlm"}, mask_id=3)
    assert build(recipe.decoder["method"], {}).name == "mdlm"
    for wrong, message in [
        ({"stage": "pretraining"}, "did you mean 'pretrain'"),
        ({"noise_eps": 0.0}, "noise_eps must be between 0 and 1, got 0.0"),
        ({"sampling_eps": 1.0}, "sampling_eps must be between 0 and 1, got 1.0"),
        ({"timesteps": -1}, "timesteps must be at least 0, got -1"),
        ({"timesteps": 9, "change_of_variables": True}, "exclude each other"),
    ]:
        with pytest.raises(UnmaskError, match=message):
            make_recipe({"name": "mdlm", **wrong}, mask_id=3)


@pytest.mark.slow
def test_a_tiny_dit_learns_to_reveal_answers_in_four_steps(tmp_path, monkeypatch):
    recipe = {"name": "mdlm", "stage": "sft"}
    figures, lm = train(tmp_path, monkeypatch, "mdlm-dit-tiny", recipe, steps=400, answer_tokens=12, learning_rate=2e-3)
    assert figures["validation_loss"] < 0.1  # nats a token; 2 ln 10 / 12 = 0.38 without the question
    accuracy, tpf = score(lm, {"method": "mdlm", "steps": 4}, max_new_tokens=12)
    assert accuracy > 0.8
    assert tpf > 2  # 9 tokens in at most 4 forwards
