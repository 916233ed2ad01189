"""What checks of recorded training losses have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.models.names import checkpoint_pieces
from unmask.models.network import Network
from unmask.training.objective import Objective
from unmask.training.recipes.base import Recipe, Supervised, View

Case = dict[str, Any]
Checks = dict[str, Callable[[Path, Case], None]]


def checker(kinds: Checks, default: str = "") -> Callable[[Path, Case], str]:
    """A check for conform.py: empty if the case agrees, else what differs; by the case's kind."""

    def check(folder: Path, case: Case) -> str:
        try:
            kinds[case.get("kind", default)](folder, case)
        except AssertionError as error:
            return " ".join(str(error).split())[:300] or "differs"
        return ""

    return check


def near(what: str, ours: Any, theirs: Any, relative: float) -> None:
    """Fails, saying what, if numbers (or lists of them) are not equal but for a relative error."""
    a, b = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (ours, theirs))
    excess = (a - b).abs() - relative * b.abs() - 1e-12
    assert a.shape == b.shape and not bool((excess > 0).any()), f"{what}: {a.tolist()}, expected {b.tolist()}"


def terms_and_rows(network: Network, recipe: Recipe, view: View) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The loss, the cross-entropy of each supervised row, and the gradients by the checkpoint's names."""
    batch = Supervised.of(view)
    batch = replace(batch, weights=batch.weights.clone().requires_grad_())
    sums = Objective(network, recipe)(batch).sums
    loss = torch.stack([value / view.normalisers[name] for name, value in sums.items()]).sum()
    weights = dict(network.named_parameters())
    # The sum is linear in the rows' weights, so its derivative by them is what they multiply.
    found = torch.autograd.grad(loss, [batch.weights, *weights.values()], allow_unused=True)
    rows = found[0] * view.normalisers["loss"]
    gradients = {name: g for name, g in zip(weights, found[1:]) if g is not None}
    pieces = checkpoint_pieces(network.config.names, network.state_dict())
    return (
        loss,
        rows,
        {name: piece.of(gradients[piece.own]) for name, piece in pieces.items() if piece.own in gradients},
    )


def check_loss(network: Network, recipe: Recipe, view: View, expect: Case) -> Tensor:
    """Fails unless loss (1e-5) and gradient norms (1e-3) are the recorded ones; the rows' cross-entropies."""
    loss, rows, gradients = terms_and_rows(network, recipe, view)
    near("loss", loss, expect["loss"], 1e-5)
    for name, norm in expect["grad_norm"].items():
        near(f"gradient of {name}", gradients[name].norm(), norm, 1e-3)
    return rows
