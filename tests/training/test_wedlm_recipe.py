"""WeDLM: masks drawn, the two streams, weights, and training equal to decoding. The official losses and gradients are
replayed by tests/test_conform.py."""

import counting
import pytest
import torch
import torch.nn.functional as F
from sample_rows import gradients, packed, row_logits, sample, stacked, step_loss
from seen_when_decoding import moments

from random_models import MASK, random_lm
from unmask.attention.dense import DenseAttention
from unmask.decoding import build
from unmask.decoding.wedlm import WindowState
from unmask.errors import UnmaskError
from unmask.layout import causal, visible
from unmask.training.noise import Noise
from unmask.training.objective import Objective
from unmask.training.recipes import make_recipe
from unmask.training.recipes.autoregressive import Autoregressive
from unmask.training.recipes.base import IGNORE, Batch, Supervised
from unmask.training.recipes.wedlm import WeDlm

ONE = sample([5, 11, 3], [9, 1, 14, 7, 20, 2, 5, 8, 0, 17, 6], 4)  # blocks of 4: 4, 4, 4, 2 tokens
SHORT = sample([8, 2], [1, 1, 9, 4], 7)
LONG = sample([17], [4, 13, 12, 0, 2, 6, 10, 1, 1, 18, 3, 3], 9)


@pytest.fixture(scope="module")
def network():
    return random_lm(3, "wedlm").model


def recipe_of(**options):
    return WeDlm(**{"mask_id": MASK, "block_size": 4, **options})


def places(*numbers, length=14):
    return torch.isin(torch.arange(length), torch.tensor(numbers))[None]


def test_known_tokens_stand_before_masks_in_each_block_at_their_own_positions():
    masked = places(3, 4, 6, 12)
    view = recipe_of().views_of(ONE, masked, torch.full((1, 14), 0.5))
    order = [0, 1, 2, 3, 5, 7, 4, 6, 8, 9, 10, 11, 13, 12]
    assert view.layout.positions[0].tolist() == [*range(14), *order]
    assert view.tokens[0, :14].tolist() == ONE.tokens[0].tolist()
    expected = [MASK if p in (3, 4, 6, 12) else int(ONE.tokens[0, p]) for p in order]
    assert view.tokens[0, 14:].tolist() == expected
    learnt = [int(ONE.tokens[0, p]) if p in (3, 4, 6, 12) else IGNORE for p in order]
    assert view.targets[0, 14:].tolist() == learnt
    assert view.targets[0, :14].tolist() == [IGNORE, IGNORE, *ONE.tokens[0, 3:].tolist(), IGNORE]


def test_the_streams_of_two_blocks_of_two_are_the_matrix_of_the_paper():
    view = recipe_of(block_size=2).views_of(sample([1], [2, 3, 4]), places(1, 3, length=4), torch.full((1, 4), 0.5))
    rows = ["10000000", "11000000", "11100000", "11110000", "00001000", "00001100", "11000010", "11000011"]
    assert visible(view.layout, view.layout)[0].int().tolist() == [[int(c) for c in row] for row in rows]


def test_each_block_masks_exactly_the_rounded_share_of_its_answer_tokens():
    recipe, batch = recipe_of(), stacked([packed([ONE, LONG], 32) for _ in range(50)])
    batch.sample.add_(torch.arange(50)[:, None] * 100)
    noise = Noise(1)
    ratio = recipe.ratios(batch, noise)
    masked = recipe.masks(batch, noise, ratio)
    assert not masked[batch.labels == IGNORE].any()
    blocks = [(0, 4), (4, 8), (8, 12), (12, 14), (14, 18), (18, 22), (22, 26), (26, 27)]
    for first, stop in blocks:
        part = ratio[:, first:stop]
        assert (part == part[:, :1]).all()
        count = (batch.labels[:, first:stop] != IGNORE).sum(1)
        assert torch.equal(masked[:, first:stop].sum(1), (part[:, 0] * count).round().long())
    drawn = ratio[:, [0, 4, 8, 12, 14, 18, 22, 26]]
    assert len(drawn.unique()) == drawn.numel()
    assert float(drawn.min()) < 0.02 and float(drawn.max()) > 0.98
    once = recipe_of(per_block=False).ratios(batch, noise)
    assert (once[:, :14] == once[:, :1]).all() and (once[:, 14:27] == once[:, 14:15]).all()
    assert len(once[:, [0, 14]].unique()) == 100


