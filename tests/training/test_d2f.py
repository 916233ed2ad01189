"""D2F: official masks, noise, losses and gradients; the noise's law; training equal to pipelined cached decoding."""

import json
from dataclasses import fields, replace
from pathlib import Path

import doubling
import pytest
import torch
from decoder_logits import greatest_difference
from seen_when_decoding import moments

from checkpoints import tiny
from unmask.decoding import build
from unmask.errors import UnmaskError
from unmask.models.checkpoint import load_model
from unmask.training.noise import Noise
from unmask.training.objective import Objective
from unmask.training.recipes import make_recipe
from unmask.training.recipes.base import IGNORE, Batch, Supervised
from unmask.training.recipes.d2f import D2f
from vectors_d2f import check_d2f, loss_of, with_adapter

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = [json.loads(x) for x in (GOLDEN / "training-d2f.jsonl").read_text().splitlines()]
MASK, END = 158, 152


def random_batch(rows=3, length=40, prompt=6, seed=0, end=0):
    """Rows of one sample, whose last `end` tokens are end tokens."""
    tokens = torch.randint(0, 150, (rows, length), generator=torch.Generator().manual_seed(seed))
    tokens[:, length - end :] = END
    labels = tokens.clone()
    labels[:, :prompt] = IGNORE
    return Batch.of(tokens, labels)


def joined(*parts, row=False):
    """Batches one below the other, or (row) all samples in one row."""
    numbers = torch.arange(sum(len(p.tokens) for p in parts)).split([len(p.tokens) for p in parts])
    named = [replace(p, sample=p.sample * 0 + n.unsqueeze(1)) for p, n in zip(parts, numbers)]
    if not row:
        return Batch(**{f.name: torch.cat([getattr(p, f.name) for p in named]) for f in fields(Batch)[:-1]})
    flat = {f.name: torch.cat([getattr(p, f.name).flatten() for p in named])[None] for f in fields(Batch)[:-1]}
    return Batch(**{**flat, "segment": flat["sample"]})


@pytest.fixture(scope="module")
def networks():
    """(student with an adapter, teacher)."""
    student = load_model(GOLDEN / "models" / "dream-tiny-train").model
    with_adapter(student, GOLDEN / "models" / "dream-tiny-train-lora")
    return student, load_model(GOLDEN / "models" / "dream-tiny-train").model


def levels(recipe, batch, noise=Noise(0)):
    """The level of each place, from the weights of a view in which everything is masked, and its block."""
    count, block = recipe.block_count(batch), recipe.blocks(batch)
    first, draw = noise.uniform(1, batch.sample), noise.uniform(2, batch.sample, block)
    return recipe.mask_probability(batch, first, draw, count), block


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"])
def test_masks_noise_losses_and_gradients_are_the_official_ones(case):
    assert check_d2f(GOLDEN, case) == ""


@pytest.mark.parametrize("name", ["code", "paper", "linear"])
def test_levels_never_fall_and_stay_in_their_range(name):
    recipe = D2f(mask_id=MASK, block_size=5, levels=name)
    p, block = levels(recipe, random_batch(rows=300, length=38, prompt=6))
    answer = p[:, 6:]
    low, high = recipe.bounds
    assert (answer.diff(dim=1) >= 0).all()
    assert (answer.diff(dim=1)[:, block[0, 6:].diff() == 0] == 0).all()
    assert low - 1e-6 <= answer.min() and answer.max() <= high + 1e-6
    assert answer.min() < low + 0.02 and answer.max() > high - 0.02


def test_the_coded_levels_rise_as_little_as_recorded_and_the_paper_s_over_the_whole_range():
    batch = random_batch(rows=2000, length=6 + 5 * 16, prompt=6)
    coded, _ = levels(D2f(mask_id=MASK, block_size=16), batch)
    assert coded[:, 6].mean() == pytest.approx(0.45, abs=0.01)
    assert coded[:, -1].mean() == pytest.approx(0.575, abs=0.01)
    stepped, _ = levels(D2f(mask_id=MASK, block_size=16, levels="paper"), batch)
    assert (stepped[:, 6::16].diff(dim=1) > 0).all()
    assert stepped[:, 6].mean() == pytest.approx(0.3 + 0.4 * 0.1, abs=0.005)
    assert stepped[:, -1].mean() == pytest.approx(0.7 - 0.4 * 0.1, abs=0.005)
    even, _ = levels(D2f(mask_id=MASK, block_size=16, levels="linear"), batch)
    torch.testing.assert_close(even[0, 6::16], torch.linspace(0.2, 0.9, 5))


def test_random_levels_fall_as_often_as_they_rise():
    p, _ = levels(D2f(mask_id=MASK, block_size=4, levels="random"), random_batch(rows=500, length=46))
    falls = (p[:, 6::4].diff(dim=1) < 0).float().mean()
    assert falls == pytest.approx(0.5, abs=0.03)
    assert 0.2 <= p.min() < 0.205 and 0.695 < p.max() <= 0.7


