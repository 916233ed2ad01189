"""Tensor names: the network uses the Hugging Face Llama names; the LLaDA checkpoints have names of their own.

LLaDA's trap: `ff_out` is the down projection inside a block and the head outside, so names are mapped whole,
never by suffix. A DiT has its own names everywhere, behind the prefix of whatever class was saved.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

_LLADA_LAYER = {
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
_LLADA_TOP = {
    "model.embed_tokens": "model.transformer.wte",
    "model.norm": "model.transformer.ln_f",
    "lm_head": "model.transformer.ff_out",
}
_LLADA2_LAYER = {
    "self_attn.qkv_proj": "attention.query_key_value",
    "self_attn.o_proj": "attention.dense",
    "self_attn.q_norm": "attention.query_layernorm",
    "self_attn.k_norm": "attention.key_layernorm",
}
# Of a scheme that is not the network's own: the layers' prefix, then names inside a layer and outside.
_SCHEMES: dict[str, tuple[str, Mapping[str, str], Mapping[str, str]]] = {
    "llada": ("model.transformer.blocks", _LLADA_LAYER, _LLADA_TOP),
    "llada-moe": ("model.layers", {}, {}),
    "llada2": ("model.layers", _LLADA2_LAYER, {"model.embed_tokens": "model.word_embeddings"}),
}
_LLAMA_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def checkpoint_module(scheme: str, module: str) -> str:
    """The checkpoint's name of one of the network's modules.

    Args:
        scheme: as in `ModelConfig.names`: "llama", "llada", "llada-moe", "llada2", or a prefix ("" or "backbone.").
        module: the network's name, for example "model.layers.3.self_attn.o_proj".
    """
    if scheme == "llama":
        return module
    if _is_prefix(scheme):
        return scheme + module
    layers, inside, outside = _SCHEMES[scheme]
    match = _LLAMA_LAYER.fullmatch(module)
    if match:
        return f"{layers}.{match[1]}.{inside.get(match[2], match[2])}"
    return outside.get(module, module)


def checkpoint_tensor(scheme: str, tensor: str) -> str:
    """The checkpoint's name of one of the network's tensors (module, dot, "weight" or "bias").

    A DiT's tensors without a module belong to the class that was saved: no prefix.
    """
    module, _, leaf = tensor.rpartition(".")
    if _is_prefix(scheme) and not module:
        return leaf
    if scheme == "llada-moe" and leaf == "expert_bias":  # not the router's here, but the whole block's
        module = module.removesuffix(".gate")
    return f"{checkpoint_module(scheme, module)}.{leaf}"


@dataclass(frozen=True, slots=True)
class Piece:
    """Where a checkpoint's tensor is in the network's tensor `own`: all of it, or an (expert, rows) of a stack."""

    own: str
    index: tuple[int, slice] | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """The piece of the network's tensor: a view."""
        return tensor if self.index is None else tensor[self.index]


def checkpoint_pieces(scheme: str, state: Mapping[str, Tensor]) -> dict[str, Piece]:
    """Every tensor of the checkpoint that belongs to a state dict of the network, by its name there.

    Stacked experts are a matrix each in a checkpoint, with gate and up apart.
    """
    out: dict[str, Piece] = {}
    for name, tensor in state.items():
        module, _, leaf = name.rpartition(".")
        if module.endswith(".experts"):
            out.update(_expert_pieces(name, f"{checkpoint_module(scheme, module)}.{{}}.{{}}.weight", leaf, tensor))
        else:
            out[checkpoint_tensor(scheme, name)] = Piece(name)
    return out


def _expert_pieces(own: str, pattern: str, leaf: str, stack: Tensor) -> Iterator[tuple[str, Piece]]:
    half = stack.shape[1] // 2
    parts = {"gate_up_proj": {"gate_proj": slice(0, half), "up_proj": slice(half, None)}}
    for expert in range(len(stack)):
        for part, rows in parts.get(leaf, {leaf: slice(None)}).items():
            yield pattern.format(expert, part), Piece(own, (expert, rows))


def fitting_scheme(scheme: str, tensor: str, held: Iterable[str]) -> str:
    """The scheme of files that hold these names: a prefix scheme may have another prefix before `tensor`."""
    if not _is_prefix(scheme):
        return scheme
    found = (name.removesuffix(tensor) for name in held if f".{name}".endswith(f".{tensor}"))
    return next(found, scheme)


def _is_prefix(scheme: str) -> bool:
    return scheme == "" or scheme.endswith(".")
