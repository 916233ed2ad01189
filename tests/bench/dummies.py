"""A tiny shape with random weights, as a file and as a model."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from unmask.bench.dummy import dummy
from unmask.lm import LM

_ROOT = TemporaryDirectory()  # removed when the tests end
CONFIG = {
    "architectures": ["Fast_dLLM_QwenForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
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
