"""Batches of samples alone and packed, and losses of a step cut in several ways, for the tests of recipes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor

from unmask.attention.dense import DenseAttention
from unmask.layout import PAD
from unmask.models.network import Network
from unmask.training.objective import Objective
from unmask.training.recipes.base import IGNORE, Batch, Recipe, Supervised, View


def sample(
    prompt: list[int], answer: list[int], number: int = 0, drafts: list[int] | None = None, pad: int = 0
) -> Batch:
    """A row of one sample; `pad` places of its own padding stand behind the answer (drafts cover them)."""
    tokens = torch.tensor([prompt + answer + [0] * pad])
    index = torch.arange(tokens.shape[1])[None]
    answered = (index >= len(prompt)) & (index < len(prompt) + len(answer))
    return Batch(
        tokens=tokens,
        labels=torch.where(answered, tokens, IGNORE),
        segment=torch.zeros_like(index),
        positions=index,
        sample=torch.full_like(index, number),
        prompt=torch.full_like(index, len(prompt)),
        answer=torch.full_like(index, len(answer)),
        drafts=torch.tensor([[*prompt, *drafts]]) if drafts else None,
    )


def packed(batches: Sequence[Batch], width: int) -> Batch:
    """The samples one after the other in one row of `width` tokens."""
    filling = {"labels": IGNORE, "segment": PAD, "sample": -1}
    columns: dict[str, Tensor] = {}
    for f in fields(Batch):
        parts = [getattr(b, f.name) for b in batches]
        if parts[0] is None:
            continue
        if f.name == "segment":
            parts = [torch.full_like(p, i) for i, p in enumerate(parts)]
        row = torch.cat(parts, dim=1)
        rest = torch.full((1, width - row.shape[1]), filling.get(f.name, 0))
        columns[f.name] = torch.cat([row, rest], dim=1)
    return Batch(**columns)


def stacked(batches: Sequence[Batch]) -> Batch:
    """Rows of equal width below each other."""
    given = [f.name for f in fields(Batch) if getattr(batches[0], f.name) is not None]
    return Batch(**{name: torch.cat([getattr(b, name) for b in batches]) for name in given})


def step_loss(network: Network, recipe: Recipe, views: Sequence[View]) -> Tensor:
    """The loss of one update of several forwards, as the loop forms it."""
    terms = [Objective(network, recipe)(Supervised.of(view)).sums for view in views]
    totals = {name: sum(v.normalisers[name] for v in views) for name in terms[0]}
    return torch.stack([t[name] / max(total, 1e-8) for t in terms for name, total in totals.items()]).sum()


def gradients(network: Network, loss: Tensor) -> Tensor:
    """All gradients of the loss in one vector."""
    parts = torch.autograd.grad(loss, list(network.parameters()))
    return torch.cat([p.flatten() for p in parts])


@torch.no_grad()
def row_logits(network: Network, view: View) -> Tensor:
    """Logits [N, W, V] of all rows of a view."""
    return network(view.tokens, view.layout.positions, DenseAttention(view.layout))
