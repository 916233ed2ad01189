"""From a config to the networks of its run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from unmask.models.network import Network
from unmask.training.adapters import Adapters, LoraOptions
from unmask.training.config import TrainConfig, from_mapping
from unmask.training.data import Marks, marks_of
from unmask.training.mask import needs_mask
from unmask.training.objective import Objective
from unmask.training.recipes import make_recipe
from unmask.training.recipes.base import Recipe
from unmask.training.setup import Start, build_network, found


def begin(config: TrainConfig) -> tuple[Start, Recipe, Marks]:
    """All but the data and the weights."""
    config = found(config)
    marks = marks_of(config)
    start = Start.of(config, mask_id=marks.mask_id if marks.end_id is None else None)
    mask_id = start.mask.id
    if mask_id is not None:
        marks = replace(marks, mask_id=mask_id, pad_id=mask_id)
    return start, make_recipe(config.recipe, mask_id=mask_id), marks


def make_objective(start: Start, recipe: Recipe) -> Objective:
    """The networks of a run, on the CPU: the one that is trained, with adapters if the config asks for them, and those
    of `objective_of`."""
    config = start.config
    network = build_network(start)
    objective = objective_of(network, recipe, config)
    if config.lora is not None:
        objective.adapt(Adapters(network, LoraOptions.of(config.lora), config.seed))
        if start.mask.id is not None and needs_mask(config.recipe) and (start.mask.new or config.mask_init == "mean"):
            objective.train_mask_row(start.mask.id)
        low = _low(config)
        for parameter in network.parameters():
            if low is not None and not parameter.requires_grad:
                parameter.data = parameter.data.to(low)
    return objective


def objective_of(network: Network, recipe: Recipe, config: TrainConfig) -> Objective:
    """A network with the recipe's own, and a frozen copy where the recipe wants a teacher and there are no adapters."""
    low = _low(config)
    teacher = copy.deepcopy(network).to(low) if recipe.wants_teacher and config.lora is None else None
    return Objective(
        network,
        recipe,
        teacher,
        attention=config.attention,
        compiled=config.compile,
        recomputed=config.recompute,
        stream=low,
    )


def _low(config: TrainConfig) -> torch.dtype | None:
    """What frozen weights and the stream between layers are rounded to. Sharded weights stay float32: FSDP lowers what
    it gathers."""
    return torch.bfloat16 if config.precision == "bf16" and not config.shard else None


def rebuilt(config: Mapping[str, Any]) -> tuple[Start, Objective]:
    """The networks of a run that was, from the config it saved, in float32; their trained weights are to be read."""
    plain = {"precision": "fp32", "attention": "dense", "compile": False, "shard": False}
    start, recipe, _ = begin(from_mapping({**config, **plain}))
    return start, make_objective(start, recipe)
