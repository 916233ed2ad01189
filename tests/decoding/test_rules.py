"""Selection rules and scores on synthetic tensors, worked out by hand."""

from __future__ import annotations

import pytest
import torch

from unmask.decoding import select
from unmask.decoding.sampling import Draw, ScoreRule, score, uniform

P = torch.tensor([[0.9, 0.5, 0.9, 0.2, 0.95]])
ALL = torch.ones(1, 5, dtype=torch.bool)


def pick(rule, quota, prob=P, eligible=ALL, ranking=None):
    chosen = rule(prob, prob if ranking is None else ranking, eligible, torch.tensor([quota] * len(prob)))
    return [row.nonzero()[:, 0].tolist() for row in chosen]


def test_static_takes_the_best_and_ties_go_to_the_lowest_position():
    assert pick(select.Static(), 2) == [[0, 4]]
    assert pick(select.Static(), 3) == [[0, 2, 4]]
    assert pick(select.Static(), 9) == [[0, 1, 2, 3, 4]]


def test_no_rule_takes_an_ineligible_position():
    eligible = torch.tensor([[False, True, False, True, False]])
    for rule in (select.Static(), select.Threshold(0.1), select.Leftmost(), select.EntropyBounded(9.0)):
        assert set(pick(rule, 3, eligible=eligible)[0]) <= {1, 3}
        assert pick(rule, 3, eligible=torch.zeros_like(ALL)) == [[]]


def test_threshold_is_strict_and_forces_the_quota():
    assert pick(select.Threshold(0.9), 1) == [[4]]  # 0.9 is not above 0.9 in float32 either way
    assert pick(select.Threshold(0.89), 1) == [[0, 2, 4]]
    assert pick(select.Threshold(0.99), 1) == [[4]]
    assert pick(select.Threshold(0.99), 0) == [[]]
    assert pick(select.Threshold(0.89), 4) == [[0, 1, 2, 4]]
    assert pick(select.Threshold(0.5, strict=False), 1) == [[0, 1, 2, 4]]
    assert pick(select.Threshold(0.5), 1) == [[0, 2, 4]]


def test_threshold_compares_the_probability_and_falls_back_on_the_ranking():
    ranking = torch.tensor([[0.0, 3.0, 0.0, 0.0, 0.0]])
    assert pick(select.Threshold(0.99), 1, ranking=ranking) == [[1]]


def test_leftmost_ignores_confidence():
    assert pick(select.Leftmost(), 2, eligible=torch.tensor([[False, True, True, True, False]])) == [[1, 2]]


def test_entropy_bound_takes_the_largest_cheap_set_and_at_least_one():
    entropy = torch.tensor([[0.3, 0.05, 0.1, 2.0, 0.2]])
    assert pick(select.EntropyBounded(0.4), 1, ranking=-entropy) == [[1, 2, 4]]
    assert pick(select.EntropyBounded(0.01), 1, ranking=-entropy) == [[1]]


def test_infinitely_bad_scores_of_eligible_positions_still_precede_ineligible_ones():
    ranking = torch.tensor([[5.0, -torch.inf, -torch.inf]])
    eligible = torch.tensor([[False, True, True]])
    assert select.best(ranking, eligible, torch.tensor([1])).tolist() == [[False, True, False]]


def draw(temperature=0.0, top_p=1.0, top_k=0, seed=0, rows=1):
    return Draw(
        torch.full((rows,), temperature),
        torch.full((rows,), top_p),
        torch.full((rows,), top_k),
        torch.full((rows,), seed),
    )


Z = torch.log(torch.tensor([[[0.5, 0.3, 0.15, 0.05]]]))
STEP, AT = torch.tensor([0]), torch.tensor([[7]])


def test_greedy_scores_are_the_softmax():
    s = score(Z, ScoreRule(), draw(), STEP, AT)
    assert s.token.tolist() == [[0]]
    assert s.prob.item() == pytest.approx(0.5)


def test_a_banned_token_is_not_proposed_but_keeps_its_share():
    s = score(Z, ScoreRule(ban=(0,)), draw(), STEP, AT)
    assert s.token.tolist() == [[1]]
    assert s.prob.item() == pytest.approx(0.3)
    s = score(Z, ScoreRule(ban=(0,), ban_confidence=(0,)), draw(), STEP, AT)
    assert s.prob.item() == pytest.approx(0.6)


