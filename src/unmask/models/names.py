"""Tensor names: the network uses the Hugging Face Llama names; LLaDA checkpoints have names of their own.

LLaDA's trap: `ff_out` is the down projection inside a block and the head outside, so names are mapped whole,
never by suffix.
"""

from __future__ import annotations

import re

_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}
_TOP = {
    "model.embed_tokens": "model.transformer.wte",
    "model.norm": "model.transformer.ln_f",
    "lm_head": "model.transformer.ff_out",
}
_LLAMA_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def checkpoint_module(scheme: str, module: str) -> str:
    """The checkpoint's name of one of the network's modules.

    Args:
        scheme: "llama" or "llada", as in `ModelConfig.names`.
        module: the network's name, for example "model.layers.3.self_attn.o_proj".
    """
    if scheme == "llama":
        return module
    match = _LLAMA_LAYER.fullmatch(module)
    if match:
        return f"model.transformer.blocks.{match[1]}.{_LAYER.get(match[2], match[2])}"
    return _TOP.get(module, module)


def checkpoint_tensor(scheme: str, tensor: str) -> str:
    """The checkpoint's name of one of the network's tensors (module, dot, "weight" or "bias")."""
    module, _, leaf = tensor.rpartition(".")
    return f"{checkpoint_module(scheme, module)}.{leaf}"
