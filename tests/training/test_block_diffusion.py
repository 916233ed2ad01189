"""Block diffusion: BD3-LM's and SDAR's official records, the law of times and masks, limits, training equal to
decoding."""

import json
from dataclasses import asdict, fields, replace
from math import inf
from pathlib import Path

import pytest
import torch
from decoder_logits import greatest_difference
from echo_task import train
from sample_rows import packed, row_logits, sample, step_loss
from seen_when_decoding import moments

from checkpoints import tiny
from unmask.attention.dense import DenseAttention
from unmask.decoding import build
from unmask.errors import UnmaskError
from unmask.layout import block_causal
from unmask.training.noise import Noise
from unmask.training.objective import Objective
from unmask.training.recipes import make_recipe
from unmask.training.recipes.base import IGNORE, Batch, Supervised
from unmask.training.recipes.block_diffusion import BlockDiffusion
from unmask.training.recipes.fast_dllm_v2 import FastDllmV2
from unmask.training.recipes.mdlm import Mdlm
from unmask.training.times import StepNoise
from vectors_block_diffusion import check_bd3lm, check_sdar

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = [
    (check, json.loads(line))
    for name, check in (("training-bd3lm", check_bd3lm), ("sdar-training-block", check_sdar))
    for line in (GOLDEN / f"{name}.jsonl").read_text().splitlines()
]
MASK = 160
SDAR = {"level": "sample", "subs": False, "ignore_bos": False, "low_discrepancy": False}
PROMPTS = [[5, 80, 33, 7, 140, 61, 9], [90, 12, 44]]


def random_batch(rows, length=32, prompt=8, seed=0):
    tokens = torch.randint(0, 150, (rows, length), generator=torch.Generator().manual_seed(seed))
    labels = tokens.clone()
    labels[:, :prompt] = IGNORE
    return Batch.of(tokens, labels)


def cut(batch, size):
    names = [f.name for f in fields(Batch) if f.name != "drafts"]
    return [Batch(**{n: getattr(batch, n)[at : at + size] for n in names}) for at in range(0, len(batch.tokens), size)]


@pytest.mark.parametrize(("check", "case"), CASES, ids=lambda x: x["id"] if isinstance(x, dict) else "")
def test_masks_times_losses_and_gradients_are_the_official_ones(check, case):
    assert check(GOLDEN, case) == ""


@pytest.mark.parametrize("level", ["block", "sample"])
def test_each_block_or_sample_has_a_time_with_which_its_answer_is_masked(level):
    batch = random_batch(3000)
    recipe = BlockDiffusion(mask_id=MASK, level=level, eps_min=0.2, eps_max=0.6, resample=False)
    view, t = recipe.views(batch, Noise(0)), recipe.times(batch, Noise(0))
    masked = view.tokens[:, :32] == MASK
    assert not masked[:, :8].any() and (view.tokens[:, 32:] == batch.tokens).all()
    blocks = t.unflatten(1, (8, 4)) if level == "block" else t.unsqueeze(1)
    torch.testing.assert_close(blocks, blocks[..., :1].expand_as(blocks))
    assert 0.2 <= t.min() < 0.201 and 0.599 < t.max() <= 0.6
    torch.testing.assert_close(view.weights[:, :32], 1 / t)
    # The mean in every place, not only over all: low discrepancy must not tie a place to a level.
    assert (t.mean(0) - 0.4).abs().max() < 0.01
    for low in (0.2, 0.3, 0.4, 0.5):
        here = (t >= low) & (t < low + 0.1)
        here[:, :8] = False
        assert masked[here].float().mean() == pytest.approx(low + 0.05, abs=0.01)
    assert view.normalisers == {"loss": 3000 * 24}


