"""Recipes: the official losses and gradients, complementary views, and training equal to decoding."""

import json
from dataclasses import fields, replace
from pathlib import Path

import counting
import pytest
import torch

from unmask.attention.dense import DenseAttention
from unmask.errors import UnmaskError
from unmask.layout import block_causal, doubled, visible
from unmask.models.checkpoint import load_model
from unmask.training.noise import Noise
from unmask.training.recipes import make_recipe
from unmask.training.recipes.autoregressive import Autoregressive
from unmask.training.recipes.base import IGNORE, Batch
from unmask.training.recipes.fast_dllm_v2 import FastDllmV2
from vectors_training import check_fast_dllm_v2, loss_of

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = [json.loads(x) for x in (GOLDEN / "fast-dllm-v2-training-block.jsonl").read_text().splitlines()]


def random_batch(rows=3, length=64, prompt=10, seed=0):
    tokens = torch.randint(0, 180, (rows, length), generator=torch.Generator().manual_seed(seed))
    labels = tokens.clone()
    labels[:, :prompt] = IGNORE
    return Batch.of(tokens, labels)


@pytest.fixture(scope="module")
def network():
    return load_model(GOLDEN / "models" / "fast-dllm-v2-tiny", mask_token_id=190).model


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"])
def test_fast_dllm_v2_equals_the_official_training_forward(case):
    assert check_fast_dllm_v2(GOLDEN, case) == ""


def test_the_two_views_mask_disjoint_parts_of_the_answer_and_together_all_of_it():
    batch = random_batch()
    view = FastDllmV2(mask_id=190, block_size=16).views(batch, Noise(0))
    first, second = (part[:, :64] == 190 for part in view.tokens.chunk(2))
    assert not (first & second).any()
    assert torch.equal(first | second, batch.labels != IGNORE)
    assert 0 < first.sum() < (batch.labels != IGNORE).sum()
    assert torch.equal(view.tokens[:, 64:], batch.tokens.repeat(2, 1))


def test_each_answer_token_is_one_target_of_the_row_before_it():
    batch = random_batch()
    view = FastDllmV2(mask_id=190, block_size=16).views(batch, Noise(0))
    targets = view.targets[:, :64]
    assert view.normalisers["loss"] == int((batch.labels != IGNORE).sum())
    merged = torch.maximum(*targets.chunk(2))
    assert torch.equal(merged[:, 9:63], batch.tokens[:, 10:])
    assert (merged[:, :9] == IGNORE).all()
    assert (view.targets[:, 64:] == IGNORE).all()


def test_noise_of_a_sample_does_not_depend_on_the_batch_around_it():
    batch, recipe = random_batch(rows=4), FastDllmV2(mask_id=190, block_size=16)
    both = recipe.views(batch, Noise(5, 2))
    tail = Batch(**{f.name: getattr(batch, f.name)[2:] for f in fields(Batch) if f.name != "drafts"})
    alone = recipe.views(tail, Noise(5, 2))
    assert torch.equal(both.tokens[2:4], alone.tokens[:2])
    assert not torch.equal(alone.tokens, recipe.views(tail, Noise(5, 3)).tokens)


def test_one_mask_probability_for_each_block_between_eps_and_one():
    batch = random_batch(rows=200, length=64)
    p = FastDllmV2(mask_id=190, block_size=16, eps=0.1).mask_probability(batch, Noise(0))
    assert (p.unflatten(1, (4, 16)) == p[:, ::16].unsqueeze(-1)).all()
    assert 0.1 <= float(p.min()) < 0.12 and 0.98 < float(p.max()) <= 1
    assert float(p.mean()) == pytest.approx(0.55, abs=0.03)


def test_uniform_numbers_are_uniform_and_uncorrelated():
    u = Noise(1).uniform(0, torch.arange(1000).unsqueeze(1), torch.arange(100))
    assert float(u.min()) >= 0 and float(u.max()) < 1
    assert float(u.mean()) == pytest.approx(0.5, abs=0.005)
    assert float(u.var()) == pytest.approx(1 / 12, abs=0.002)
    assert abs(float(((u[:, 1:] - 0.5) * (u[:, :-1] - 0.5)).mean())) < 0.002
    assert not torch.equal(u, Noise(2).uniform(0, torch.arange(1000).unsqueeze(1), torch.arange(100)))


def test_the_doubled_row_of_two_blocks_of_two_is_the_matrix_of_the_paper():
    layout = doubled(4, 2)
    rows = ["11000000"] * 2 + ["00111100"] * 2 + ["00001100"] * 2 + ["00001111"] * 2
    assert visible(layout, layout).int().tolist() == [[int(c) for c in row] for row in rows]


@pytest.mark.parametrize("weight", ["one", "inverse"])
def test_weights_are_one_or_the_inverse_mask_rate_of_the_target(weight):
    batch, noise = random_batch(), Noise(3)
    recipe = FastDllmV2(mask_id=190, block_size=16, weight=weight)
    view, p = recipe.views(batch, noise), recipe.mask_probability(batch, noise)
    row, column = (view.targets[:3, :64] != IGNORE).nonzero().unbind(1)
    expected = torch.ones(len(row)) if weight == "one" else 1 / (2 * p[row, column + 1])
    torch.testing.assert_close(view.weights[row, column], expected)


