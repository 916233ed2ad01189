"""Masked diffusion: LLaDA's official losses, the noise's law, Dream's weights and shift, training equal to decoding."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from decoder_logits import greatest_difference
from echo_task import score, train
from sample_rows import packed, sample, stacked, step_loss
from seen_when_decoding import moments

from checkpoints import tiny
from unmask.decoding import build
from unmask.errors import UnmaskError
from unmask.layout import PAD
from unmask.training.noise import Noise
from unmask.training.recipes import make_recipe
from unmask.training.recipes.base import IGNORE, Batch
from unmask.training.recipes.masked import Masked, nearness
from vectors_masked import check_llada

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = [json.loads(x) for x in (GOLDEN / "training-llada.jsonl").read_text().splitlines()]
MASK = 158
ONE = sample([5, 11, 7], [3, 9, 1, 14, 20, 2], 4)
TWO = sample([8], [12, 30, 31], 9)
PROMPTS = [[5, 80, 33, 7, 140, 61, 9], [90, 12, 44]]


def random_batch(rows, length=30, prompt=10, seed=0):
    tokens = torch.randint(0, 150, (rows, length), generator=torch.Generator().manual_seed(seed))
    labels = tokens.clone()
    labels[:, :prompt] = IGNORE
    return Batch.of(tokens, labels)


def cut(batch, size):
    names = [f.name for f in fields(Batch) if f.name != "drafts"]
    return [Batch(**{n: getattr(batch, n)[at : at + size] for n in names}) for at in range(0, len(batch.tokens), size)]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"])
def test_losses_and_likelihoods_are_the_official_ones(case):
    assert check_llada(GOLDEN, case) == ""


def test_a_sample_has_one_level_between_eps_and_one_with_which_its_answer_is_masked():
    batch = random_batch(4000)
    view = Masked(mask_id=MASK, eps=0.2).views(batch, Noise(0))
    masked, p = view.tokens == MASK, 1 / (view.weights * 20)
    assert not masked[:, :10].any() and torch.equal(masked, view.targets != IGNORE)
    torch.testing.assert_close(p, p[:, :1].expand_as(p))
    assert 0.2 <= p.min() < 0.21 and 0.99 < p.max() <= 1.0001
    assert p.mean() == pytest.approx(0.6, abs=0.01)
    for low in (0.2, 0.4, 0.6, 0.8):
        rows = (p[:, 0] >= low) & (p[:, 0] < low + 0.2)
        assert masked[rows, 10:].float().mean() == pytest.approx(low + 0.1, abs=0.01)
    # Each token once on average, so each row's weights are 1.
    assert (view.weights * masked).sum(1).mean() == pytest.approx(1, abs=0.02)


def test_pre_training_noises_prompts_too_and_divides_by_tokens_not_by_samples():
    batch = packed([ONE, TWO], 16)
    tuned, whole = (Masked(mask_id=MASK, stage=s, random_length=0.0) for s in ("sft", "pretrain"))
    assert tuned.views(batch, Noise(0)).normalisers == {"loss": 2}
    assert whole.views(batch, Noise(0)).normalisers == {"loss": 13}
    shown = torch.stack([whole.views(batch, Noise(seed)).tokens[0] == MASK for seed in range(200)]).float().mean(0)
    assert shown[:13].min() > 0.35 and shown[:13].max() < 0.65 and shown[13:].max() == 0


def test_fine_tuning_takes_the_mean_of_each_answer_before_that_of_the_samples():
    """Both answers masked throughout: their own means, averaged, however long they are."""
    lm, recipe = tiny("llada-tiny-train"), Masked(mask_id=MASK)
    each = []
    for one in (ONE, TWO):
        view = recipe.views_of(one, one.labels != IGNORE, torch.ones(one.tokens.shape))
        each.append(step_loss(lm.model, recipe, [view]).item())
        plain = Masked(mask_id=MASK, stage="pretrain")
        full = plain.views_of(one, one.labels != IGNORE, torch.ones(one.tokens.shape))
        share = one.tokens.shape[1] / int((one.labels != IGNORE).sum())
        assert step_loss(lm.model, plain, [full]).item() * share == pytest.approx(each[-1], rel=1e-5)
    both = packed([ONE, TWO], 16)
    view = recipe.views_of(both, both.labels != IGNORE, torch.ones(both.tokens.shape))
    assert step_loss(lm.model, recipe, [view]).item() == pytest.approx(sum(each) / 2, rel=1e-5)


def test_under_token_shift_the_row_before_bears_target_and_weight_and_first_tokens_stay():
    batch = stacked([packed([ONE, replace(TWO, sample=TWO.sample + i)], 16) for i in range(100)])
    plain, shifted = (Masked(mask_id=MASK, stage="pretrain", random_length=0, shift=s) for s in (False, True))
    ours, theirs = (r.views(batch, Noise(0)) for r in (shifted, plain))
    first = (batch.positions == 0) & (batch.segment >= 0)
    assert not (ours.tokens[first] == MASK).any() and (theirs.tokens[first] == MASK).any()
    where = ours.tokens == MASK
    assert torch.equal(where, (theirs.tokens == MASK) & ~first)
    assert torch.equal(ours.targets[:, :-1][where[:, 1:]], batch.tokens[where])
    assert torch.equal(ours.weights[:, :-1][where[:, 1:]], theirs.weights[where])
    assert int((ours.targets != IGNORE).sum()) == int(where.sum())


def test_cart_weights_are_the_sums_of_the_formula_within_each_sample():
    batch = packed([random_batch(1, 9), random_batch(1, 5)], 16)
    visible = torch.rand(1, 16, generator=torch.Generator().manual_seed(0)) < 0.5
    p, expected = 0.3, torch.zeros(1, 16)
    for n in range(14):
        for i in range(14):
            if i != n and visible[0, i] and batch.segment[0, i] == batch.segment[0, n]:
                expected[0, n] += 0.5 * p * (1 - p) ** (abs(n - i) - 1)
    torch.testing.assert_close(nearness(visible, batch.segment, p)[:, :14], expected[:, :14])
    view = Masked(mask_id=MASK, stage="pretrain", weight="cart").views_of(batch, ~visible, torch.full((1, 16), 0.5))
    torch.testing.assert_close(view.weights[:, :14], expected[:, :14])
    tuned = Masked(mask_id=MASK, weight="cart").views_of(batch, ~visible, torch.full((1, 16), 0.5))
    torch.testing.assert_close(tuned.weights[:, :14], expected[:, :14] / batch.answer[:, :14].clamp(min=1))


def test_some_samples_are_cut_to_a_random_length_in_pre_training_alone():
    batch = random_batch(3000, length=20)
    recipe = Masked(mask_id=MASK, stage="pretrain", random_length=0.3)
    view = recipe.views(batch, Noise(0))
    gone = view.layout.segment == PAD
    length = (~gone).sum(1)
    assert ((view.targets == IGNORE) | ~gone).all()
    assert view.normalisers["loss"] == int(length.sum())
    assert (length < 20).float().mean() == pytest.approx(0.3 * 19 / 20, abs=0.03)
    shares = torch.bincount(length, minlength=21)[1:20] / (length < 20).sum()
    assert shares.min() > 0.025 and shares.max() < 0.085  # uniform: 0.053
    assert (length.unsqueeze(1) > batch.positions).logical_not().equal(gone)
    whole = replace(recipe, stage="sft").views(batch, Noise(0))
    assert (whole.layout.segment != PAD).all()


@pytest.mark.parametrize("options", [{}, {"stage": "pretrain"}, {"shift": True, "weight": "cart"}], ids=str)
def test_packed_samples_train_as_in_rows_of_their_own_and_the_cut_of_a_step_does_not_matter(options):
    network = tiny("llada-tiny-train").model
    recipe = Masked(mask_id=MASK, **options)
    apart = [packed([one], 16) for one in (ONE, TWO)]
    joined = packed([ONE, TWO], 16)
    alone = step_loss(network, recipe, [recipe.views(b, Noise(3)) for b in apart]).item()
    assert alone > 0
    assert step_loss(network, recipe, [recipe.views(joined, Noise(3))]).item() == pytest.approx(alone, rel=1e-5)
    batch = random_batch(8)
    losses = [step_loss(network, recipe, [recipe.views(b, Noise(0)) for b in cut(batch, n)]).item() for n in (8, 4, 1)]
    assert losses[1:] == [pytest.approx(losses[0], rel=1e-5)] * 2


@pytest.mark.parametrize("name", ["llada-tiny-train", "dream-tiny-train"])
def test_training_rows_have_the_logits_that_the_decoder_sees(name):
    lm = tiny(name)
    run = moments(lm, build("masked", {"steps": 8, "early_exit": False}), PROMPTS, 16)
    recipe = Masked(mask_id=lm.facts.mask_id, shift=bool(lm.family.shift))
    level = torch.full((1, 31), 0.5)
    count, largest = greatest_difference(lm, run, lambda b, m: recipe.views_of(b, m, level[:, : b.tokens.shape[1]]))
    assert count > 100
    assert largest < 1e-4


def test_options_are_checked_and_the_decoder_is_known():
    recipe = make_recipe({"name": "masked"}, mask_id=3)
    assert build(recipe.decoder["method"], {}).name == "masked"
    for wrong, message in [
        ({"stage": "pretraining"}, "did you mean 'pretrain'"),
        ({"weight": "carts"}, "did you mean 'cart'"),
        ({"eps": 0.0}, "eps must be above 0 and at most 1, got 0.0"),
        ({"cart_p": 1.0}, "cart_p must be between 0 and 1, got 1.0"),
        ({"random_length": 2}, "random_length must be between 0 and 1, got 2"),
    ]:
        with pytest.raises(UnmaskError, match=message):
            make_recipe({"name": "masked", **wrong}, mask_id=3)


@pytest.mark.slow
def test_a_tiny_llada_learns_to_fill_whole_answers_in_a_few_forwards(tmp_path, monkeypatch):
    figures, lm = train(tmp_path, monkeypatch, "llada-tiny", {"name": "masked"}, steps=350, answer_tokens=12)
    assert figures["validation_loss"] < 0.3
    accuracy, tpf = score(lm, {"method": "masked", "select": "threshold:tau=0.9"}, max_new_tokens=12)
    assert accuracy > 0.8
    assert tpf > 2  # an untrained network: below 1