def test_tokens_are_masked_with_the_probability_of_their_block_and_weighted_by_its_inverse():
    batch = random_batch(rows=3000, length=26, prompt=6)
    recipe = D2f(mask_id=MASK, block_size=10)
    view = recipe.views(batch, Noise(0))
    masked = view.tokens == MASK
    assert not masked[:, :6].any()
    assert torch.equal(masked, view.targets != IGNORE)
    p, _ = levels(recipe, batch)
    torch.testing.assert_close(view.weights, 1 / p)
    assert masked[:, 6:].float().mean() == pytest.approx(float(p[:, 6:].mean()), abs=0.01)
    # Each token once on average, whatever the level.
    assert (view.weights * masked)[:, 6:].mean() == pytest.approx(1, abs=0.02)


def test_with_token_shift_the_row_before_a_token_bears_its_target_and_weight():
    batch = random_batch()
    plain, shifted = (D2f(mask_id=MASK, block_size=8, shift=s).views(batch, Noise(0)) for s in (False, True))
    assert torch.equal(plain.targets[:, 6:], shifted.targets[:, 5:-1])
    assert (shifted.targets[:, 5] != IGNORE).any()
    wanted = shifted.targets != IGNORE
    assert torch.equal(shifted.weights[wanted], plain.weights[plain.targets != IGNORE])
    assert plain.normalisers == shifted.normalisers == {"loss": int(wanted.sum())}


def test_end_padding_may_stay_visible_and_counts_for_no_block():
    inner = random_batch(rows=40, length=40, end=9)
    inner.tokens[:, 12] = inner.labels[:, 12] = END  # one inside the text is text
    batch = joined(inner, random_batch(rows=1, length=40, seed=3, end=34), row=True)
    recipe = D2f(mask_id=MASK, block_size=8, visible_end=END)
    view = recipe.views(batch, Noise(0))
    rows = view.tokens.view(41, 40)
    assert (rows[:40, 31:] == END).all()
    assert (rows[:40, 12] == MASK).any()
    assert (recipe.block_count(batch).view(41, 40)[:40] == 4).all()  # 25 of 34 answer tokens
    assert torch.equal(rows[40], batch.tokens.view(41, 40)[40])  # nothing but end tokens: nothing to learn
    assert (D2f(mask_id=MASK, block_size=8).block_count(batch) == 5).all()


def test_a_fully_masked_block_hides_what_follows_and_is_learnt_whole():
    batch = random_batch(rows=400, length=38, prompt=6)
    view = D2f(mask_id=MASK, block_size=8, full_last=1.0).views(batch, Noise(0))
    blocks = [range(6 + 8 * b, 6 + 8 * b + 8) for b in range(4)]
    wanted = torch.stack([(view.targets[:, list(b)] != IGNORE).any(1) for b in blocks], 1)
    last = 3 - wanted.flip(1).long().argmax(1)
    assert all((last == b).float().mean() > 0.15 for b in range(4))
    for row, b in enumerate(last.tolist()):
        here = slice(6 + 8 * b, 6 + 8 * b + 8)
        assert torch.equal(view.targets[row, here], batch.tokens[row, here])
        assert (view.tokens[row, here.start :] == MASK).all()
        assert (view.weights[row, here] == 1).all()
        assert b == 0 or (view.weights[row, 6 : here.start] > 1).all()
    assert torch.equal(
        D2f(mask_id=MASK, block_size=8, full_last=0.0).views(batch, Noise(0)).tokens,
        D2f(mask_id=MASK, block_size=8).views(batch, Noise(0)).tokens,
    )


@pytest.mark.parametrize("shift", [False, True])
def test_packed_samples_train_as_in_rows_of_their_own(networks, shift):
    parts = [random_batch(rows=2, length=30, prompt=6), random_batch(rows=1, length=23, prompt=3, seed=1)]
    recipe = D2f(mask_id=MASK, block_size=8, shift=shift, full_last=0.5)
    apart = [recipe.views(p, Noise(4)) for p in (joined(*parts, row=True),)]
    alone, first = [], 0
    for part in parts:
        named = replace(part, sample=part.sample * 0 + torch.arange(first, first + len(part.tokens)).unsqueeze(1))
        alone.append(recipe.views(named, Noise(4)))
        first += len(part.tokens)
    assert torch.equal(apart[0].tokens.flatten(), torch.cat([v.tokens.flatten() for v in alone]))
    student, teacher = networks
    totals = []
    for views in (apart, alone):
        count = sum(v.normalisers["loss"] for v in views)
        totals.append(sum(loss_of(student, recipe, v, teacher).item() * v.normalisers["loss"] for v in views) / count)
    assert totals[0] == pytest.approx(totals[1], rel=1e-5)


def test_levels_of_a_packed_sample_are_those_it_has_alone_to_the_last_bit():
    batch = random_batch(rows=60, length=90)
    recipe = D2f(mask_id=MASK, block_size=3)
    apart, together = levels(recipe, batch)[0], levels(recipe, joined(batch, row=True))[0]
    assert torch.equal(apart.flatten(), together.flatten())