def test_clean_rows_predict_only_the_first_token_of_the_next_block():
    batch = random_batch()
    view = FastDllmV2(mask_id=190, block_size=16, clean_weight=0.5).views(batch, Noise(0))
    clean = view.targets[:, 64:]
    assert (clean[3:] == IGNORE).all()
    assert torch.equal(clean[:3, 15:63:16], batch.tokens[:, 16::16])
    assert int((clean != IGNORE).sum()) == 3 * 3
    assert (view.weights[:, 64:] == 0.5).all()
    assert view.normalisers["loss"] == int((view.targets[:, :64] != IGNORE).sum())


def test_noisy_blocks_give_the_logits_of_decoding_against_the_clean_prefix(network):
    """Training equals inference: block 2 of the doubled row == the same noisy block behind two clean blocks."""
    batch = random_batch(rows=1)
    view = FastDllmV2(mask_id=190, block_size=16).views(batch, Noise(0))
    with torch.no_grad():
        trained = network.hidden(view.tokens, view.layout.positions, DenseAttention(view.layout))
        for block in range(4):
            end = 16 * (block + 1)
            window = batch.tokens[:, :end].clone()
            window[:, end - 16 :] = view.tokens[:1, end - 16 : end]
            index = torch.arange(end).unsqueeze(0)
            decoded = network.hidden(window, index, DenseAttention(block_causal(end, 16)))
            torch.testing.assert_close(trained[:1, end - 16 : end], decoded[:, -16:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("recipe", [FastDllmV2(mask_id=190, block_size=16, clean_weight=1.0), Autoregressive()])
def test_packed_samples_train_as_in_rows_of_their_own(network, recipe):
    whole = random_batch(rows=2, length=32)
    sample = torch.tensor([[7], [9]]).expand(2, 32)
    apart = replace(whole, sample=sample)
    joined = Batch(
        *(x.reshape(1, 64) for x in (whole.tokens, whole.labels)),
        segment=torch.tensor([[0] * 32 + [1] * 32]),
        positions=whole.positions.reshape(1, 64),
        sample=sample.reshape(1, 64),
        prompt=whole.prompt.reshape(1, 64),
        answer=whole.answer.reshape(1, 64),
    )
    losses = []
    for batch in (apart, joined):
        view = recipe.views(batch, Noise(0))
        losses.append(loss_of(network, recipe, view).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_autoregressive_targets_are_the_next_answer_tokens():
    batch = random_batch()
    view = Autoregressive().views(batch, Noise(0))
    assert torch.equal(view.targets[:, 9:63], batch.tokens[:, 10:])
    assert (view.targets[:, :9] == IGNORE).all() and (view.targets[:, 63] == IGNORE).all()
    with_prompt = Autoregressive(prompt_weight=0.1).views(batch, Noise(0))
    assert torch.equal(with_prompt.targets[:, :63], batch.tokens[:, 1:])
    assert with_prompt.weights[0, 8] == pytest.approx(0.1) and with_prompt.weights[0, 9] == 1
    assert with_prompt.normalisers == view.normalisers


def test_unknown_recipes_and_options_are_refused_with_the_nearest_name():
    with pytest.raises(UnmaskError, match="did you mean 'fast_dllm_v2'"):
        make_recipe({"name": "fast_dlm_v2"}, mask_id=1)
    with pytest.raises(UnmaskError, match="did you mean 'block_size'"):
        make_recipe({"name": "fast_dllm_v2", "blocksize": 8}, mask_id=1)
    with pytest.raises(UnmaskError, match="needs the option 'mask_id'"):
        make_recipe({"name": "fast_dllm_v2"})
    with pytest.raises(UnmaskError, match="unknown weight"):
        make_recipe({"name": "fast_dllm_v2", "weight": "none"}, mask_id=1)


@pytest.mark.slow
def test_an_autoregressive_base_becomes_a_fast_block_diffusion_model(tmp_path):
    """From nothing, by two recipes: the base answers a token a forward, and after its conversion several."""
    asked, answers = counting.prompts(10_000, 40), counting.answers(tmp_path / "answers.jsonl")
    base = counting.train(tmp_path / "base", {"name": "autoregressive"}, answers, steps=100)
    options = {"init": str(tmp_path / "base" / "run"), "mask_init": "mean", "fill_end": True}
    recipe = {"name": "fast_dllm_v2", "block_size": 8, "clean_weight": 1.0}
    lm = counting.train(tmp_path / "blocks", recipe, answers, steps=300, **options)
    found = {
        "base": counting.speed(base, asked, method="autoregressive"),
        "blocks": counting.speed(lm, asked, threshold=0.9, **make_recipe(recipe, mask_id=counting.MASK).decoder),
    }
    right = {name: sum(a == counting.answer(p) for a, p in zip(ids, asked)) for name, (ids, _) in found.items()}
    assert right["base"] == 40 and found["base"][1] < 1.1
    assert right["blocks"] >= 38 and found["blocks"][1] > 3