def test_all_choices_of_masks_are_alike():
    index = torch.arange(6000)[:, None]
    batch = Batch.of(torch.zeros(6000, 4, dtype=torch.long), torch.zeros(6000, 4, dtype=torch.long))
    batch = Batch(
        batch.tokens, batch.labels, batch.segment, batch.positions, index.expand(-1, 4), *([batch.prompt] * 2)
    )
    masked = recipe_of().masks(batch, Noise(2), torch.full((6000, 4), 0.5))
    assert (masked.sum(1) == 2).all()
    number = (masked * torch.tensor([1, 2, 4, 8])).sum(1)
    counts = torch.bincount(number)[[3, 5, 6, 9, 10, 12]]
    assert int(counts.sum()) == 6000
    assert float(((counts - 1000.0) ** 2 / 1000).sum()) < 20  # chi-square with 5 degrees: 99.9 % lie below


def test_noise_of_a_sample_does_not_depend_on_the_row_around_it():
    recipe = recipe_of()
    alone = recipe.views(LONG, Noise(5, 2))
    together = recipe.views(packed([ONE, SHORT, LONG], 48), Noise(5, 2))
    assert torch.equal(together.tokens[0, 48 + 20 : 48 + 33], alone.tokens[0, 13:])
    assert not torch.equal(alone.tokens, recipe.views(LONG, Noise(5, 3)).tokens)


def test_weights_are_the_inverse_ratio_over_their_sum_or_over_the_answer_or_one():
    ratio = torch.tensor([[0.5] * 4 + [0.25] * 4 + [0.8] * 4 + [0.1] * 2])
    masked = places(3, 4, 8, 9)
    inverse, sums = [2.0, 4.0, 1.25, 1.25], {"normalised": 8.5, "paper": 11.0, "uniform": 4.0}
    for weight, total in sums.items():
        view = recipe_of(weight=weight).views_of(ONE, masked, ratio)
        batch = Supervised.of(view)
        of_masks = batch.weights[batch.index >= 14]
        assert of_masks.tolist() == ([1.0] * 4 if weight == "uniform" else inverse)
        assert view.normalisers == {"mask": pytest.approx(total), "ar": 11}


def test_the_loss_weighs_masks_and_next_tokens(network):
    masked, ratio = places(3, 4, 8, 9), torch.tensor([[0.5] * 4 + [0.25] * 10])
    recipe = recipe_of(ar_weight=0.5)
    view = recipe.views_of(ONE, masked, ratio)
    batch = Supervised.of(view)
    losses = F.cross_entropy(row_logits(network, view)[0][batch.index], batch.targets, reduction="none")
    mask = (losses[11:] * torch.tensor([2.0, 4.0, 4.0, 4.0])).sum() / 14
    by_hand = (mask + 0.5 * losses[:11].mean()) / 1.5
    assert step_loss(network, recipe, [view]).item() == pytest.approx(by_hand.item(), rel=1e-5)
    right = row_logits(network, view)[0].argmax(-1)[batch.index] == batch.targets
    assert torch.equal(Objective(network, recipe)(batch).right, right)
    alone = recipe_of(ar_weight=0.0)
    view = alone.views_of(ONE, masked, ratio)
    assert (view.targets[:, :14] == IGNORE).all()
    assert step_loss(network, alone, [view]).item() == pytest.approx(mask.item(), rel=1e-5)


def test_a_ratio_near_nothing_leaves_the_next_token_loss(network):
    recipe = recipe_of()
    view = recipe.views_of(ONE, recipe.masks(ONE, Noise(0), torch.full((1, 14), 1e-8)), torch.full((1, 14), 1e-8))
    plain = step_loss(network, Autoregressive(), [Autoregressive().views(ONE, Noise(0))])
    assert step_loss(network, recipe, [view]).item() == pytest.approx(plain.item() / 2, rel=1e-5)


def test_blocks_of_one_all_masked_predict_each_token_from_the_clean_text_before_it(network):
    recipe = recipe_of(block_size=1, ar_weight=0.0)
    ratio = torch.ones(1, 14)
    masked = recipe.masks(ONE, Noise(0), ratio)
    assert torch.equal(masked, ONE.labels != IGNORE)
    losses = []
    for place in range(3, 14):
        row = torch.cat([ONE.tokens[:, :place], torch.tensor([[MASK]])], dim=1)
        logits = network(row, ONE.positions[:, : place + 1], DenseAttention(causal(place + 1)))
        losses.append(F.cross_entropy(logits[:, -1], ONE.tokens[:, place]))
    loss = step_loss(network, recipe, [recipe.views_of(ONE, masked, ratio)])
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_packed_samples_train_as_alone_and_no_cut_of_a_step_matters(network):
    recipe, parts = recipe_of(), [ONE, SHORT, LONG]
    together = step_loss(network, recipe, [recipe.views(packed(parts, 48), Noise(0))])
    alone = step_loss(network, recipe, [recipe.views(b, Noise(0)) for b in parts])
    rows = [packed([b], 16) for b in parts]
    whole = step_loss(network, recipe, [recipe.views(stacked(rows), Noise(0))])
    cut = step_loss(network, recipe, [recipe.views(stacked(r), Noise(0)) for r in (rows[:2], rows[2:])])
    for other in (alone, whole, cut):
        assert other.item() == pytest.approx(together.item(), rel=1e-5)
    torch.testing.assert_close(gradients(network, cut), gradients(network, together), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{"window_size": 4}, {"window_size": 5, "schedule": "block"}])