def test_times_are_spread_over_the_samples_of_a_step_however_it_is_cut():
    batch, recipe = random_batch(50), BlockDiffusion(mask_id=MASK, eps_min=1e-6)
    noise = StepNoise(3, 1, tuple(range(50)))
    t = recipe.times(batch, noise)
    for size in (8, 1):
        assert torch.equal(torch.cat([recipe.times(part, noise) for part in cut(batch, size)]), t)
    shuffled = StepNoise(3, 1, tuple(reversed(range(50))))
    assert torch.equal(recipe.times(batch, shuffled), t)
    for place in range(0, 32, 4):  # each block's times: one in each of fifty parts, turned by the same angle
        gaps = t[:, place].sort().values.diff()
        assert gaps.max() < 2 / 50 + 1e-6
    assert recipe.times(batch, Noise(3, 1))[:, 0].sort().values.diff().max() > 3 / 50
    # The blocks of one sample leave no gap either, known step or not.
    for noise in (StepNoise(3, 1, tuple(range(50))), Noise(3, 1)):
        ordered = recipe.times(batch, noise)[:, ::4].sort(1).values
        assert ordered.diff(dim=1).max() < 0.25 and ordered[:, 0].max() < 0.25 and ordered[:, -1].min() > 0.75
    assert not torch.equal(recipe.times(batch, StepNoise(3, 2, tuple(range(50)))), t)
    # No sample and no block has a part of its own.
    many = torch.stack([recipe.times(batch, StepNoise(s, 0, tuple(range(50)))) for s in range(200)])
    assert (many.mean(0) - 0.5).abs().max() < 0.1  # 0.02 by chance
    assert many.flatten().histc(10, 0, 1).std() < 0.01 * many.numel() / 10


def test_without_low_discrepancy_times_are_independent():
    recipe = BlockDiffusion(mask_id=MASK, low_discrepancy=False)
    t = recipe.times(random_batch(4000), Noise(0))[:, ::4] - 0.5
    assert abs(float((t[:, 1:] * t[:, :-1]).mean())) < 0.002
    assert abs(float((t[1:] * t[:-1]).mean())) < 0.002


def test_masks_are_drawn_again_until_their_share_is_inside_the_range():
    batch = random_batch(1000, prompt=0)
    recipe = BlockDiffusion(mask_id=MASK, eps_min=0.45, eps_max=0.95, ignore_bos=False)
    share = (recipe.views(batch, Noise(0)).tokens[:, :32] == MASK).unflatten(1, (8, 4)).float().mean(-1)
    assert share.min() == 0.5 and share.max() == 0.75
    free = (replace(recipe, resample=False).views(batch, Noise(0)).tokens[:, :32] == MASK).unflatten(1, (8, 4))
    drawn = free.float().mean(-1)
    assert drawn.min() == 0 and drawn.max() == 1
    inside = (drawn >= 0.45) & (drawn <= 0.95)
    assert torch.equal(drawn[inside], share[inside])  # only what has to be is drawn again
    # A bound at its default asks for nothing.
    low = BlockDiffusion(mask_id=MASK, eps_max=0.5, ignore_bos=False).views(batch, Noise(0)).tokens[:, :32] == MASK
    shares = low.unflatten(1, (8, 4)).float().mean(-1)
    assert shares.min() == 0 and shares.max() == 0.5
    with pytest.raises(UnmaskError, match=r"no number of masks in 4 tokens has a share from 0\.3 to 0\.45"):
        BlockDiffusion(mask_id=MASK, eps_min=0.3, eps_max=0.45)


def test_a_narrow_range_above_one_half_has_flat_weights_unless_asked_for():
    t = torch.tensor([0.6, 0.9])
    assert BlockDiffusion(mask_id=MASK, eps_min=0.6).weights(t).tolist() == [1, 1]
    torch.testing.assert_close(BlockDiffusion(mask_id=MASK, eps_min=0.6, weight="inverse").weights(t), 1 / t)
    torch.testing.assert_close(BlockDiffusion(mask_id=MASK, eps_min=0.5).weights(t), 1 / t)
    assert BlockDiffusion(mask_id=MASK, weight="one").weights(t).tolist() == [1, 1]


