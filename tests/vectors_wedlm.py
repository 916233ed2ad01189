"""Recorded training forwards of WeDLM's official code against the recipe, for conform.py and the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.models.checkpoint import load_model
from unmask.models.network import Network
from unmask.training.objective import Objective
from unmask.training.recipes.base import IGNORE, Batch, Supervised, View
from unmask.training.recipes.wedlm import WeDlm
from vectors_packed import Case, check_gradients, check_inputs, logits_of_row, near, told

_WEIGHTS = {"weighted": "normalised", "uniform": "uniform"}


@told
def check_wedlm(folder: Path, case: Case) -> None:
    """Packed row, mask, rows, losses and gradients are the recorded ones."""
    options, expect = case["options"], case["expect"]
    recipe = WeDlm(
        mask_id=options["mask_token_id"],
        block_size=options["block_size"],
        weight=_WEIGHTS[options["loss_weighting_scheme"]],  # pyright: ignore[reportArgumentType]
        ar_weight=options["ar_loss_weight"],
        per_block=options["mask_per_block"],
        eps=options["mask_eps"],
    )
    view, column = recipe.views_of(batch_of(case), *noise_of(case)), columns(case)
    check_inputs(view, column, view.tokens[0], expect)
    rows = _check_rows(view, column, expect)
    network = load_model(folder / "models" / case["model"]).model
    _check_losses(network, recipe, view, expect)
    logits = logits_of_row(network, view, column)
    losses = F.cross_entropy(logits[rows], view.targets[0, column][rows], reduction="none")
    torch.testing.assert_close(losses, torch.tensor(expect["masked_row_ce"]), rtol=1e-4, atol=1e-4)
    check_gradients(network, expect, logits, folder / "wedlm-loss-causal.safetensors", case["id"])


def batch_of(case: Case) -> Batch:
    """The samples in one row, not padded."""
    parts: dict[str, list[Tensor]] = {}
    for number, sample in enumerate(case["samples"]):
        tokens, prompt = torch.tensor(sample["input_ids"]), sample["prompt_len"]
        index = torch.arange(len(tokens))
        fields = {
            "tokens": tokens,
            "labels": torch.where(index < prompt, IGNORE, tokens),
            "segment": torch.full_like(index, number),
            "positions": index,
            "sample": torch.full_like(index, number),
            "prompt": torch.full_like(index, prompt),
            "answer": torch.full_like(index, len(tokens) - prompt),
        }
        for name, value in fields.items():
            parts.setdefault(name, []).append(value)
    return Batch(**{name: torch.cat(values)[None] for name, values in parts.items()})


def noise_of(case: Case) -> tuple[Tensor, Tensor]:
    """What is masked, and the ratio, at each place: [1, L] each."""
    size, masked, ratio = case["options"]["block_size"], [], []
    for sample, gammas, offsets in zip(case["samples"], case["gammas"], case["masked_offsets_per_block"]):
        length = len(sample["input_ids"])
        index = torch.arange(length)
        ratio.append(torch.tensor(gammas)[index // size])
        chosen = torch.tensor([b * size + o for b, places in enumerate(offsets) for o in places], dtype=torch.long)
        masked.append(torch.isin(index, chosen))
    return torch.cat(masked)[None], torch.cat(ratio)[None]


def _by_sample(case: Case) -> list[list[list[int]]]:
    return case["masked_offsets_per_block"]


def columns(case: Case) -> Tensor:
    """Where our [memory ; prediction] row has the places of the official one, in which the samples follow each other
    with both streams each."""
    lengths = [len(s["input_ids"]) for s in case["samples"]]
    whole, at, parts = sum(lengths), 0, []
    for length in lengths:
        memory = at + torch.arange(length)
        parts += [memory, memory + whole]
        at += length
    return torch.cat(parts)


def _check_rows(view: View, column: Tensor, expect: dict[str, Any]) -> Tensor:
    """Returns the masked rows' places in the recorded row."""
    targets = view.targets[0, column]
    rows = ((column >= view.tokens.shape[1] // 2) & (targets != IGNORE)).nonzero().squeeze(1)
    assert rows.tolist() == expect["masked_rows"], "the masked rows differ"
    assert targets[rows].tolist() == [expect["targets"][r] for r in rows.tolist()], "targets differ"
    assert view.normalisers["ar"] == expect["num_ar_targets"], "the number of next tokens differs"
    return rows


def _check_losses(network: Network, recipe: WeDlm, view: View, expect: dict[str, Any]) -> None:
    terms = Objective(network, recipe)(Supervised.of(view))
    parts = {name: value / max(view.normalisers[name], 1e-8) for name, value in terms.sums.items()}
    share = 1 + recipe.ar_weight
    near(parts["mask"] * share, expect["mlm_loss_float64"], "loss of the masks")
    near(parts["ar"] * share, recipe.ar_weight * expect["ar_loss_float64"], "next-token loss")
    total = parts["mask"] + parts["ar"]
    near(total, expect["total_loss_float64"], "loss")
    total.backward()
