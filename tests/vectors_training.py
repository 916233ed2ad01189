"""Recorded training forwards of the official codes against the recipes, for conform.py and the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from unmask.attention.dense import DenseAttention
from unmask.models.checkpoint import load_model
from unmask.models.network import Network
from unmask.training.objective import Objective
from unmask.training.recipes.base import IGNORE, Batch, Recipe, Supervised, View
from unmask.training.recipes.fast_dllm_v2 import FastDllmV2

Case = dict[str, Any]


def check_fast_dllm_v2(folder: Path, case: Case) -> str:
    """Empty if inputs, targets, logits, cross-entropies, loss and gradients are the recorded ones, else what
    differs."""
    try:
        _check(folder, case)
    except AssertionError as error:
        return " ".join(str(error).split())[:300] or "inputs or targets differ"
    return ""


def loss_of(network: Network, recipe: Recipe, view: View, teacher: Network | None = None) -> Tensor:
    """The loss of one forward as the loop forms it."""
    terms = Objective(network, recipe, teacher)(Supervised.of(view))
    return torch.stack([value / view.normalisers[name] for name, value in terms.sums.items()]).sum()


def _check(folder: Path, case: Case) -> None:
    expect, options = case["expect"], case["options"]
    network = load_model(folder / "models" / case["model"], mask_token_id=options["mask_id"]).model
    masked = torch.tensor(case["mask"]).bool()
    tokens = torch.tensor(case["input_ids"])
    length = tokens.shape[1]
    batch = Batch.of(tokens, torch.tensor(case["labels"]))
    recipe = FastDllmV2(mask_id=options["mask_id"], block_size=options["bd_size"], isolate=False)
    view = recipe.views_of(batch, masked, torch.full(masked.shape, 0.5))
    assert view.tokens[:, :length].tolist() == expect["noisy"], "the noisy views differ"
    supervised = [(r[:length] != IGNORE).nonzero().squeeze(1).add(1).tolist() for r in view.targets]
    assert supervised == expect["supervised"], "the supervised positions differ"
    prefix = case["id"].removeprefix("fdv2-train-")
    golden = _tensors(folder / "fast-dllm-v2-training-block.safetensors", prefix)
    _check_logits(network, view, golden["logits"], expect["cross_entropy"])
    _check_gradients(network, recipe, view, golden, expect)


def _tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        names = [name for name in list(file.keys()) if name.startswith(prefix + ".")]
        return {name.removeprefix(prefix + "."): file.get_tensor(name) for name in names}


def _check_logits(network: Network, view: View, official: Tensor, cross_entropy: list[list[float]]) -> None:
    length = official.shape[1]
    positions = view.layout.positions.expand_as(view.tokens)
    hidden = network.hidden(view.tokens, positions, DenseAttention(view.layout))
    logits = network.head(hidden[:, :length])
    torch.testing.assert_close(logits, official, atol=1e-3, rtol=0)
    losses = F.cross_entropy(logits.transpose(1, 2), view.targets[:, :length], reduction="none")
    for row, targets, ce in zip(losses, view.targets, cross_entropy):
        torch.testing.assert_close(row[targets[:length] != IGNORE], torch.tensor(ce), rtol=1e-4, atol=1e-4)


def _check_gradients(network: Network, recipe: Recipe, view: View, golden: dict[str, Tensor], expect: Case) -> None:
    loss = loss_of(network, recipe, view)
    total = loss * view.normalisers["loss"]
    loss.backward()
    for ours, theirs in ((loss, expect["loss"]), (total / expect["label_count"], expect["loss_sum_over_label_count"])):
        assert abs(ours.item() - theirs) <= 1e-4 * abs(theirs), f"loss {ours.item()}, expected {theirs}"
    gradients = {name: p.grad for name, p in network.named_parameters()}
    for name in (k.removeprefix("grad.") for k in golden if k.startswith("grad.")):
        gradient, theirs = gradients[name], golden[f"grad.{name}"]
        assert gradient is not None
        if name == "model.embed_tokens.weight":
            gradient[188] = theirs[188]  # the official padding index keeps the end token's input gradient away
        scale = float(theirs.abs().max())
        torch.testing.assert_close(gradient, theirs, rtol=0, atol=1e-3 * scale)
