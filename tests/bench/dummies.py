"""A tiny shape with random weights, as a file and as a model."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from unmask.bench.dummy import dummy
from unmask.bench.roofline import Ceilings
from unmask.bench.training import measure
from unmask.lm import LM
from unmask.training.config import from_mapping
from unmask.training.ranks import Ranks

_ROOT = TemporaryDirectory()  # removed when the tests end
CONFIG = {
    "architectures": ["Fast_dLLM_QwenForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "bd_size": 16,
    "mask_token_id": 63,
    "eos_token_id": 62,
}


@cache
def tiny_config() -> str:
    """The path of its config.json."""
    path = Path(_ROOT.name) / "tiny.json"
    path.write_text(json.dumps(CONFIG))
    return str(path)


def tiny_dummy(seed: int = 0) -> LM:
    """A new model of this shape."""
    return dummy(tiny_config(), device="cpu", dtype=torch.float32, seed=seed)


TRAIN = {
    "recipe": "fast_dllm_v2",
    "row_tokens": 64,
    "rows": 2,
    "rows_per_forward": 1,
    "per_row": 2,
    "steps": 2,
    "precision": "fp32",
    "attention": "dense",
    "compile": False,
    "recompute": False,
    "shard": False,
}
"""What `bench train` is asked for in the tests."""


def train_entry(lm: LM, recipe: str = "fast_dllm_v2", **options: Any) -> dict[str, Any]:
    """What training the model for two updates gives."""
    values = {"recipe": {"name": recipe, **options}, "model": "none", "output": "none", "row_tokens": 64}
    config = from_mapping({**values, "rows_per_step": 2, "rows_per_forward": 1})
    return measure(lm, config, Ranks.start(), Ceilings(1e9, 1e10), steps=2, per_row=2)
