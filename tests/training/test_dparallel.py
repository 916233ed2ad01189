"""dParallel: official losses and gradients, views by hand, certainty forcing, training equal to decoding."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import doubling
import pytest
import torch
from decoder_logits import greatest_difference
from seen_when_decoding import moments
from test_d2f import joined, random_batch

from checkpoints import tiny
from unmask.decoding import build
from unmask.errors import UnmaskError
from unmask.layout import visible
from unmask.models.checkpoint import load_model
from unmask.training.noise import Noise
from unmask.training.objective import Objective
from unmask.training.recipes import make_recipe
from unmask.training.recipes.base import IGNORE, Batch, Supervised
from unmask.training.recipes.dparallel import DParallel, entropy
from vectors_d2f import GivenLogits, batch_of
from vectors_dparallel import check_dparallel

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = [json.loads(x) for x in (GOLDEN / "training-dparallel.jsonl").read_text().splitlines()]
MASK = 158


@pytest.fixture(scope="module")
def network():
    return load_model(GOLDEN / "models" / "llada-tiny-train").model


def total(network, recipe, views):
    """The loss of a step made of these views, as the loop forms it."""
    sums, over = {}, {}
    for view in views:
        for name, value in Objective(network, recipe)(Supervised.of(view)).sums.items():
            sums[name] = sums.get(name, 0) + value
            over[name] = over.get(name, 0) + view.normalisers[name]
    return sum(value / over[name] for name, value in sums.items())


@pytest.mark.parametrize("case", [c for c in CASES if not c.get("bug")], ids=lambda c: c["id"])
def test_views_losses_and_gradients_are_the_official_ones(case):
    assert check_dparallel(GOLDEN, case) == ""


@pytest.mark.parametrize(
    ("active", "bits", "views", "targets"),
    [
        (0, [1, 0], [[9, 0, 2, 0, 0], [9, 1, 0, 0, 0]], [{1: 1}, {2: 2}]),
        (1, [0, 1], [[9, 1, 2, 3, 0], [9, 1, 2, 0, 4]], [{4: 4}, {3: 3}]),
    ],
)
def test_the_paper_s_example_of_two_blocks(active, bits, views, targets):
    """Prompt 9, answer 1 2 3 4, blocks of two, mask 0; `bits` is what the first view masks of the active block."""
    batch = batch_of(torch.tensor([[9, 1, 2, 3, 4]]), [1])
    masked = torch.zeros(1, 5, dtype=torch.bool)
    masked[0, 1 + 2 * active : 3 + 2 * active] = torch.tensor(bits).bool()
    view = DParallel(mask_id=0, block_size=2).views_of(batch, torch.full((1, 5), active), masked)
    assert view.tokens.tolist() == views
    assert [{i: t for i, t in enumerate(row) if t != IGNORE} for row in view.targets.tolist()] == targets
    assert visible(view.layout, view.layout).all()
    shifted = DParallel(mask_id=0, block_size=2, shift=True)
    rows = shifted.views_of(batch, torch.full((1, 5), active), masked).targets.tolist()
    assert [{i + 1: t for i, t in enumerate(row) if t != IGNORE} for row in rows] == targets


def test_the_views_mask_disjoint_halves_of_one_block_and_all_that_follows():
    batch = random_batch(rows=600, length=6 + 29)  # blocks of 8, 8, 8 and 5
    view = DParallel(mask_id=MASK, block_size=8).views(batch, Noise(0))
    first, second = (view.targets != IGNORE).chunk(2)
    masks = (view.tokens == MASK).chunk(2)
    assert not (first & second).any()
    chosen = (first | second)[:, 6:].long().argmax(1) // 8
    for b in range(4):
        assert (chosen == b).float().mean() == pytest.approx(0.25, abs=0.06)
    for row, b in enumerate(chosen.tolist()):
        start, stop = 6 + 8 * b, min(6 + 8 * b + 8, 35)
        assert (first | second)[row, start:stop].all()
        for part, half in zip(masks, (first, second)):
            assert not part[row, :start].any() and part[row, stop:].all()
            assert torch.equal(part[row, start:stop], half[row, start:stop])
    assert (first | second).sum() == sum(min(8, 29 - 8 * b) for b in chosen.tolist())
    assert first.sum() / (first | second).sum() == pytest.approx(0.5005, abs=0.02)


def test_one_block_as_long_as_the_answer_is_random_masking():
    batch = random_batch(rows=50)
    view = DParallel(mask_id=MASK, block_size=256, shift=True).views(batch, Noise(0))
    masked = (view.tokens == MASK).chunk(2)
    assert torch.equal(masked[0] ^ masked[1], batch.labels != IGNORE)
    assert torch.equal((view.targets != IGNORE)[:, 5:-1], (view.tokens == MASK)[:, 6:])


def certain(logits, tokens, **options):
    """The terms of given logits [2 views, L, V] for a prompt of one token, one block, everything masked in view A."""
    recipe = DParallel(mask_id=0, block_size=64, **options)
    batch = batch_of(torch.tensor([tokens]), [1])
    view = recipe.views_of(batch, torch.zeros_like(batch.tokens), torch.ones_like(batch.tokens).bool())
    terms = recipe.loss(GivenLogits(logits), Supervised.of(view))
    return {name: value / view.normalisers[name] for name, value in terms.sums.items()}


def test_certainty_is_forced_on_right_tokens_alone_and_at_the_temperature():
    logits = torch.zeros(2, 4, 3)
    logits[0, 1, 1], logits[0, 2, 2], logits[0, 3, 1] = 2.0, 1.0, 1.0  # right, right, wrong
    logits.requires_grad_()
    sharp = [entropy(torch.tensor([[0.0, 0.0, x]])).item() for x in (4.0, 2.0)]  # logits / 0.5
    got = certain(logits, [1, 1, 2, 2])
    assert got["certainty"].item() == pytest.approx(2 * sum(sharp) / 2)
    got["certainty"].backward()
    assert logits.grad is not None and (logits.grad[0, 3] == 0).all() and (logits.grad[0, 1:3] != 0).any()
    plain = certain(logits, [1, 1, 2, 2], temperature=1.0, certainty_weight=1.0)["certainty"].item()
    assert plain == pytest.approx((entropy(logits[0, 1:2]).item() + entropy(logits[0, 2:3]).item()) / 2)
    assert entropy(torch.zeros(1, 7)).item() == pytest.approx(math.log(7))


def test_nothing_masked_or_nothing_right_counts_for_nothing_and_has_no_gradient():
    logits = torch.zeros(2, 4, 3)
    logits[:, :, 1] = 5.0
    logits.requires_grad_()
    got = certain(logits, [1, 2, 2, 2])  # view B masks nothing, view A has nothing right
    assert got["certainty"] == 0
    got["certainty"].backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    assert got["consistency"].isfinite()


def test_without_certainty_it_is_the_cross_entropy_of_the_masked_tokens(network):
    recipe = DParallel(mask_id=MASK, block_size=8, certainty_weight=0.0)
    view = recipe.views(random_batch(rows=1), Noise(0))
    batch = Supervised.of(view)
    states = Objective(network, recipe).student(batch.tokens, batch.layout, batch.index)
    losses = torch.nn.functional.cross_entropy(states.head(states.hidden), batch.targets, reduction="none")
    expected = sum(losses[batch.row == r].mean() for r in (0, 1) if (batch.row == r).any())
    assert total(network, recipe, [view]).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("shift", [False, True])
def test_packed_samples_train_as_in_rows_of_their_own(network, shift):
    recipe = DParallel(mask_id=MASK, block_size=8, shift=shift)
    parts = [random_batch(rows=2, length=30), random_batch(rows=1, length=23, prompt=3, seed=1)]
    below = replace(parts[1], sample=parts[1].sample + 2)
    packed = recipe.views(joined(*parts, row=True), Noise(4))
    alone = [recipe.views(part, Noise(4)) for part in (parts[0], below)]
    for half in (0, 1):
        rows = [v.tokens.chunk(2)[half].flatten() for v in alone]
        assert torch.equal(packed.tokens[half], torch.cat(rows))
    assert total(network, recipe, [packed]).item() == pytest.approx(total(network, recipe, alone).item(), rel=1e-5)


def test_the_cut_of_a_step_does_not_change_its_loss(network):
    batch, recipe = random_batch(rows=8, length=30), DParallel(mask_id=MASK, block_size=8)
    # Labels the network likes, else nothing is right and nothing is tested.
    states = Objective(network, recipe).student(*seen(recipe.views(batch, Noise(0))))
    best = states.head(states.hidden).argmax(-1).view(2, 8, 30)[0]
    tokens = torch.where((torch.arange(30) >= 6) & (torch.arange(30) % 2 == 0), best, batch.tokens)
    batch = replace(batch, tokens=tokens, labels=torch.where(batch.labels == IGNORE, IGNORE, tokens))
    losses = []
    for size in (8, 4, 1):
        cut = [{f.name: getattr(batch, f.name)[at : at + size] for f in fields(Batch)[:-1]} for at in range(0, 8, size)]
        views = [recipe.views(Batch(**part), Noise(0)) for part in cut]
        losses.append(total(network, recipe, views).item())
    right = Objective(network, recipe)(Supervised.of(recipe.views(batch, Noise(0)))).right
    assert 5 < int(right.sum()) < len(right) - 5
    assert losses[1:] == [pytest.approx(losses[0], rel=1e-5)] * 2


def seen(view):
    return view.tokens, view.layout


@pytest.mark.parametrize("name", ["llada-tiny-train", "dream-tiny-train"])
def test_the_student_sees_what_the_decoder_sees_under_full_attention(name):
    lm, size = tiny(name), 6
    method = build("dparallel", {"block_size": size, "tau": 1.2, "early_exit": False})
    run = moments(lm, method, [[5, 80, 33, 7, 140, 61, 9], [90, 12, 44]], 18)
    assert len(run) > 6
    recipe = DParallel(mask_id=lm.facts.mask_id, block_size=size, shift=bool(lm.family.shift))

    def view_of(batch, masked):
        # The sample of the run stands last; its block in work holds the first open position.
        at = torch.arange(masked.shape[1])[(masked & (batch.segment == batch.segment[0, -1]))[0]][0]
        active = (batch.positions - batch.prompt)[0, at] // size
        view = recipe.views_of(batch, active.expand_as(masked), masked)
        return replace(view, tokens=view.tokens[:1], layout=view.layout.map(lambda x: x[:1]))

    count, difference = greatest_difference(lm, run, view_of)
    assert count > 60 and difference < 1e-4


def test_the_decoder_named_by_the_recipe_is_known_and_options_are_checked():
    for size, decoded in ((8, 8), (256, 32)):
        options = dict(make_recipe({"name": "dparallel", "block_size": size}, mask_id=3).decoder)
        assert build(options.pop("method"), options).block_size == decoded
    for wrong, message in [
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
        ({"mask_ratio": 1.5}, "mask_ratio must be between 0 and 1, got 1.5"),
        ({"temperature": 0}, "temperature must be above 0, got 0"),
    ]:
        with pytest.raises(UnmaskError, match=message):
            make_recipe({"name": "dparallel", **wrong}, mask_id=3)


@pytest.mark.slow
def test_certainty_makes_an_unsure_base_decide_many_tokens_at_once(tmp_path):
    """Every fifth digit of the data is wrong, so a base must stay unsure of all of them, and cross-entropy alone keeps
    it so. Certainty forcing makes it sure of what it holds most likely, which is right."""
    data, decoder = doubling.answers(tmp_path / "answers.jsonl"), {"method": "dparallel", "block_size": doubling.CANVAS}
    doubling.train(tmp_path / "first", {"name": "masked"}, data, steps=300, learning_rate=3e-3)
    unsure, changes = doubling.answers(tmp_path / "unsure.jsonl", wrong=0.2), {"init": str(tmp_path / "first" / "run")}
    base = doubling.train(tmp_path / "base", {"name": "masked"}, unsure, steps=60, learning_rate=1e-3, **changes)
    right, tokens_per_forward = doubling.score(base, **decoder)
    assert tokens_per_forward < 1.2
    changes = {"init": str(tmp_path / "base" / "run"), "steps": 100, "learning_rate": 2e-3}
    found = {}
    for weight in (0.0, 2.0):
        recipe = {"name": "dparallel", "block_size": doubling.CANVAS, "certainty_weight": weight}
        found[weight] = doubling.score(doubling.train(tmp_path / str(weight), recipe, unsure, **changes), **decoder)
    assert found[0.0][1] < 1.3
    assert found[2.0][1] > 4 and found[2.0][0] >= max(right, 0.9)
