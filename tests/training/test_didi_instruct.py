"""DiDi-Instruct: the official steps, the estimator against enumeration, and the laws of its draws."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from torch import Tensor
from toy_didi import (
    EMPTY,
    MASK,
    STATES,
    Toy,
    code,
    corruption_prob,
    divergence,
    every_path,
    log_ratio,
    path_log_prob,
    plain,
    random_law,
    random_table,
    step_law,
    texts,
    weighted,
)

from checkpoints import GOLDEN
from chi_square import surprise
from unmask.training import two_step
from unmask.training.noise import Noise
from unmask.training.policy_gradient import advantages, beta_density, beta_draw, inverse_cdf, log_odds, token_law
from unmask.training.recipes.base import Supervised, View
from unmask.training.recipes.didi_instruct import DidiInstruct
from vectors_didi import check_didi

CASES = [json.loads(x) for x in (GOLDEN / "training-didi.jsonl").read_text().splitlines()]
TARGET = random_law(2)


@pytest.mark.parametrize("case", [c for c in CASES if not c.get("bug")], ids=lambda c: c["id"])
def test_rewards_and_whole_steps_are_the_official_ones(case):
    assert check_didi(GOLDEN, case) == ""


# The estimator, exactly.


def gradient(models: Toy, recipe: DidiInstruct, view: View) -> Tensor:
    """Of the policy term, before its division."""
    (found,) = torch.autograd.grad(recipe.loss(models, Supervised.of(view)).sums["policy"], models.table)
    return found


def exact_gradient(table: Tensor, tau: float, t: float) -> Tensor:
    free = table.clone().requires_grad_()
    (found,) = torch.autograd.grad(divergence(free, TARGET, tau, t), free)
    return found


@pytest.mark.parametrize(
    ("tau", "t", "options", "shift"),
    [
        (0.5, 0.5, {}, 0.0),
        (0.05, 0.05, {}, 0.0),
        (0.7, 0.3, {"coupled": False}, 0.0),
        (0.3, 0.3, {"drop_remasked": True}, 0.0),
        (0.5, 0.5, {}, 7.0),
    ],
    ids=["coupled", "nearly all in step 1", "decoupled", "draws that are hidden again left out", "shifted rewards"],
)
def test_the_estimator_summed_over_all_paths_is_the_gradient_of_the_objective(tau, t, options, shift):
    table, draws = random_table(1), every_path(tau, t)
    recipe = plain(group=1, norm="none", **options)
    prob = path_log_prob(table, draws).exp() * corruption_prob(draws)
    assert float(prob.sum()) == pytest.approx(1)
    judge = (log_ratio(table, TARGET, tau, t) + shift).float()
    view = weighted(recipe.view_of(texts(len(prob)), draws), prob)
    models = Toy(table.float().requires_grad_(), judge)
    weight = min(1 / t, 10.0)
    exact = weight * exact_gradient(table, tau, t)
    found = gradient(models, recipe, view)
    torch.testing.assert_close(found, exact, rtol=0, atol=2e-5 * float(exact.abs().max()), check_dtype=False)
    assert (found[STATES != MASK] == 0).all()
    one_step = exact_gradient(table, 0.999, t)
    assert float((exact / weight - one_step).norm()) > 0.1 * float(one_step.norm())  # the test tells states apart


def test_sampled_with_its_own_noise_it_nears_the_gradient_of_the_objective():
    recipe = plain(group=8, tau_range=(0.5, 0.5))
    table = random_table(1)
    models = Toy(table.float().requires_grad_(), log_ratio(table, TARGET, 0.5, 0.5).float())
    view = recipe.views(texts(20_000), Noise(3))
    found, exact = gradient(models, recipe, view) / view.normalisers["policy"], 2 * exact_gradient(table, 0.5, 0.5)
    assert float((found - exact).norm()) < 0.05 * float(exact.norm())
    assert float((found - 0.875 * exact).norm()) > 0.1 * float(exact.norm())


@cache
def path_scores(tau: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Probability [N], reward [N] and score [N, 576] of every path, and the exact gradient [576], at t = tau."""
    table, draws = random_table(1), every_path(tau, tau)
    scores = torch.func.jacfwd(lambda flat: path_log_prob(flat.view_as(table), draws))(table.flatten())
    prob = path_log_prob(table, draws).exp() * corruption_prob(draws)
    z = torch.where(draws.shown, draws.first, draws.second)
    z = torch.where(draws.fake, MASK, z)
    reward = torch.where(draws.fake.any(1), log_ratio(table, TARGET, tau, tau)[code(z)], 0.0)
    return prob, reward, scores, exact_gradient(table, tau, tau).flatten()