def test_first_tokens_stay_visible_yet_count():
    batch = random_batch(200, prompt=0)
    kept, free = (BlockDiffusion(mask_id=MASK, ignore_bos=b).views(batch, Noise(0)) for b in (True, False))
    assert not (kept.tokens[:, 0] == MASK).any() and (free.tokens[:, 0] == MASK).any()
    assert torch.equal(kept.tokens[:, 1:], free.tokens[:, 1:])
    assert kept.normalisers == free.normalisers == {"loss": 200 * 32}


def test_subs_takes_the_mask_out_of_the_softmax():
    """With SUBS no change of the mask's own logit changes the loss; without it the loss is larger."""
    network, batch = tiny("bd3lm-dit-tiny").model, random_batch(2, 16, 4)
    losses, gradients = {}, {}
    for subs in (True, False):
        recipe = BlockDiffusion(mask_id=MASK, subs=subs)
        loss = step_loss(network, recipe, [recipe.views(batch, Noise(0))])
        (gradient,) = torch.autograd.grad(loss, [network.get_parameter("output_layer.linear.bias")])
        losses[subs], gradients[subs] = loss.item(), float(gradient[MASK])
    assert gradients[True] == 0 and gradients[False] > 0
    assert losses[True] < losses[False]


def test_complementary_views_mask_every_answer_token_once_at_rates_that_add_up_to_one():
    batch = random_batch(300)
    recipe = BlockDiffusion(mask_id=MASK, complementary=True)
    view, t = recipe.views(batch, Noise(0)), recipe.times(batch, Noise(0))
    first, second = (part[:, :32] == MASK for part in view.tokens.chunk(2))
    assert not (first & second).any()
    assert torch.equal(first | second, batch.labels != IGNORE)
    assert torch.equal(first, BlockDiffusion(mask_id=MASK).views(batch, Noise(0)).tokens[:, :32] == MASK)
    ours = view.weights[:, :32].chunk(2)
    torch.testing.assert_close(ours[0], 0.5 / t)
    torch.testing.assert_close(ours[1], 0.5 / (1 - t).clamp_min(1e-3))
    assert view.normalisers == {"loss": 300 * 24}
    # Both halves estimate the same bound, so the weights of a token are 1 on average.
    total = ((ours[0] * first) + (ours[1] * second))[:, 8:]
    assert total.mean() == pytest.approx(1, abs=0.05)


def test_it_becomes_fast_dllm_v2_with_its_options():
    batch, t = random_batch(4), torch.full((4, 32), 0.3)
    drawn = torch.rand(4, 32, generator=torch.Generator().manual_seed(1)) < 0.5
    recipe = BlockDiffusion(
        mask_id=MASK, block_size=8, shift=True, complementary=True, weight="one", ignore_bos=False, subs=False
    )
    ours = recipe.views_of(batch, drawn & recipe.maskable(batch), t)
    theirs = FastDllmV2(mask_id=MASK, block_size=8).views_of(batch, drawn, t)
    assert torch.equal(ours.tokens, theirs.tokens) and torch.equal(ours.targets, theirs.targets)
    assert torch.equal(ours.layout.order, theirs.layout.order) and torch.equal(ours.layout.lane, theirs.layout.lane)
    # Two views: each counts half, over the number of tokens; there the sum over both.
    assert ours.normalisers == theirs.normalisers
    at = ours.targets != IGNORE
    assert torch.equal(2 * ours.weights[at], theirs.weights[at])


def test_blocks_of_one_token_always_masked_give_the_exact_likelihood():
    lm = tiny("bd3lm-dit-tiny")
    text = [12, 99, 151, 7, 127, 33, 80, 2]
    one = sample([], text)
    recipe = BlockDiffusion(mask_id=MASK, block_size=1, eps_min=1.0, eps_max=1.0, ignore_bos=False)
    loss = step_loss(lm.model, recipe, [recipe.views(one, Noise(0))]).item()
    total = 0.0
    for n, token in enumerate(text):  # a mask behind the true tokens, one forward for each
        layout = block_causal(n + 1, 1)
        with torch.no_grad():
            logits = lm.model(torch.tensor([[*text[:n], MASK]]), layout.positions[None], DenseAttention(layout))[0, -1]
        logits[MASK] = -torch.inf
        total -= float(logits.log_softmax(-1)[token])
    assert loss == pytest.approx(total / len(text), rel=1e-5)


