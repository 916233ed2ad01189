"""Models of a published shape with random weights, where speed is measured and the weights are not at hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unmask.errors import UnmaskError, unknown
from unmask.lm import LM
from unmask.models.checkpoint import Checkpoint, new_model
from unmask.models.config import ModelConfig
from unmask.models.families import resolve
from unmask.models.hub import read_json
from unmask.models.transformer import Transformer

_QWEN_7B: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
_QWEN_1_5B = _QWEN_7B | {
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
_V2 = {"architectures": ["Fast_dLLM_QwenForCausalLM"], "bd_size": 32}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-7b": _QWEN_7B | {"architectures": ["Qwen2ForCausalLM"]},
    "qwen2.5-1.5b": _QWEN_1_5B | {"architectures": ["Qwen2ForCausalLM"]},
    "fast-dllm-v2-7b": _QWEN_7B | _V2,
    "fast-dllm-v2-1.5b": _QWEN_1_5B | _V2,
    "dream-7b": _QWEN_7B | {"architectures": ["DreamModel"], "mask_token_id": 151666},
}
"""config.json of shapes known by name."""


def has_no_weights(source: str) -> bool:
    """Whether a model is a shape alone: a known name, a config.json, or a folder that holds one but no weights."""
    path = Path(source)
    if path.is_dir():
        return (path / "config.json").is_file() and not any(path.glob("*.safetensors"))
    return source in SHAPES or path.is_file()


def dummy(source: str, *, device: str, dtype: torch.dtype, seed: int = 0) -> LM:
    """A model with the shape of a config and normal weights; it knows no end token, so that texts have the length
    asked for.

    Args:
        source: a name of `SHAPES`, a config.json, or a folder that holds one.

    Raises:
        UnmaskError: neither a known name nor such a file, or a network of another kind.
    """
    config_json = _config(source)
    config = ModelConfig.from_json(config_json)
    with torch.device("meta"):
        model = new_model(config)
    if not isinstance(model, Transformer):
        raise UnmaskError(f"random weights are made for transformers, not for family {config.family!r}")
    model = model.to(dtype).to_empty(device=device).eval()
    with torch.inference_mode():
        model.init_weights(generator=torch.Generator(device).manual_seed(seed))
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.fill_(1.0)
    model.requires_grad_(False)
    return endless(LM(Checkpoint(model, config, resolve(config_json), config_json, None, Path(source)), None))


def endless(lm: LM) -> LM:
    """The same model without end tokens."""
    family = replace(lm.family, eos_ids=())
    return LM(replace(lm.checkpoint, family=family), lm.tokenizer)


def _config(source: str) -> dict[str, Any]:
    if source in SHAPES:
        return SHAPES[source]
    path = Path(source)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise unknown("shape (nor is it a config.json)", source, SHAPES)
    return read_json(path)