@pytest.mark.parametrize("self_align", [True, False])
def test_the_cut_of_a_step_does_not_change_its_loss(networks, self_align):
    batch = random_batch(rows=8, length=30)
    recipe = D2f(mask_id=MASK, block_size=8, shift=True, self_align=self_align)
    student, teacher = networks
    losses = []
    for size in (8, 4, 1):
        views = []
        for at in range(0, 8, size):
            part = Batch(**{f.name: getattr(batch, f.name)[at : at + size] for f in fields(Batch)[:-1]})
            views.append(Supervised.of(recipe.views(part, Noise(0))))
        terms = [Objective(student, recipe, teacher)(v).sums["loss"] for v in views]
        losses.append(sum(t.item() for t in terms) / sum(v.normalisers["loss"] for v in views))
    assert losses[1:] == [pytest.approx(losses[0], rel=1e-5)] * 2


def test_a_student_that_sees_and_is_what_the_teacher_is_has_nothing_to_learn():
    """One block and no prompt of its own: the two masks agree, so the gradient of the forward KL is 0."""
    network = load_model(GOLDEN / "models" / "llada-tiny-train").model
    teacher = load_model(GOLDEN / "models" / "llada-tiny-train").model
    batch = random_batch(prompt=0)
    recipe = D2f(mask_id=MASK, block_size=64)
    loss_of(network, recipe, recipe.views(batch, Noise(0)), teacher).backward()
    assert max(float(p.grad.abs().max()) for p in network.parameters() if p.grad is not None) < 1e-5
    network.zero_grad()
    narrow = replace(recipe, block_size=8)
    loss_of(network, narrow, narrow.views(batch, Noise(0)), teacher).backward()
    assert max(float(p.grad.abs().max()) for p in network.parameters() if p.grad is not None) > 1e-2


@pytest.mark.parametrize("name", ["llada-tiny-train", "dream-tiny-train"])
def test_the_student_sees_what_the_pipelined_cached_decoder_sees(name):
    """Prompt cached as block 0, several blocks in flight, permanent ones read from the cache."""
    lm, size = tiny(name), 6
    options = {"block_size": size, "threshold": 0.5, "add_threshold": 0.1, "activate_threshold": 0.6}
    method = build("d2f", {**options, "early_exit": False})
    prompts = [[5, 80, 33, 7, 140, 61, 9], [90, 12, 44]]
    run = moments(lm, method, prompts, 24)
    flight = [int((s.blocks - s.cached).max()) for s, _, _ in run]
    reads = [int(f.visible.max()) for _, f, _ in run]
    assert max(flight) == 4 and max(reads) == 7 + 3 * size
    recipe = D2f(mask_id=lm.facts.mask_id, block_size=size, shift=bool(lm.family.shift))

    def view_of(batch, masked):
        return recipe.views_of(batch, masked, torch.full(batch.tokens.shape, 0.5))

    count, difference = greatest_difference(lm, run, view_of)
    assert count > 200 and difference < 1e-4


def test_the_decoder_named_by_the_recipe_is_known_and_options_are_checked():
    recipe = make_recipe({"name": "d2f", "block_size": 8}, mask_id=3)
    options = dict(recipe.decoder)
    assert build(options.pop("method"), options).block_size == 8
    assert recipe.wants_teacher and recipe.anchored and recipe.block == 8
    assert not make_recipe({"name": "d2f", "self_align": False}, mask_id=3).wants_teacher
    for wrong, message in [
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
        ({"levels": "papers"}, "did you mean 'paper'"),
        ({"low": 0.0}, "0 < low <= high <= 1, got low 0.0, high 0.7"),
        ({"low": 0.9, "high": 0.8}, "got low 0.9, high 0.8"),
        ({"full_last": 2}, "full_last must be between 0 and 1, got 2"),
    ]:
        with pytest.raises(UnmaskError, match=message):
            make_recipe({"name": "d2f", **wrong}, mask_id=3)


@pytest.mark.slow
def test_a_masked_base_learns_to_be_decoded_in_a_pipeline_of_blocks(tmp_path):
    """A base that answers right only when it sees the whole canvas, a token a forward, and not block after block."""
    data, decoder = doubling.answers(tmp_path / "answers.jsonl"), {"method": "d2f", "block_size": 8}
    base = doubling.train(tmp_path / "base", {"name": "masked"}, data, steps=300, learning_rate=3e-3)
    right, tokens_per_forward = doubling.score(base, method="masked")
    assert right > 0.9 and tokens_per_forward < 1
    assert doubling.score(base, **decoder)[0] < 0.6
    changes = {"init": str(tmp_path / "base" / "run"), "steps": 200, "learning_rate": 2e-3}
    lm = doubling.train(tmp_path / "d2f", {"name": "d2f", "block_size": 8}, data, **changes)
    now, tokens_per_forward = doubling.score(lm, **decoder)
    assert now >= right - 0.03 and tokens_per_forward > 4