def test_one_block_as_long_as_the_row_is_mdlm():
    """Given the same masks and times; how often a token is masked at time t differs by 0.1 %."""
    network, batch = tiny("mdlm-dit-tiny").model, random_batch(3, 16, 0)
    blocks = BlockDiffusion(mask_id=MASK, block_size=16, stage="pretrain", ignore_bos=False)
    whole = Mdlm(mask_id=MASK)
    t = torch.tensor([0.2, 0.5, 0.9])[:, None].expand(3, 16)
    masked = torch.rand(3, 16, generator=torch.Generator().manual_seed(0)) < t
    losses = [step_loss(network, r, [r.views_of(batch, masked, t)]).item() for r in (blocks, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(whole.mask_chance(t), t * (1 - 1e-3))


@pytest.mark.parametrize("options", [{}, SDAR, {"shift": True, "complementary": True}, {"stage": "pretrain"}], ids=str)
def test_packed_samples_train_as_in_rows_of_their_own_and_the_cut_of_a_step_does_not_matter(options):
    """The first sample's padding fills its last block with masks, which are neither noised nor learnt."""
    network, recipe = tiny("bd3lm-dit-tiny").model, BlockDiffusion(mask_id=MASK, **options)
    one, two = sample([5, 11, 7], [3, 9, 1, 14, 20, 2, 8], 4, pad=2), sample([8], [12, 30, 31, 4, 4, 9, 1], 9)
    one.tokens[:, 10:] = MASK
    noise = StepNoise(3, 0, (4, 9))
    alone = step_loss(network, recipe, [recipe.views(b, noise) for b in (one, two)]).item()
    assert 0 < alone < inf
    joined = recipe.views(packed([one, two], 24), noise)
    assert step_loss(network, recipe, [joined]).item() == pytest.approx(alone, rel=1e-5)
    assert joined.normalisers == {"loss": 18 if recipe.stage == "pretrain" else 14}
    batch, noise = random_batch(8, 16, 5), StepNoise(0, 0, tuple(range(8)))
    losses = [step_loss(network, recipe, [recipe.views(b, noise) for b in cut(batch, n)]).item() for n in (8, 4, 1)]
    assert losses[1:] == [pytest.approx(losses[0], rel=1e-5)] * 2


def test_samples_that_do_not_fill_their_last_block_keep_blocks_of_their_own():
    """As in SDAR's rows, which are packed without padding."""
    network, recipe = tiny("bd3lm-dit-tiny").model, BlockDiffusion(mask_id=MASK)
    one, two = sample([5, 11, 7], [3, 9, 1, 14, 20, 2, 8], 4), sample([8, 2], [12, 30, 31], 9)
    joined = packed([one, two], 15)
    apart = [row_logits(network, recipe.views(b, Noise(0)))[0] for b in (one, two)]
    together = row_logits(network, recipe.views(joined, Noise(0)))[0]
    torch.testing.assert_close(together[:10], apart[0][:10], atol=1e-4, rtol=0)
    torch.testing.assert_close(together[10:15], apart[1][:5], atol=1e-4, rtol=0)


def test_no_clean_token_of_its_own_block_or_of_later_ones_reaches_a_noisy_block():
    lm, recipe = tiny("sdar-tiny"), BlockDiffusion(mask_id=189)
    batch = sample([5, 11], list(range(20, 34)))
    masked, t = torch.arange(16)[None] % 2 == 1, torch.full((1, 16), 0.5)
    view = recipe.views_of(batch, masked, t)
    changed = view.tokens.clone()
    changed[0, 16 + 8 :] = 77  # the clean half from block 2 on
    ours, theirs = row_logits(lm.model, view)[0], row_logits(lm.model, replace(view, tokens=changed))[0]
    torch.testing.assert_close(ours[:12], theirs[:12], atol=1e-5, rtol=0)
    assert (ours[12:16] - theirs[12:16]).abs().max() > 1e-2


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("name", "threshold"), [("sdar-tiny", 0.6), ("bd3lm-dit-tiny", 0.2)])
def test_training_rows_have_the_logits_that_the_cached_decoder_sees(name, threshold, fused):
    lm = tiny(name)
    method = build("block_diffusion", {"threshold": threshold, "fused_commit": fused, "early_exit": False})
    run = moments(lm, method, PROMPTS, 24)
    assert max(int(forward.visible.max()) for _, forward, _ in run) >= 20  # blocks that were decoded are read back
    recipe = BlockDiffusion(mask_id=lm.facts.mask_id)
    count, largest = greatest_difference(lm, run, lambda b, m: recipe.views_of(b, m, torch.ones(b.tokens.shape)))
    assert count > 40
    assert largest < 1e-4


def test_with_token_shift_the_rows_are_those_of_the_cached_fast_dllm_v2_decoder():
    """But for each block's first token, which that decoder reads from the clean block before."""
    lm, block = tiny("fast-dllm-v2-tiny"), 8
    method = build("fast_dllm_v2", {"threshold": 0.6, "block_size": block, "sub_block_size": 4, "early_exit": False})
    recipe = BlockDiffusion(mask_id=lm.facts.mask_id, block_size=block, shift=True)
    count, largest = greatest_difference(
        lm,
        moments(lm, method, PROMPTS, 24),
        lambda b, m: recipe.views_of(b, m, torch.ones(b.tokens.shape)),
        row_of=lambda position, width: position - 1 + (0 if position % block else width),
    )
    assert count > 40
    assert largest < 1e-4


def test_supervised_rows_are_counted_right_by_the_network_without_the_mask():
    """`right` compares with the best token that is not the mask."""
    lm, recipe = tiny("bd3lm-dit-tiny"), BlockDiffusion(mask_id=MASK)
    view = recipe.views(random_batch(2, 16, 4), Noise(0))
    logits = row_logits(lm.model, view).detach()
    logits[..., MASK] = -torch.inf
    best = replace(view, targets=torch.where(view.targets != IGNORE, logits.argmax(-1), IGNORE))
    assert Objective(lm.model, recipe)(Supervised.of(best)).right.all()


def test_options_are_checked_and_the_decoder_is_known():
    recipe = make_recipe({"name": "block_diffusion", "block_size": 8}, mask_id=3)
    shifted = make_recipe({"name": "block_diffusion", "shift": True}, mask_id=3)
    assert recipe.block == 8
    for made, name in ((recipe, "block_diffusion"), (shifted, "fast_dllm_v2")):
        options = dict(made.decoder)
        assert options.pop("method") == name
        assert asdict(build(name, options))["block_size"] == made.block
    for wrong, message in [
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
        ({"stage": "pretraining"}, "did you mean 'pretrain'"),
        ({"level": "blocks"}, "did you mean 'block'"),
        ({"weight": "officials"}, "did you mean 'official'"),
        ({"eps_min": 0.0}, "0 < eps_min <= eps_max <= 1, got 0.0 and 1.0"),
        ({"eps_min": 0.9, "eps_max": 0.8}, "got 0.9 and 0.8"),
    ]:
        with pytest.raises(UnmaskError, match=message):
            make_recipe({"name": "block_diffusion", **wrong}, mask_id=3)


@pytest.mark.slow
def test_a_tiny_sdar_learns_to_fill_blocks_in_one_forward(tmp_path, monkeypatch):
    recipe = {"name": "block_diffusion", "block_size": 4}
    figures, _ = train(tmp_path, monkeypatch, "sdar-tiny", recipe, steps=150)
    assert figures["validation_loss"] < 0.2
    assert figures["accuracy"] > 0.9
    assert figures["tpf"] > 2  # of 4 at most; one token a forward: 1
