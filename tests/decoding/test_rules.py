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


def test_ranks_that_are_counted_are_those_of_a_stable_sort():
    generator = torch.Generator().manual_seed(0)
    for size in (1, 7, select.COUNTED):
        score = torch.randint(-3, 3, (50, size), generator=generator).float()  # many ties
        score[score == -3] = -torch.inf
        eligible = torch.rand(50, size, generator=generator) < torch.linspace(0, 1, 50)[:, None]
        rank = select.rank(score, eligible)
        for row in range(50):
            order = sorted(
                range(size), key=lambda i: (not eligible[row, i], -score[row, i] if eligible[row, i] else 0, i)
            )
            assert rank[row, order].tolist() == list(range(size))
        wide = (0, select.COUNTED + 1 - size)  # sorted now, behind places that nothing is to be had of
        padded = select.rank(*(torch.nn.functional.pad(x, wide) for x in (score, eligible)))
        assert torch.equal(padded[:, :size][eligible], rank[eligible])


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


def random_case(seed, rows=64, width=12):
    """Probabilities, and which positions are open."""
    g = torch.Generator().manual_seed(seed)
    return torch.rand(rows, width, generator=g), torch.rand(rows, width, generator=g) < 0.6


@pytest.mark.parametrize("quota", [0, 1, 3])
@pytest.mark.parametrize("name", sorted(select.RULES.known))
def test_every_rule_takes_eligible_positions_alone_and_at_least_the_quota(name, quota):
    prob, eligible = random_case(0)
    ranking = prob - 1 if name in ("entropy", "entropy_bounded") else prob
    chosen = select.RULES.known[name]()(prob, ranking, eligible, torch.full((64,), quota))
    assert not (chosen & ~eligible).any()
    if name != "entropy_bounded":  # its bound decides, but for one
        assert (chosen.sum(-1) >= eligible.sum(-1).clamp(max=quota)).all()


@pytest.mark.parametrize(
    ("factor", "confidences", "count"),
    [
        (1.0, [0.99, 0.98, 0.97, 0.10], 3),  # the official code takes the last one unseen
        (1.0, [0.2, 0.1], 1),
        (1.0, [0.66, 0.66], 1),
        (1.0, [0.67, 0.67], 2),
        (1.0, [0.76, 0.76, 0.76], 3),
        (1.0, [0.74, 0.74, 0.74], 2),
        (1.0, [0.91] * 9, 9),
        (0.0, [0.99] * 4, 1),
        (2.0, [0.5] * 6, 2),  # ceil(2 / 0.5) - 2
    ],
)
def test_factor_takes_the_largest_r_whose_bound_holds(factor, confidences, count):
    prob = torch.tensor([confidences])
    chosen = select.Factor(factor)(prob, prob, torch.ones_like(prob, dtype=torch.bool), torch.tensor([1]))
    assert chosen.sum() == count


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.5])
def test_factor_never_takes_a_position_below_its_bound_but_the_best(factor):
    prob, eligible = random_case(1)
    prob = prob**0.1  # many close to 1
    chosen = select.Factor(factor)(prob, prob, eligible, torch.ones(64).long())
    for p, c, e in zip(prob, chosen, eligible):
        taken = p[c].sort(descending=True).values
        if len(taken) > 1:
            assert (len(taken) + 1) * (1 - taken[-1]) < factor
        waiting = p[e & ~c]
        if len(waiting):
            assert (len(taken) + 2) * (1 - waiting.max()) >= factor


def test_entropy_is_inclusive_and_falls_back_on_the_lowest():
    entropy = torch.tensor([[0.75, 0.5, 0.25, 2.0]])
    every = torch.ones_like(entropy, dtype=torch.bool)
    assert pick(select.Entropy(0.5), 1, prob=entropy, eligible=every, ranking=-entropy) == [[1, 2]]
    assert pick(select.Entropy(0.1), 1, prob=entropy, eligible=every, ranking=-entropy) == [[2]]


def test_hierarchical_takes_the_best_of_each_run_above_the_low_threshold():
    prob = torch.tensor([[0.9, 0.3, 0.99, 0.5, 0.8, 0.7]])
    eligible = torch.tensor([[True, True, False, True, True, True]])
    assert pick(select.Hierarchical(0.92, 0.62), 1, prob=prob, eligible=eligible) == [[0, 4]]
    assert pick(select.Hierarchical(0.65, 0.62), 1, prob=prob, eligible=eligible) == [[0, 4, 5]]
    assert pick(select.Hierarchical(0.92, 0.85), 1, prob=prob, eligible=eligible) == [[0]]
    assert pick(select.Hierarchical(0.99, 0.95), 1, prob=prob, eligible=eligible) == [[0]]  # always the best of all
    tie = torch.full((1, 6), 0.7)
    assert pick(select.Hierarchical(0.92, 0.62), 1, prob=tie, eligible=eligible) == [[0, 3]]


