"""The grammar: likelihood, entropy and marginals equal to enumeration; samples follow it; parallel sampling hurts."""

import math
from itertools import pairwise, product

import pytest
import torch

from unmask.errors import UnmaskError
from unmask.tasks.grammar import Grammar, unigram_entropy

TINY = Grammar(vocabulary=5, keys=2, weights=(0.6, 0.4), noise=0.1, seed=3)


def everything(length):
    return torch.tensor(list(product(range(TINY.vocabulary), repeat=length)))


def by_hand(ids):
    """The likelihood of one sequence from the rule in words, with plain floats."""
    v, noise = TINY.vocabulary, TINY.noise
    key, topic = ids[0] % 2, (ids[0] % 2) % TINY.topics
    p = ((1 - noise) / 2 if ids[0] < 2 else 0.0) + noise / v
    for left, right in pairwise(ids[:-1]):
        followers = TINY.followers[topic, left].tolist()
        p *= noise / v + sum((1 - noise) * w for f, w in zip(followers, TINY.weights) if f == right)
    return p * (((1 - noise) if ids[-1] == key else 0.0) + noise / v)


@pytest.mark.parametrize("length", [3, 5])
def test_likelihoods_are_those_of_the_rule_and_add_up_to_one(length):
    ids = everything(length)
    log_prob = TINY.log_prob(ids)
    assert float(log_prob.exp().sum()) == pytest.approx(1, abs=1e-12)
    for n in range(0, len(ids), 17):
        assert math.exp(float(log_prob[n])) == pytest.approx(by_hand(ids[n].tolist()), rel=1e-12)


@pytest.mark.parametrize("length", [3, 4, 6])
def test_entropy_and_marginals_equal_enumeration(length):
    ids = everything(length)
    p = TINY.log_prob(ids).exp()
    assert TINY.entropy(length) == pytest.approx(float(torch.special.entr(p).sum()), abs=1e-10)
    marginals = torch.stack([torch.zeros(5, dtype=torch.float64).index_add(0, column, p) for column in ids.T])
    torch.testing.assert_close(TINY.marginals(length), marginals, atol=1e-12, rtol=0)


def test_samples_follow_the_likelihood():
    ids = TINY.sample(40_000, 3, seed=1)
    counts = torch.bincount((ids * torch.tensor([25, 5, 1])).sum(1), minlength=125)
    expected = TINY.log_prob(everything(3)).exp() * 40_000
    # 124 degrees of freedom: mean 124, deviation 15.7.
    assert float(((counts - expected) ** 2 / expected).sum()) < 124 + 4 * 15.7


def test_a_sample_depends_on_length_seed_and_number_alone():
    ids = Grammar().sample(20, 16, seed=5)
    assert torch.equal(ids[7:12], Grammar().sample(5, 16, seed=5, start=7))
    assert not torch.equal(ids, Grammar().sample(20, 16, seed=6))
    assert int(ids.min()) >= 0 and int(ids.max()) < Grammar().mask_id == 32


def test_samples_of_the_source_have_no_excess():
    ids = Grammar().sample(4000, 32, seed=2)
    report = Grammar().report(ids)
    deviation = float(Grammar().log_prob(ids).std()) / 32 / math.sqrt(4000)
    assert abs(report["excess"]) < 4 * deviation
    assert report["fitting"] == pytest.approx(1 - 0.98 * 0.02, abs=0.003)


def test_deciding_positions_without_each_other_costs_much_more_than_the_entropy():
    """One forward at best draws each position from its marginal."""
    source = Grammar()
    marginals = source.marginals(32)
    drawn = torch.multinomial(marginals, 2000, replacement=True, generator=torch.Generator().manual_seed(0)).T
    report = source.report(drawn)
    assert source.entropy(32) / 32 < 1.3
    assert report["excess"] > 4 and report["fitting"] < 0.3
    # The far dependency by itself: all as it should be, but the last token drawn for itself.
    ids = source.sample(2000, 32, seed=3)
    ids[:, -1] = drawn[:, -1]
    assert float(-source.log_prob(ids).mean()) - source.entropy(32) > 4


def test_a_sampler_without_variety_shows_in_the_entropies():
    source = Grammar()
    ids = source.sample(1, 32, seed=1).repeat(100, 1)
    ids[:, 1:-1] = ids[:, 1:2]
    assert source.report(ids)["unigram_entropy"] < 0.4 < source.report(source.sample(100, 32))["unigram_entropy"]
    even = torch.arange(8).repeat(1, 2)
    assert float(unigram_entropy(even)[0]) == pytest.approx(math.log(8))


def test_ids_outside_the_vocabulary_are_impossible():
    ids = Grammar().sample(2, 8)
    ids[1, 4] = Grammar().mask_id
    log_prob = Grammar().log_prob(ids)
    assert log_prob[0].isfinite() and log_prob[1] == -torch.inf


def test_mistakes_are_named():
    with pytest.raises(UnmaskError, match="at least 3 tokens, not 2"):
        Grammar().sample(1, 2)
    with pytest.raises(UnmaskError, match="too few"):
        Grammar(vocabulary=8, keys=8)
    with pytest.raises(UnmaskError, match="add up to 1"):
        Grammar(weights=(0.5, 0.4))
