"""The guided sampler: official steps, laws by enumeration, and that a discriminator without an opinion changes none."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from tabular import Tabular, counts, exact_law, excess, sample
from torch import Tensor

from checkpoints import GOLDEN, tiny
from unmask import UnmaskError
from unmask.attention.dense import DenseAttention
from unmask.decoding import build
from unmask.decoding.didi import candidate_scores, reward_gradient
from unmask.decoding.forward import Facts, blank
from unmask.decoding.mdlm import subs
from unmask.decoding.sampling import Draw
from unmask.layout import full
from unmask.models.discriminator import load_discriminator
from vectors_samplers import SAMPLERS

CASES = [json.loads(line) for line in (GOLDEN / "didi-rgas.jsonl").read_text().splitlines()]
FOLDER = str(GOLDEN / "models" / "didi-dit-tiny")


@pytest.mark.parametrize("case", CASES, ids=[c["id"] for c in CASES])
def test_official_guided_steps(case):
    assert SAMPLERS["didi-rgas"](GOLDEN, case) == ""


class Taste:
    """A discriminator that likes each token by a number of its own, wherever it stands."""

    def __init__(self, liking: list[float]) -> None:
        self.liking = torch.tensor(liking)
        self.calls: list[int] = []
        self.levels: list[float] = []

    def embed(self, tokens: Tensor) -> Tensor:
        if tokens.is_floating_point():
            return tokens.softmax(-1)
        return torch.nn.functional.one_hot(tokens, len(self.liking)).float()

    def __call__(self, embeddings: Tensor, sigma: Tensor, positions: Tensor, attend: Any) -> Tensor:
        self.calls.append(len(embeddings))
        self.levels.append(float(sigma[0]))
        return embeddings @ self.liking


def model(seed: int = 0, length: int = 2) -> Tabular:
    logits = torch.randn(3**length, generator=torch.Generator().manual_seed(seed)).double()
    return Tabular(3, length, logits.softmax(-1))


LIKING = [1.0, -0.5, 0.3, 0.0, 0.0]


@pytest.mark.parametrize(
    ("options", "liking"),
    [
        ({"guidance_start": 0.0, "guidance_end": 0.0, "candidates": 1}, LIKING),
        ({"guidance_start": 30.0, "candidates": 4}, [2.0] * 5),
    ],
    ids=["no guidance", "no opinion"],
)
def test_without_guidance_or_opinion_it_is_the_plain_sampler(options, liking):
    plain = model()
    rows = sample(plain, "didi", {"steps": 3, "discriminator": Taste(liking)} | options, 5000)
    assert abs(excess(counts(plain, rows), exact_law(plain, 3))) < 3.5


def first_rows(plain: Tabular) -> Tensor:
    return plain.probs(torch.full((1, plain.length), plain.mask))[0]


def test_reranking_follows_the_softmax_of_the_scores_of_its_candidates():
    plain = model()
    scale, count = 1.5, 2
    one, two = first_rows(plain)
    law = (one[:, None] * two).flatten()
    reward = scale * torch.tensor(LIKING)[plain.texts].sum(-1).double()
    expected = torch.zeros_like(law)
    for pair in product(range(len(law)), repeat=count):
        chosen = reward[list(pair)].softmax(-1)
        for text, share in zip(pair, chosen):
            expected[text] += law[list(pair)].prod() * share
    options = {"steps": 1, "rerank_ratio": 1.0, "candidates": count, "rerank_scale": scale}
    rows = sample(plain, "didi", options | {"discriminator": Taste(LIKING)}, 6000)
    observed = counts(plain, rows)
    assert abs(excess(observed, expected)) < 3.5
    assert excess(observed, law) > 8


def test_tilting_follows_the_gradient_of_the_expected_score():
    plain = model(1)
    options = {"steps": 1, "rerank_ratio": 0.0, "guidance_start": 2.0, "discriminator": Taste(LIKING)}
    observed = counts(plain, sample(plain, "didi", options, 6000))
    probs, liking = first_rows(plain), torch.tensor(LIKING[:3]).double()
    gradient = probs * (liking - (probs * liking).sum(-1, keepdim=True))
    one, two = (probs.log() + 2.0 * gradient).softmax(-1)
    assert abs(excess(observed, (one[:, None] * two).flatten())) < 3.5
    assert excess(observed, (probs[0][:, None] * probs[1]).flatten()) > 8


def test_the_weight_rises_linearly_over_the_tilted_steps():
    given = {"steps": 8, "discriminator": Taste([0.0] * 5), "guidance_start": 1.0, "guidance_end": 4.0}
    method = build("didi", given).bind(model().family, 2)
    assert method.tilted == 4
    logits, seen = torch.zeros(1, 2, 5), []

    class Slope(Taste):
        def __call__(self, embeddings: Tensor, sigma: Tensor, positions: Tensor, attend: Any) -> Tensor:
            return 100 * embeddings[..., 0]  # clamped to 1, whatever the probability

    method = build("didi", given | {"discriminator": Slope([0.0] * 5)}).bind(model().family, 2)
    for step in range(6):
        state = replace(start_of(method), step=torch.tensor([step]))
        _, tilted = method.adjust(state, method.plan(state), logits)
        seen.append(float((tilted - subs(logits, torch.full((1, 2), 3), 3))[0, 0, 0]))
    assert seen[:4] == pytest.approx([1.0, 2.0, 3.0, 4.0])
    assert tilted is logits


def start_of(method: Any) -> Any:
    one = torch.zeros(1)
    draw = Draw(one, one + 1, one.long(), one.long())
    return method.start(blank([[4]], [3], 2, Facts(3, (), 0), draw))


def test_the_gradient_is_zero_where_a_token_is_visible_or_not_looked_at():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 5, generator=generator)
    tokens, targets = torch.tensor([[4, 3, 1, 3]]), torch.tensor([[1, 2, 3]])
    is_open = torch.tensor([[True, False, True]])
    taste = Taste(LIKING)
    gradient = reward_gradient(lambda e: e @ taste.liking, taste.embed, tokens, targets, is_open, logits)
    assert (gradient[0, 1] == 0).all()
    assert (gradient[0, [0, 2]] != 0).any(-1).all()
    blind = reward_gradient(
        lambda e: (e[:, 2] @ taste.liking)[:, None].expand(-1, 4) + 0 * e.sum(-1),
        taste.embed,
        tokens,
        targets,
        is_open,
        logits,
    )
    assert (blind == 0).all()
    steep = reward_gradient(lambda e: 1e4 * e @ taste.liking, taste.embed, tokens, targets, is_open, logits)
    assert steep.abs().max() == 1


def test_candidates_share_one_forward_and_the_discriminator_sees_all_of_them():
    taste = Taste(LIKING)
    options = {"steps": 4, "candidates": 3, "discriminator": taste, "early_exit": False}
    (row,) = sample(model(), "didi", options, 1)
    assert sum(row.counters.forwards.values()) == 5  # four steps and the clean-up
    assert taste.calls == [1, 1, 3, 3]
    # A tilted step is judged at the level it starts from, candidates at the level they reach.
    reached = [0.0, 0.25, 0.75, 1.0]
    assert taste.levels == pytest.approx([-math.log(1 - (1 - 1e-3) * (1 - x * (1 - 1e-5))) for x in reached])


def test_padding_has_no_part_in_a_score():
    judge = load_discriminator(FOLDER, torch.device("cpu"))
    canvas, sigma = torch.tensor([[[5, 6, 160, 0, 0]], [[5, 9, 7, 0, 0]]]), torch.tensor([0.3])
    padded = full(5).batch(1).with_padding(torch.arange(5) < 3)
    short = candidate_scores(judge, full(3).batch(1), sigma, canvas[..., :3])
    torch.testing.assert_close(candidate_scores(judge, padded, sigma, canvas), short)


def test_the_published_layout_is_guided_by_its_own_discriminator():
    lm = tiny("didi-dit-tiny")
    prompts = [[5], [7, 8, 9, 160, 11], [3] * 12]
    options = {"method": "didi", "discriminator": FOLDER, "steps": 6, "max_new_tokens": 10, "temperature": 1.0}
    together = lm.generate(prompts, seed=[1, 2, 3], **options)
    for prompt, seed, row in zip(prompts, (1, 2, 3), together):
        alone = lm.generate(prompt, seed=seed, **options)
        assert (row.ids, row.counters.forwards) == (alone.ids, alone.counters.forwards)
        assert len(row.ids) == 10 and 160 not in row.ids


def test_reranked_texts_please_the_discriminator_more_than_plain_ones():
    lm, seeds = tiny("didi-dit-tiny"), list(range(12))
    common = {"steps": 6, "max_new_tokens": 10, "temperature": 1.0, "seed": seeds}
    guided = {"method": "didi", "discriminator": FOLDER, "rerank_ratio": 1.0, "candidates": 6}
    liked = sum(judged([5, *row.ids]) for row in lm.generate([[5]] * 12, **common, **guided))
    plain = sum(judged([5, *row.ids]) for row in lm.generate([[5]] * 12, **common, method="mdlm"))
    assert liked / 12 > plain / 12 + 10


def judged(ids: list[int]) -> float:
    judge, layout = load_discriminator(FOLDER, torch.device("cpu")), full(len(ids))
    embedded = judge.embed(torch.tensor([ids]))
    return float(judge(embedded, torch.zeros(1), layout.positions[None], DenseAttention(layout)).sum())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs discriminator="),
        ({"discriminator": 3}, "must be a folder, a file or a scorer, not 3"),
        ({"discriminator": str(GOLDEN / "models" / "mdlm-dit-tiny")}, r"no discriminator\.safetensors in"),
        ({"discriminator": "./nowhere"}, "no folder ./nowhere"),
    ],
)
def test_a_missing_discriminator_is_said_before_anything_runs(options, message):
    with pytest.raises(UnmaskError, match=message):
        tiny("didi-dit-tiny").generate([5], method="didi", max_new_tokens=4, **options)