def test_filters_act_on_the_confidence_at_temperature_zero_only_where_asked():
    assert score(Z, ScoreRule(), draw(top_p=0.6), STEP, AT).prob.item() == pytest.approx(0.5)
    # 0.5 does not reach 0.6, so the token that crosses the bound stays
    s = score(Z, ScoreRule(filter_greedy=True), draw(top_p=0.6), STEP, AT)
    assert s.prob.item() == pytest.approx(0.5 / 0.8)
    s = score(Z, ScoreRule(filter_greedy=True), draw(top_k=3), STEP, AT)
    assert s.prob.item() == pytest.approx(0.5 / 0.95)


def test_rankings():
    assert score(Z, ScoreRule(rank="margin"), draw(), STEP, AT).score.item() == pytest.approx(0.2)
    p = Z.exp()[0, 0]
    assert score(Z, ScoreRule(rank="entropy"), draw(), STEP, AT).score.item() == pytest.approx(
        float((p * p.log()).sum())
    )
    one_hot = torch.tensor([[[0.0, -torch.inf, -torch.inf, -torch.inf]]])
    assert score(one_hot, ScoreRule(rank="entropy"), draw(), STEP, AT).score.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("top_p", "top_k", "expected"), [(1.0, 0, [0.5, 0.3, 0.15, 0.05]), (0.7, 0, [0.625, 0.375, 0, 0])]
)
def test_samples_follow_the_filtered_distribution(top_p, top_k, expected):
    n = 4000
    logits = Z.expand(1, n, 4)
    s = score(logits, ScoreRule(), draw(1.0, top_p, top_k), STEP, torch.arange(n)[None])
    share = torch.bincount(s.token[0], minlength=4) / n
    assert torch.allclose(share, torch.tensor(expected), atol=0.03)
    chi = sum((share[i] - e) ** 2 / e * n for i, e in enumerate(expected) if e)
    assert chi < 16.3  # 99.9 % of chi-square with three degrees of freedom
    assert torch.allclose(s.prob[0], torch.tensor(expected)[s.token[0]], atol=1e-5)


def test_raw_confidence_ignores_temperature():
    s = score(Z, ScoreRule("raw"), draw(5.0), STEP, AT)
    assert s.prob.item() == pytest.approx([0.5, 0.3, 0.15, 0.05][s.token.item()])


def test_sampling_never_draws_a_banned_token():
    s = score(Z.expand(1, 500, 4), ScoreRule(ban=(0,)), draw(1.0, top_k=1), STEP, torch.arange(500)[None])
    assert s.token.unique().tolist() == [1]  # the filter left only the banned one: the best allowed token


def test_uniform_numbers_are_uniform_and_differ_in_every_argument():
    at = torch.arange(5000)[None]
    u = uniform(torch.tensor([3]), torch.tensor([0]), at)
    assert abs(u.mean().item() - 0.5) < 0.02
    assert torch.histc(u.float(), 10, 0, 1).min() > 400
    for other in (
        uniform(torch.tensor([4]), torch.tensor([0]), at),
        uniform(torch.tensor([3]), torch.tensor([1]), at),
        uniform(torch.tensor([3]), torch.tensor([0]), at, salt=1),
        uniform(torch.tensor([3]), torch.tensor([0]), at + 5000),
    ):
        assert abs(torch.corrcoef(torch.stack([u[0], other[0]]))[0, 1].item()) < 0.05
    assert torch.equal(u, uniform(torch.tensor([3]), torch.tensor([0]), at))


def test_with_two_tokens_probability_margin_and_entropy_rank_positions_alike():
    logits = torch.randn(3, 40, 2, generator=torch.Generator().manual_seed(0))
    at = torch.arange(40).expand(3, -1)
    orders = [
        score(logits, ScoreRule(rank=rank), draw(rows=3), torch.zeros(3).long(), at).score.argsort(-1).tolist()
        for rank in ("prob", "margin", "entropy")
    ]
    assert orders[0] == orders[1] == orders[2]
