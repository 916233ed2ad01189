"""Recorded training forwards of Jacobi Forcing's official code against the recipe, for conform.py and the tests."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.models.checkpoint import load_model
from unmask.models.network import Network
from unmask.training.noise import Noise
from unmask.training.objective import Objective
from unmask.training.recipes.base import IGNORE, Batch, Supervised, View
from unmask.training.recipes.jacobi_forcing import JacobiForcing, consistency
from vectors_packed import Case, check_gradients, check_inputs, logits_of_row, near, told

_WINDOWS = {"nc": 0, "cc": 1}


@told
def check_jacobi_forcing(folder: Path, case: Case) -> None:
    """Packed row, mask, rows, losses and gradients are the recorded ones."""
    expect, options = case["expect"], case["options"]
    recipe = recipe_of(options)
    view, column = recipe.views(batch_of(case), Noise(0)), columns(case)
    # Behind the end of the text the official row holds padding, which no row of the loss sees.
    padding = torch.tensor(expect["packed_input_ids"]) == options["pad_token_id"]
    tokens = view.tokens[0].index_fill(0, column[padding], options["pad_token_id"])
    check_inputs(view, column, tokens, expect)
    _check_rows(view, column, expect)
    network = load_model(folder / "models" / case["model"]).model
    _check_losses(network, recipe, view, expect)
    logits = logits_of_row(network, view, column)
    student, teacher = (logits[torch.tensor(expect[f"{n}_rows"]).long()] for n in ("student", "teacher"))
    tau = options["distill_temperature"]
    scored = partial(consistency, temperature=tau)(student, teacher)["loss"] / tau**2
    torch.testing.assert_close(scored, torch.tensor(expect["soft_ce_rows"]), rtol=1e-4, atol=1e-4)
    check_gradients(network, expect, logits, folder / "jacobi-loss-causal.safetensors", case["id"])


def recipe_of(options: dict[str, Any]) -> JacobiForcing:
    """The recipe with the case's options."""
    return JacobiForcing(
        block_size=options["n_token_seq_len"],
        window=_WINDOWS[options["layout"]] if options["window"] is None else options["window"],
        ar_weight=options["ar_weight"],
        temperature=options["distill_temperature"],
        last_rows=not options["drop_last_offset"],
    )


def batch_of(case: Case) -> Batch:
    """One row: the prompt and the fixed points, beside them the noisy states.

    The text ends with the end token of the last block; behind one in an earlier block only labels are missing.
    """
    prompt, size, end = case["prompt"], case["options"]["n_token_seq_len"], case["options"]["eos_token_id"]
    labels: list[int] = [IGNORE] * len(prompt)
    for block in case["blocks"]:
        clean = block["clean"]
        stop = clean.index(end) + 1 if end in clean else size
        labels += clean[:stop] + [IGNORE] * (size - stop)
    answer = (len(case["blocks"]) - 1) * size + sum(x != IGNORE for x in labels[-size:])
    tokens = torch.tensor([prompt + [t for b in case["blocks"] for t in b["clean"]]])
    drafts = torch.tensor([prompt + [t for b in case["blocks"] for t in b["noisy"]]])
    counts = {"prompt": torch.full_like(tokens, len(prompt)), "answer": torch.full_like(tokens, answer)}
    return Batch.of(tokens, torch.tensor([labels]), drafts=drafts, **counts)


def columns(case: Case) -> Tensor:
    """Where our [clean ; noisy] row has the places of the official one, in which noisy and clean blocks alternate."""
    prompt, size, count = len(case["prompt"]), case["options"]["n_token_seq_len"], len(case["blocks"])
    clean = prompt + torch.arange(count * size).view(count, size)
    pairs = torch.cat([clean + prompt + count * size, clean], dim=1)
    return torch.cat([torch.arange(prompt), pairs.flatten()])


def _check_rows(view: View, column: Tensor, expect: dict[str, Any]) -> None:
    half = view.tokens.shape[1] // 2
    place = {ours: official for official, ours in enumerate(column.tolist())}
    supervised = (view.targets[0] != IGNORE).nonzero().squeeze(1).tolist()
    noisy = [x for x in supervised if x >= half]
    assert [place[x] for x in noisy] == expect["student_rows"], "the student's rows differ"
    assert [place[x - half] for x in noisy] == expect["teacher_rows"], "the teacher's rows differ"
    pairs = [[place[x], place[x + 1]] for x in supervised if x < half]
    assert pairs == expect["ar_pairs"], "the next-token pairs differ"
    for row, target in pairs:
        assert view.targets[0, column[row]] == expect["packed_input_ids"][target], "a next token differs"


def _check_losses(network: Network, recipe: JacobiForcing, view: View, expect: dict[str, Any]) -> None:
    terms = Objective(network, recipe)(Supervised.of(view))
    parts = {name: value / view.normalisers[name] for name, value in terms.sums.items()}
    near(parts["consistency"], expect["consistency_float64"], "consistency loss")
    near(parts["ar"], expect["ar_weighted_float64"], "next-token loss")
    total = parts["consistency"] + parts["ar"]
    near(total, expect["total_loss_float64"], "loss")
    total.backward()