def test_training_rows_give_the_logits_of_cached_decoding(options):
    """Each forward of a real run beside the row that trains on its state: the text before the window in the memory
    stream, the window as a block. Blocks count from the row's start, so one as long as that text makes the window the
    second block."""
    lm, prompt = random_lm(6, "wedlm"), [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    run = moments(lm, build("wedlm", {"entropy_threshold": 1.2, **options}), [prompt], 14)
    compared, behind_gap = 0, 0
    for state, forward, logits in run:
        assert isinstance(state, WindowState)
        start = int(state.start[0])
        stop = int(forward.layout.positions[0][forward.valid[0]].max()) + 1
        assert stop <= 2 * start
        batch = sample(state.canvas[0, :start].tolist(), state.canvas[0, start:stop].tolist())
        masked = state.open[:, :stop]
        view = recipe_of(block_size=start).views_of(batch, masked, torch.full(masked.shape, 0.5))
        trained = row_logits(lm.model, view)[0, stop:]
        row_of = {p: i for i, p in enumerate(view.layout.positions[0, stop:].tolist())}
        for column, target in enumerate(forward.targets[0].tolist()):
            if target >= 0:
                torch.testing.assert_close(trained[row_of[target]], logits[0, column], atol=1e-4, rtol=1e-4)
                compared += 1
                behind_gap += bool((~masked[0, target:]).any())
    assert compared > 30 and behind_gap > 5


def test_memory_rows_give_the_logits_of_plain_causal_decoding(network):
    view = recipe_of().views(ONE, Noise(0))
    plain = network(ONE.tokens, ONE.positions, DenseAttention(causal(14)))
    torch.testing.assert_close(row_logits(network, view)[:, :14], plain, atol=1e-4, rtol=1e-4)


def test_mistakes_are_refused():
    with pytest.raises(UnmaskError, match="block_size must be at least 1, got 0"):
        make_recipe({"name": "wedlm", "block_size": 0}, mask_id=1)
    with pytest.raises(UnmaskError, match="ar_weight must be at least 0"):
        make_recipe({"name": "wedlm", "ar_weight": -1.0}, mask_id=1)
    with pytest.raises(UnmaskError, match="did you mean 'uniform'"):
        make_recipe({"name": "wedlm", "weight": "uniformly"}, mask_id=1)


@pytest.mark.slow
def test_an_autoregressive_base_learns_to_fill_several_masks_a_forward(tmp_path):
    """From nothing: an autoregressive base and its conversion. With `verify`, whose text is that of autoregressive
    decoding, the trained weights take three tokens a forward where the base takes one."""
    asked, start = counting.prompts(10_000, 40), tmp_path / "base"
    answers, options = counting.answers(tmp_path / "answers.jsonl"), {"extra_ends": 7}
    counting.train(start, {"name": "autoregressive"}, answers, steps=100, **options)
    options |= {"init": str(start / "run")}
    recipe = {"name": "wedlm", "block_size": 16}
    base = counting.train(tmp_path / "same", recipe, answers, steps=1, learning_rate=0.0, **options)
    lm = counting.train(tmp_path / "filling", recipe, answers, steps=300, mask_init="mean", **options)
    found = {}
    for name, model in {"base": base, "lm": lm}.items():
        decoder = {**make_recipe(recipe, mask_id=counting.MASK).decoder, "window_size": 8}
        found[name] = [
            counting.speed(model, asked, **decoder, **more) for more in ({"entropy_threshold": 0.1}, {"verify": True})
        ]
        assert found[name][1][0] == counting.speed(model, asked, method="autoregressive")[0]
    (_, base_speed), (_, base_verified) = found["base"]
    (ids, tokens_per_forward), (_, verified) = found["lm"]
    assert base_speed < 1.2 and base_verified < 1.2
    assert tokens_per_forward > 1.6 and verified > 3
    assert sum(a == counting.answer(p) for a, p in zip(ids, asked)) >= 34