@pytest.mark.parametrize(("norm", "share"), [("loo", 1.0), ("mean", 0.5)])
def test_of_two_samples_leaving_oneself_out_is_unbiased_and_the_common_mean_halves_the_gradient(norm, share):
    prob, reward, scores, exact = path_scores(0.5)
    pairs = torch.stack(torch.broadcast_tensors(reward[:, None], reward), dim=-1)
    first = advantages(pairs.flatten(), 2, norm).view_as(pairs)[..., 0] @ prob  # mean over the other sample
    torch.testing.assert_close(-(prob * first) @ scores, share * exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("group", "share"), [(2, 0.504), (4, 0.753), (8, 0.873)])
def test_baselines_of_larger_groups(group, share):
    prob, reward, scores, exact = path_scores(0.5)
    drawn = torch.multinomial(prob, 300_000 * group, replacement=True, generator=torch.Generator().manual_seed(group))
    means = {}
    for norm in ("loo", "mean", "mean_std"):
        weights = torch.zeros_like(prob).index_add(0, drawn, advantages(reward[drawn], group, norm))
        means[norm] = -(weights / len(drawn)) @ scores
    projected = {norm: float(mean @ exact / exact.square().sum()) for norm, mean in means.items()}
    assert projected["loo"] == pytest.approx(1, rel=0.05)
    assert projected["mean"] == pytest.approx(share, rel=0.03)
    cosine = float(means["mean_std"] @ exact / means["mean_std"].norm() / exact.norm())
    assert 0.97 < cosine < 1 - 1e-4


def test_advantages_of_a_group_add_up_to_nothing_and_equal_rewards_give_none():
    rewards = torch.randn(12, generator=torch.Generator().manual_seed(0))
    for norm in ("loo", "mean", "mean_std"):
        torch.testing.assert_close(advantages(rewards, 4, norm).view(-1, 4).sum(1), torch.zeros(3), atol=1e-6, rtol=0)
        assert advantages(torch.full((4,), 0.75), 4, norm, 3.0).tolist() == [0.0] * 4
    assert torch.equal(advantages(rewards, 1, "none"), rewards)
    assert float(advantages(100 * rewards, 4, "loo", 3.0).abs().max()) == 3.0


def test_the_logit_of_a_smoothed_discriminator_is_bounded_and_its_log_ratio_comes_back():
    ratio = torch.linspace(-6, 6, 25, dtype=torch.float64)
    p, q, e = ratio.sigmoid(), 1 - ratio.sigmoid(), 0.1
    logit = torch.logit((1 - e) * p + e * q)
    assert float(logit.abs().max()) < 2.1973
    torch.testing.assert_close(log_odds(logit, unsmooth=e), ratio, rtol=0, atol=1e-10)
    assert log_odds(torch.tensor([50.0, -50.0]), unsmooth=e).isfinite().all()
    assert torch.equal(log_odds(logit), logit)


def test_the_discriminators_terms_are_least_at_the_log_ratio():
    recipe = plain(group=8, tau_range=(0.5, 0.5))
    table = random_table(1)
    view = recipe.views(texts(10_000, TARGET), Noise(3))

    def slope(judge: Tensor) -> float:
        models = Toy(table.float(), judge.requires_grad_())
        sums = recipe.loss(models, Supervised.of(view)).sums
        loss = sum(sums[name] / view.normalisers[name] for name in ("real", "fake"))
        (found,) = torch.autograd.grad(loss, judge)
        return float(found.norm())

    best = log_ratio(table, TARGET, 0.5, 0.5).float()
    assert slope(best) < 0.1 * slope(torch.zeros(64))
    assert slope(best) < 0.1 * slope(-best)


# What is drawn.


