"""What the checks of recorded packed rows (WeDLM, Jacobi Forcing) share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from unmask.attention.dense import DenseAttention
from unmask.layout import visible
from unmask.models.network import Network
from unmask.training.recipes.base import View

Case = dict[str, Any]


def told(check: Callable[[Path, Case], None]) -> Callable[[Path, Case], str]:
    """The check as `conform` wants it: empty if nothing differs, else what does."""

    @wraps(check)
    def run(folder: Path, case: Case) -> str:
        try:
            check(folder, case)
        except AssertionError as error:
            return " ".join(str(error).split())[:300] or "something differs"
        return ""

    return run


def near(ours: Tensor | float, theirs: float, what: str, rtol: float = 1e-5) -> None:
    """Asserts that two numbers are equal to `rtol`."""
    value = ours.item() if isinstance(ours, Tensor) else ours
    assert abs(value - theirs) <= rtol * abs(theirs), f"{what} {value}, expected {theirs}"


def check_inputs(view: View, column: Tensor, tokens: Tensor, expect: dict[str, Any]) -> None:
    """Tokens [2 L], positions and mask; `column` [2 L] says where in our row the places of the recorded one are."""
    assert tokens[column].tolist() == expect["packed_input_ids"], "the packed row differs"
    assert view.layout.positions[0, column].tolist() == expect["position_ids"], "positions differ"
    if "attention_mask" in expect:
        seen = visible(view.layout, view.layout)[0][column][:, column]
        rows = ["".join(map(str, row)) for row in seen.int().tolist()]
        assert rows == expect["attention_mask"], "the mask differs"


@torch.no_grad()
def logits_of_row(network: Network, view: View, column: Tensor) -> Tensor:
    """Logits [2 L, V] in the order of the recorded row."""
    return network(view.tokens, view.layout.positions, DenseAttention(view.layout))[0, column]


def check_gradients(network: Network, expect: dict[str, Any], logits: Tensor, path: Path, case: str) -> None:
    """Norms of all gradients; full gradients and logits where they were recorded."""
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    for name, norm in expect["grad_norms"].items():
        near(gradients[name].norm() if name in gradients else 0.0, norm, f"gradient of {name}", rtol=1e-3)
    if "tensors" not in expect:
        return
    with safe_open(path, framework="pt") as file:
        torch.testing.assert_close(logits, file.get_tensor(f"{case}.logits"), atol=1e-3, rtol=0)
        for name, gradient in gradients.items():
            theirs = file.get_tensor(f"{case}.grad.{name}")
            torch.testing.assert_close(gradient, theirs, rtol=0, atol=1e-3 * float(theirs.abs().max()))
