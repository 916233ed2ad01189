"""Recorded masks, times and losses of BD3-LM and SDAR against our recipe, for conform.py and the tests."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from unmask.attention.dense import DenseAttention
from unmask.layout import doubled, visible
from unmask.models.checkpoint import load_model
from unmask.models.network import Network
from unmask.training.recipes.base import IGNORE, Batch, View
from unmask.training.recipes.block_diffusion import BlockDiffusion
from unmask.training.times import stratified
from vectors_parts import Case, check_loss, checker, near, terms_and_rows


@cache
def _load(folder: Path, mask_id: int) -> Network:
    return load_model(folder, dtype=torch.float32, mask_token_id=mask_id).model


def _bd3lm(options: Case, mask_id: int = 0) -> BlockDiffusion:
    return BlockDiffusion(
        mask_id=mask_id,
        block_size=options["block_size"],
        eps_min=options["sampling_eps_min"],
        eps_max=options["sampling_eps_max"],
        ignore_bos=options.get("ignore_bos", True),
        resample=options.get("resample", False),
    )


def _mask(folder: Path, case: Case) -> None:
    layout = doubled(case["inputs"]["length"], case["options"]["block_size"])
    assert visible(layout, layout).int().tolist() == case["expect"]["mask"], "the mask differs"


def _times(recipe: BlockDiffusion, u: list[list[float]], antithetic: bool) -> Tensor:
    """Times of blocks [B, blocks] by the official pairing: the parts rise along the batch."""
    draws = torch.tensor(u)
    index = torch.arange(draws.numel()).view(draws.shape)
    return recipe.time_at(stratified(draws, index, draws.numel()) if antithetic else draws)


def _time(folder: Path, case: Case) -> None:
    options = case["options"]
    t = _times(_bd3lm(options), case["inputs"]["u"], options["antithetic_sampling"])
    near("times", t, case["expect"]["t"], 1e-5)


def _loss(folder: Path, case: Case) -> None:
    given, options, parts = case["inputs"], case["options"], case["expect"]["parts"]
    recipe = _bd3lm(options, options["mask_token_id"])
    t = _times(recipe, given["u_time"], options["antithetic_sampling"])
    near("times", t, parts["t"], 1e-5)
    near("weights", recipe.weights(t), parts["weight"], 1e-5)
    t = t.repeat_interleave(options["block_size"], dim=1)
    tokens = torch.tensor(given["tokens"])
    everything = Batch.of(tokens, tokens)
    # The official code noises what the attention mask leaves out of the loss, too.
    masked = (torch.tensor(given["u_tokens"]) <= t) & recipe.maskable(everything)
    assert masked.int().tolist() == parts["masked"], "the masked tokens differ"
    batch = Batch.of(tokens, torch.where(torch.tensor(given["attention_mask"]).bool(), tokens, IGNORE))
    network = _load(folder / "models" / case["model"], options["mask_token_id"])
    view = recipe.views_of(batch, masked, t)
    rows = check_loss(network, recipe, view, case["expect"])
    wanted = view.targets[:, : tokens.shape[1]] != IGNORE
    near("weighted cross-entropies", rows * recipe.weights(t)[wanted], torch.tensor(parts["nlls"])[wanted], 1e-4)


check_bd3lm = checker({"mask": _mask, "time": _time, "loss": _loss})


def _sdar(folder: Path, case: Case) -> None:
    """A training forward of SDAR: packed samples, found by positions that restart."""
    expect, options = case["expect"], case["options"]
    mask_id = options["mask_token_id"]
    # p = (1 - eps) t + eps is time between eps and 1.
    recipe = BlockDiffusion(
        mask_id=mask_id,
        block_size=options["block_size"],
        level="sample",
        eps_min=options["eps"],
        subs=False,
        ignore_bos=False,
        low_discrepancy=False,
    )
    batch = _sdar_batch(case)
    drawn = torch.zeros(batch.tokens.shape, dtype=torch.bool)
    t = torch.zeros(batch.tokens.shape)
    for row, (places, times) in enumerate(zip(case["masked"], case["noise_t"])):
        drawn[row, places] = True
        t[row] = torch.tensor(times)[batch.segment[row].clamp(max=len(times) - 1)]
    p = recipe.time_at(t)
    view = recipe.views_of(batch, drawn & recipe.maskable(batch), p)
    wanted = view.targets[:, : drawn.shape[1]] != IGNORE
    assert [row.nonzero()[:, 0].tolist() for row in wanted] == expect["supervised"], "the supervised places differ"
    near("mask probabilities", p[wanted], expect["p_mask"], 1e-5)
    assert view.normalisers["loss"] == expect["answer_tokens"]
    network = _load(folder / "models" / case["model"], mask_id)
    official = load_file(folder / "sdar-training-block.safetensors")
    prefix = case["id"].removeprefix("sdar-train-")
    torch.testing.assert_close(_logits(network, view), official[f"{prefix}.logits"], atol=1e-3, rtol=0)
    loss, rows, gradients = terms_and_rows(network, recipe, view)
    near("loss", loss, expect["loss"], 1e-5)
    near("weighted cross-entropies", rows / p[wanted], expect["unreduced"], 1e-4)
    named = {k.partition(".grad.")[2]: v for k, v in official.items() if k.startswith(f"{prefix}.grad.")}
    assert named
    for name, theirs in named.items():
        scale = float(theirs.abs().max())
        torch.testing.assert_close(gradients[name], theirs, rtol=0, atol=1e-3 * scale, msg=lambda m, n=name: f"{n} {m}")


def _sdar_batch(case: Case) -> Batch:
    tokens, labels, positions = (torch.tensor(case[k]) for k in ("input_ids", "labels", "position_ids"))
    # Padding has position 0 throughout and is one sample.
    fresh = (positions == 0) & (positions.roll(1, 1) != 0)
    fresh[:, 0] = True
    return Batch.of(tokens, labels, positions=positions, segment=fresh.long().cumsum(1) - 1)


def _logits(network: Network, view: View) -> Tensor:
    """Of the supervised rows, in order."""
    with torch.no_grad():
        hidden = network.hidden(view.tokens, view.layout.positions, DenseAttention(view.layout))
        return network.head(hidden[view.targets != IGNORE])


check_sdar = checker({"": _sdar})
