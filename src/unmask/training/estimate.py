"""What a run will take, without running it: parameters, rows, steps, memory.

Memory of one process, in bytes: a trained parameter has its weight, gradient and two moments in float32 (16, 20 with an
average), a frozen one its weight alone (4, or 2 under bf16); sharding divides all of it by the number of processes. Of
each token of a forward a layer keeps about 10 hidden vectors, queries, keys, values, and 3 vectors of the MLP's width,
or with `recompute` one hidden vector (and one layer at a time all of it). Logits take four pieces in float32. What the
CUDA context, kernels and fragmentation take is not in it: count on a tenth more.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from torch import nn

from unmask.models.checkpoint import empty_model
from unmask.models.config import ModelConfig
from unmask.models.network import Network
from unmask.training.adapters import chosen, linear_layers
from unmask.training.build import begin
from unmask.training.config import TrainConfig
from unmask.training.data import Packed, load_data, make_format, pack
from unmask.training.lora import LoraOptions
from unmask.training.noise import Noise
from unmask.training.recipes.base import Recipe
from unmask.training.states import PIECE
from unmask.training.step import Share

SAMPLE = 2000
"""Samples that are made to count rows."""


def estimate(config: TrainConfig, processes: int | None = None) -> dict[str, Any]:
    """Counts and bytes; rows and epochs are scaled up from a part of the data.

    Args:
        processes: None: those that this one was launched with.

    Raises:
        UnmaskError: what would stop the run before its first step.
    """
    count = processes or int(os.environ.get("WORLD_SIZE", "1"))
    start, recipe, marks = begin(config)
    form = make_format(start.config, recipe, marks)
    few = replace(start.config, problems=min(config.problems, SAMPLE), eval_problems=min(config.eval_problems, SAMPLE))
    samples, _ = load_data(few, recipe, form)
    share = Share.of(config.rows_per_step, config.rows_per_forward, 0, count)
    packed = Packed(samples, form, config.rows_per_step, config.seed)
    rows = pack(packed.padded, form.length, config.seed, 0)
    view = recipe.views(packed.batch(rows[: share.per_forward]), Noise(config.seed))
    scale = config.problems / few.problems if config.data is None else 1.0
    total = len(rows) * scale
    network = empty_model(ModelConfig.from_json(start.config_json))
    trained, frozen = _parameters(config, network, recipe)
    tokens, supervised = view.tokens.numel(), int((view.targets >= 0).sum())
    return {
        "parameters": network.count_parameters(),
        "trained": trained,
        "processes": count,
        "samples": round(len(samples) * scale),
        "rows": round(total),
        "steps": config.steps,
        "epochs": round(config.steps * config.rows_per_step / max(total, 1), 2),
        "tokens_per_step": tokens * (share.rows // share.per_forward) * count,
        "memory_gib": {
            name: round(value / 2**30, 2)
            for name, value in _memory(config, network.config, trained, frozen, tokens, supervised, count).items()
        },
    }


def _parameters(config: TrainConfig, network: Network, recipe: Recipe) -> tuple[int, int]:
    """Trained and frozen parameters of a run."""
    own = network.count_parameters()
    further = [p for module in recipe.modules(network).values() for p in module.parameters()]
    trained = sum(p.numel() for p in further if p.requires_grad)
    frozen = sum(p.numel() for p in further if not p.requires_grad)
    if config.lora is None:
        return trained + own, frozen + (own if recipe.wants_teacher else 0)
    options = LoraOptions.of(config.lora)
    layers = chosen(linear_layers(network), options.targets)
    linear = [module for name, module in network.named_modules() if name in layers]
    pairs = sum(options.rank * (m.in_features + m.out_features) for m in linear if isinstance(m, nn.Linear))
    return trained + pairs, frozen + own


def _memory(
    config: TrainConfig, sizes: ModelConfig, trained: int, frozen: int, tokens: int, supervised: int, count: int
) -> dict[str, float]:
    """Bytes of one process; see the module docstring."""
    pieces = count if config.shard else 1
    low = config.precision == "bf16"
    weights = trained * (16 if config.ema is None else 20) + frozen * (2 if low and not config.shard else 4)
    heads = sizes.num_heads + 2 * sizes.num_kv_heads
    layer = 10 * sizes.hidden_size + heads * sizes.head_dim + 3 * sizes.intermediate_size
    kept = sizes.num_layers * (sizes.hidden_size if config.recompute else layer) + (layer if config.recompute else 0)
    logits = 4 * 4 * min(supervised * sizes.vocab_size, PIECE)
    found = {
        "weights, gradients, moments": weights / pieces,
        "activations": float(tokens * kept * (2 if low else 4)),
        "logits": float(logits),
    }
    return {**found, "sum": sum(found.values())}
