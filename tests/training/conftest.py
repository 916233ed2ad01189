"""Runs of a tiny model for the tests of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from unmask.training.config import TrainConfig, from_mapping

TOKENIZER = Path(__file__).parents[2] / "configs" / "nano" / "tokenizer"
NANO = json.loads((TOKENIZER.parent / "model" / "config.json").read_text())
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make(tmp_path):
    """A config for a tiny model, by name of its output folder. Nothing is decoded or drawn unless asked for."""
    model = tmp_path / "config.json"
    model.write_text(json.dumps({**NANO, **SMALL}))

    def config(name: str, **changes: Any) -> TrainConfig:
        values = {
            "recipe": {"name": "autoregressive"},
            "model": str(model),
            "tokenizer": str(TOKENIZER),
            "output": str(tmp_path / name),
            "problems": 120,
            "row_tokens": 192,
            "rows_per_step": 8,
            "rows_per_forward": 8,
            "steps": 4,
            "learning_rate": 5e-3,
            "warmup_steps": 2,
            "eval_problems": 12,
            "eval_every": 100,
            "decode_problems": 0,
            "plot": False,
            "log_every": 1,
            "workers": 1,
            "dtype": "float32",
            "fill_end": changes.get("recipe", {}).get("name") == "fast_dllm_v2",
            **changes,
        }
        return from_mapping({k: v for k, v in values.items() if v is not None})

    return config


@pytest.fixture
def tiny(make):
    """The same with short rows: a run of four steps takes less than a second."""

    def config(name: str, **changes: Any) -> TrainConfig:
        values = {"task": "lists:remove", "problems": 40, "eval_problems": 6, "row_tokens": 112}
        return make(name, **{**values, "rows_per_step": 4, "rows_per_forward": 4, **changes})

    return config
