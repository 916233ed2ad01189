"""Recorded losses of dParallel's official code against the recipe, for conform.py and the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.models.checkpoint import load_model
from unmask.models.names import checkpoint_pieces
from unmask.training.objective import Objective
from unmask.training.recipes.base import IGNORE, Supervised, View
from unmask.training.recipes.dparallel import DParallel
from unmask.training.states import Models
from vectors_d2f import GivenLogits, batch_of, near, recorded

Case = dict[str, Any]
Check = Callable[[Path, Case], None]


def check_dparallel(folder: Path, case: Case) -> str:
    """Empty if views, loss, its parts and gradients are the recorded ones, else what differs."""
    try:
        CHECKS[case["kind"]](folder, case)
    except AssertionError as error:
        return " ".join(str(error).split())[:300] or "something differs"
    return ""


def recipe_of(case: Case) -> DParallel:
    o = case["options"]
    size = o["block_size"]
    return DParallel(
        mask_id=o["mask_token_id"],
        block_size=size if isinstance(size, int) else len(case["inputs"]["tokens"]),
        shift=o["token_shift"],
        mask_ratio=o["mask_ratio"],
        eps=o["eps"],
        certainty_weight=o["entropy_weight"],
        temperature=o["temperature"],
    )


def view_of(case: Case) -> tuple[DParallel, View]:
    """The recipe and its two views from the recorded draws."""
    recipe, given = recipe_of(case), case["inputs"]
    batch = batch_of(torch.tensor([given["tokens"]]), [given["prompt_length"]])
    active = torch.full_like(batch.tokens, given.get("block_index", 0))
    first = given["prompt_length"] + recipe.block_size * given.get("block_index", 0)
    masked = torch.zeros(batch.tokens.shape, dtype=torch.bool)
    drawn = torch.tensor(given["u_active"])
    masked[0, first : first + len(drawn)] = drawn < recipe.mask_chance
    return recipe, recipe.views_of(batch, active, masked)


def _check_views(recipe: DParallel, view: View, parts: Case) -> None:
    assert view.tokens.tolist() == [parts["noisy"], parts["noisy_rev"]], "the views differ"
    wanted = (view.targets != IGNORE).int()
    rows = torch.roll(wanted, 1, dims=1) if recipe.shift else wanted
    assert rows.tolist() == [parts["masked"], parts["masked_rev"]], "the targets differ"


def _check_loss(recipe: DParallel, models: Models, view: View, expect: Case) -> Tensor:
    """The loss as the loop forms it, compared with its parts."""
    terms = recipe.loss(models, Supervised.of(view))
    parts = expect["parts"]
    weight = recipe.certainty_weight
    sums = {name: value / view.normalisers[name] for name, value in terms.sums.items()}
    near(sums["consistency"].item(), parts["ce"] + parts["ce_rev"], 1e-5, "cross-entropy")
    near(sums["certainty"].item(), weight * (parts["entropy"] + parts["entropy_rev"]), 1e-5, "entropy")
    assert int(terms.right.sum()) == parts["n_correct"] + parts["n_correct_rev"], "other tokens are right"
    loss = sums["consistency"] + sums["certainty"]
    near(loss.item(), expect["loss"], 1e-5, "loss")
    return loss


def _loss(folder: Path, case: Case) -> None:
    recipe, view = view_of(case)
    _check_views(recipe, view, case["expect"]["parts"])
    network = load_model(folder / "models" / case["model"]).model
    _check_loss(recipe, Objective(network, recipe), view, case["expect"]).backward()
    pieces = checkpoint_pieces(network.config.names, network.state_dict())
    parameters = dict(network.named_parameters())
    for name, theirs in case["expect"]["grad_norm"].items():
        gradient = parameters[pieces[name].own].grad
        assert gradient is not None
        near(gradient.norm().item(), theirs, 1e-3, f"gradient of {name}")


def _from_logits(folder: Path, case: Case) -> None:
    recipe, view = view_of(case)
    _check_views(recipe, view, case["expect"]["parts"])
    golden = recorded(folder / "training-dparallel.safetensors", case)
    logits = torch.stack([golden["logits"], golden["logits_rev"]]).flatten(0, -3).requires_grad_()
    _check_loss(recipe, GivenLogits(logits), view, case["expect"]).backward()
    assert logits.grad is not None
    official = torch.stack([golden["grad_logits"], golden["grad_logits_rev"]]).reshape(logits.shape)
    torch.testing.assert_close(logits.grad, official, rtol=0, atol=1e-5 * float(official.abs().max()))


CHECKS: dict[str, Check] = {"loss": _loss, "loss-from-logits": _from_logits}