def test_tokens_and_states_follow_the_two_step_law():
    recipe, table = plain(group=4, tau_range=(0.4, 0.4), tau_law=(2, 2), norm="none"), random_table(5)
    view = Supervised.of(recipe.views(texts(5000), Noise(11)))
    written = two_step.rollout(Toy(table.float(), torch.zeros(64)), view, two_step.Score(MASK), teacher=False)
    first, last = step_law(table, 0.6)[EMPTY], step_law(table, 1.0)
    law = {(z, x): float(first[z] * last[z, x]) for z in range(64) for x in range(64) if last[z, x] > 0}
    drawn = list(zip(code(written.z).tolist(), code(written.tokens).tolist()))
    assert abs(surprise(drawn, law)) < 3
    wrong = step_law(table, 0.5)[EMPTY]
    assert surprise(drawn, {pair: p * float(wrong[pair[0]] / first[pair[0]]) for pair, p in law.items()}) > 10
    hidden = view.extra["fake"].flatten()
    assert abs(surprise(hidden.tolist(), {True: 0.4 * 0.999, False: 1 - 0.4 * 0.999})) < 3


def test_one_uniform_number_is_one_draw_from_the_row():
    logits = torch.randn(1, 9, generator=torch.Generator().manual_seed(0))
    law = token_law(logits, mask_id=4)
    assert float(law.exp().sum()) == pytest.approx(1) and float(law[0, 4].exp()) == 0
    u = Noise(0).uniform(7, torch.arange(20_000))[None]
    drawn = inverse_cdf(law, u)[0]
    assert abs(surprise(drawn.tolist(), dict(enumerate(law[0].exp().tolist())))) < 3
    assert drawn[u[0].argsort()].diff().min() >= 0
    assert inverse_cdf(law, torch.tensor([[0.0, 1 - 2**-24]])).tolist() == [[0, 8]]


@pytest.mark.parametrize(("a", "b"), [(1, 1), (2, 2), (1, 3)])
def test_times_follow_their_beta_law(a, b):
    u = Noise(1).uniform(0, torch.arange(20_000)[:, None], torch.arange(a + b - 1))
    drawn = beta_draw(u, a)
    middle = (torch.arange(2000) + 0.5) / 2000
    density = beta_density(middle, a, b)
    assert float(density.mean()) == pytest.approx(1, abs=1e-3)
    law = dict(enumerate((density / 2000).view(20, 100).sum(1).tolist()))
    assert abs(surprise((drawn * 20).long().tolist(), law)) < 3


def test_times_are_shared_in_a_group_or_each_samples_own_and_weights_their_inverse():
    rows = texts(50)
    shared, own = (plain(shared_tau=s).draws(rows, Noise(0)) for s in (True, False))
    assert all(len(set(g)) == 1 for g in shared.tau.view(-1, 4).tolist())
    assert all(len(set(g)) == 4 for g in own.tau.view(-1, 4).tolist())
    assert float(own.tau.min()) == pytest.approx(0.02) and float(own.tau.max()) == pytest.approx(0.98)
    assert torch.equal(shared.time, shared.tau)
    apart = plain(coupled=False).draws(rows, Noise(0))
    assert torch.equal(apart.tau, shared.tau) and not torch.equal(apart.time, apart.tau)
    time = torch.tensor([0.02, 0.5, 0.98])
    assert plain().weights(time).tolist() == pytest.approx([10, 2, 1 / 0.98])
    weighed = plain(tau_law=(2, 2), importance_weight=True).weights(time)
    assert weighed[1].item() == pytest.approx(2 / 1.5)


def test_revealed_tokens_are_masked_again_and_a_few_masks_stay():
    draws = plain(remask_prob=0.3, t0=0.01, tau_range=(0.4, 0.4)).draws(texts(5000), Noise(0))
    assert float((draws.shown & draws.hidden).float().mean()) == pytest.approx(0.6 * 0.3, abs=0.01)
    assert float((~draws.shown).float().mean()) == pytest.approx(0.4, abs=0.01)
    assert float(draws.left.float().mean()) == pytest.approx(0.01 / 0.4, abs=0.003)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_teachers_samples_follow_the_ancestral_law(steps):
    recipe, table = plain(target="teacher", teacher_steps=steps, group=2, kl_beta=1.0), random_table(6, 2.0)
    view = Supervised.of(recipe.views(texts(4000), Noise(2)))
    models = Toy(random_table(1).float(), torch.zeros(64), teacher=table.float())
    drawn = two_step.ancestral(models, view, 2, two_step.Score(MASK), steps)
    assert torch.equal(drawn[::2], drawn[1::2])
    half = step_law(table, 0.5) if steps == 2 else torch.eye(64, dtype=torch.float64)
    law = (half @ step_law(table, 1.0))[EMPTY]
    cells = dict(enumerate(law.tolist()))
    assert abs(surprise(code(drawn[::2]).tolist(), cells)) < 3
    assert set(recipe.loss(models, view).sums) == set(view.normalisers)