def test_hierarchical_without_thresholds_takes_one_position_of_each_run():
    prob, eligible = random_case(2)
    chosen = select.Hierarchical(1.0, 0.0)(prob, prob, eligible, torch.ones(64).long())
    starts = eligible & ~torch.cat([torch.zeros(64, 1, dtype=torch.bool), eligible[:, :-1]], 1)
    assert chosen.sum(-1).tolist() == starts.sum(-1).tolist()
    low_off = select.Hierarchical(0.7, 1.0)(prob, prob, eligible, torch.ones(64).long())
    assert torch.equal(low_off, select.Threshold(0.7)(prob, prob, eligible, torch.ones(64).long()))


FIRST = torch.tensor([4])


def credited(logits, memory=None, first=FIRST, eligible=None, rule=select.Credit()):
    """One forward over a block of as many positions as there are rows; the last token is the mask."""
    size = logits.shape[1]
    every = torch.ones(1, size, dtype=torch.bool) if eligible is None else eligible
    return rule.adjust(memory or {}, first, torch.arange(size)[None], every, size, logits, logits.shape[-1] - 1)


def test_credit_adds_its_logarithm_to_the_leading_token():
    sure = torch.tensor([[[50.0, 0.0, 0.0]]])
    memory, logits = credited(sure)
    assert (logits - sure)[0, 0].tolist() == pytest.approx([0.4852, 0.0, 0.0], abs=1e-4)  # 0.7 ln 2
    memory, logits = credited(sure, memory)
    assert (logits - sure)[0, 0, 0].item() == pytest.approx(0.7 * 1.0296194, abs=1e-4)  # ln(1 + 0.8 + 1)


def test_credit_of_a_token_that_leads_no_more_decays_and_a_new_block_begins_at_zero():
    one, other = torch.tensor([[[50.0, 0.0, 0.0]]]), torch.tensor([[[0.0, 50.0, 0.0]]])
    memory, _ = credited(one)
    memory, logits = credited(other, memory)
    assert memory["credit"][0, 0].tolist() == pytest.approx([0.8, 1.0, 0.0])
    assert (logits - other)[0, 0, 0].item() == pytest.approx(0.7 * 0.5877867, abs=1e-4)
    memory, _ = credited(one, memory, first=FIRST + 1)
    assert memory["credit"][0, 0].tolist() == pytest.approx([1.0, 0.0, 0.0])


def test_credit_leaves_decided_positions_alone_and_at_first_changes_no_arg_max():
    logits = torch.randn(1, 8, 20, generator=torch.Generator().manual_seed(3)) * 4
    logits[..., -1] = -50
    eligible = torch.arange(8)[None] % 3 != 0
    memory, after = credited(logits, eligible=eligible)
    assert torch.equal(after[~eligible], logits[~eligible])
    assert not memory["credit"][~eligible].any()
    assert torch.equal(after.argmax(-1), logits.argmax(-1))
    assert (after.softmax(-1).max(-1).values[eligible] > logits.softmax(-1).max(-1).values[eligible]).all()


def test_a_leading_mask_token_gets_no_credit():
    memory, logits = credited(torch.tensor([[[1.0, 2.0, 9.0]]]))
    assert memory["credit"][0, 0, 2] == 0
    assert memory["credit"][0, 0, 1] > 0
    assert logits[0, 0, 2] == 9.0


@pytest.mark.parametrize("first", [False, True])
def test_filters_act_before_or_after_the_temperature(first):
    logits = torch.log(torch.tensor([[[0.6, 0.3, 0.1]]]))
    draw = Draw(torch.tensor([2.0]), torch.tensor([0.65]), torch.tensor([0]), torch.tensor([0]))
    targets = torch.zeros(1, 400, dtype=torch.long) + torch.arange(400)
    many = logits.expand(1, 400, 3)
    scores = score(many, ScoreRule(filter_first=first), draw, torch.tensor([0]), targets)
    # At temperature 2 the three are .47, .33, .20: the second crosses 0.65 there too, as it does at temperature 1 ...
    assert set(scores.token[0].tolist()) == {0, 1}
    # ... but 0.55 is crossed by the first alone before, and by the second after.
    draw = Draw(torch.tensor([2.0]), torch.tensor([0.55]), torch.tensor([0]), torch.tensor([0]))
    scores = score(many, ScoreRule(filter_first=first), draw, torch.tensor([0]), targets)
    assert set(scores.token[0].tolist()) == ({0} if first else {0, 1})
