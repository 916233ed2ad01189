"""Recorded times and likelihood bounds of MDLM against our recipe, for conform.py and the tests.

The sampler's steps that the official record holds beside them are those of `mdlm-sampler.jsonl`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from unmask.decoding.mdlm import noise_level
from unmask.models.checkpoint import load_model
from unmask.models.network import Network
from unmask.training.recipes.base import IGNORE, Batch
from unmask.training.recipes.mdlm import Mdlm
from unmask.training.times import stratified
from vectors_parts import Case, check_loss, checker, near
from vectors_samplers import KINDS


@cache
def _load(folder: Path, mask_id: int) -> Network:
    return load_model(folder, dtype=torch.float32, mask_token_id=mask_id).model


def _recipe(options: Case, mask_id: int = 0) -> Mdlm:
    return Mdlm(
        mask_id=mask_id,
        stage="sft",
        noise_eps=options["noise_eps"],
        sampling_eps=options["sampling_eps"],
        change_of_variables=options.get("change_of_variables", False),
        importance_sampling=options["importance_sampling"],
        timesteps=options.get("T", 0),
    )


def _times(recipe: Mdlm, u: list[float], antithetic: bool) -> Tensor:
    """Times of rows by the official pairing: the parts rise along the batch."""
    draws = torch.tensor(u)
    return recipe.time_at(stratified(draws, torch.arange(len(draws)), len(draws)) if antithetic else draws)


def _time(folder: Path, case: Case) -> None:
    options, expect = case["options"], case["expect"]
    recipe = _recipe(options)
    t = _times(recipe, case["inputs"]["u"], options["antithetic_sampling"])
    near("t", t, expect["t"], 2e-5)
    near("sigma", noise_level(t.double()), expect["sigma"], 2e-5)
    near("mask chance", recipe.mask_chance(t), expect["move_chance"], 2e-5)
    # The record holds the schedule's weight, which importance sampling replaces by a constant.
    near("weight", replace(recipe, importance_sampling=False).weights(t), expect["weight"], 1e-4)


def _nelbo(folder: Path, case: Case) -> None:
    given, options, expect = case["inputs"], case["options"], case["expect"]
    parts = expect["parts"]
    recipe = _recipe(options, options["mask_token_id"])
    t = _times(recipe, given["u_time"], options["antithetic_sampling"])
    near("t", t, parts["t"], 1e-5)
    if "move_chance" in parts:
        near("mask chance", recipe.mask_chance(t), parts["move_chance"], 1e-5)
    if parts.get("weight") is not None:
        near("weight", recipe.weights(t), torch.tensor(parts["weight"]).expand(t.shape), 1e-5)
    tokens, t = torch.tensor(given["tokens"]), t[:, None].expand(-1, len(given["tokens"][0]))
    masked = torch.tensor(given["u_tokens"]) < recipe.mask_chance(t)
    assert masked.int().tolist() == parts["masked"], "the masked tokens differ"
    batch = Batch.of(tokens, torch.where(torch.tensor(given["attention_mask"]).bool(), tokens, IGNORE))
    view = recipe.views_of(batch, masked, t)
    rows = check_loss(_load(folder / "models" / case["model"], options["mask_token_id"]), recipe, view, expect)
    if "nll_per_masked" in parts:
        near("cross-entropies", rows, _of_targets(parts, view.targets), 1e-4)


def _of_targets(parts: Case, targets: Tensor) -> Tensor:
    """The recorded cross-entropies, listed by masked place, at the places that count."""
    every = torch.tensor([x for row in parts["nll_per_masked"] for x in row])
    return every[targets[torch.tensor(parts["masked"]).bool()] != IGNORE]


def _step(folder: Path, case: Case) -> None:
    with safe_open(folder / "training-mdlm.safetensors", framework="pt") as held, torch.no_grad():
        official = {name: held.get_tensor(key) for name, key in case["tensors"].items()}
        KINDS[case["kind"]](folder / "models" / case["model"], case, official)


check_mdlm = checker({"time": _time, "nelbo": _nelbo, "posterior": _step, "sample-race": _step})
