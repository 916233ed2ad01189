"""Recorded losses and Monte-Carlo likelihoods of LLaDA's published code against ours, for conform.py and the tests."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from unmask.likelihood import loglikelihood, mask_counts
from unmask.models.checkpoint import Checkpoint, load_model
from unmask.training.recipes.base import IGNORE, Batch
from unmask.training.recipes.masked import Masked
from vectors_parts import Case, check_loss, checker, near


@cache
def _load(folder: Path, mask_id: int) -> Checkpoint:
    return load_model(folder, dtype=torch.float32, mask_token_id=mask_id)


def _loss(folder: Path, case: Case) -> None:
    """Pre-training, or fine-tuning where prompt lengths are given: from the recorded draws to the loss."""
    given, options, expect = case["inputs"], case["options"], case["expect"]
    network = _load(folder / "models" / case["model"], options["mask_token_id"]).model
    recipe = Masked(mask_id=options["mask_token_id"], stage=case["kind"], eps=options["eps"])
    tokens, t = torch.tensor(given["tokens"]), torch.tensor(given["t"])[:, None]
    labels = tokens.clone()
    for row, length in enumerate(given.get("prompt_lengths", [])):
        labels[row, :length] = IGNORE
    batch = Batch.of(tokens, labels)
    p = ((1 - recipe.eps) * t + recipe.eps).expand(tokens.shape)
    masked = (torch.tensor(given["u_tokens"]) < p) & recipe.maskable(batch)
    assert int(masked.sum()) == expect["parts"]["n_masked"], f"{int(masked.sum())} masked"
    near("p", p[:, 0], expect["parts"]["p_mask"], 1e-5)
    rows = check_loss(network, recipe, recipe.views_of(batch, masked, p), expect)
    near("cross-entropies", rows, expect["parts"]["ce"], 1e-4)


def _likelihood(folder: Path, case: Case) -> None:
    given, options, expect = case["inputs"], case["options"], case["expect"]
    read = _load(folder / "models" / case["model"], options["mask_token_id"])
    length, rows = torch.tensor([len(given["answer"])]), options["batch_size"]
    masks = []
    for first, orders, counts in zip(given["k"], given["permutations"], expect["parts"]["mask_counts"]):
        ours = mask_counts(torch.tensor([first]), rows, length)[:, 0].tolist()
        assert ours == counts, f"{ours} masks, expected {counts}"
        masks.append([[i for i, place in enumerate(order) if place < n] for order, n in zip(orders, ours)])
    found = loglikelihood(
        read.model, read.family, given["prompt"], given["answer"], masks=masks, cfg_scale=options["cfg_scale"]
    )
    near("log-likelihood", found.value, expect["log_likelihood"], 1e-4)


check_llada = checker({"pretrain": _loss, "sft": _loss, "mc-likelihood": _likelihood})
