"""The shape of a dense transformer, read from a checkpoint's own config.json.

One dataclass describes Qwen2, Qwen3, Llama, LLaDA, Dream, DiffuCoder, Fast-dLLM v2, SDAR, TraDo and WeDLM.
What the network cannot do is refused here, with the key at fault, so that no checkpoint runs with part of its
config ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from unmask.errors import UnmaskError, unknown

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes (counts) and flags of the network; `rms_norm_eps` is added to the mean square."""

    family: str
    """Key of `families.TABLE`: what the checkpoint was trained to do."""
    vocab_size: int
    """Rows of the embedding (LLaDA: `embedding_size`), padding rows included."""
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_positions: int
    rope_scaling: dict[str, Any] | None = None
    """The checkpoint's own RoPE scaling entry, None for plain RoPE; see `rope`."""
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """RMSNorm per head on queries and keys, before RoPE."""
    tied_head: bool = False
    names: str = "llama"
    """Scheme of the tensor names in the checkpoint: "llama" or "llada"; see `names`."""

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise UnmaskError(f"{self.num_heads} heads cannot share {self.num_kv_heads} key/value heads evenly")
        if self.head_dim % 2:
            raise UnmaskError(f"head_dim must be even for RoPE, got {self.head_dim}")

    @classmethod
    def from_json(cls, config_json: Json) -> ModelConfig:
        """The config of a checkpoint from the contents of its config.json (transformers 4 or 5 spelling).

        Raises:
            UnmaskError: unknown family, missing key, or a feature the network does not have.
        """
        reader = READERS[family_name(config_json)]
        if config_json.get("quantization_config"):
            raise UnmaskError("config.json: quantised checkpoints (quantization_config) are not supported")
        try:
            return reader(config_json)
        except KeyError as missing:
            raise UnmaskError(f"config.json lacks {missing.args[0]!r}") from None


# Architectures by class name first: LLaDA-MoE also calls itself model_type "llada".
ARCHITECTURES = {
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "LlamaForCausalLM": "llama",
    "LLaDAModelLM": "llada",
    "DreamModel": "dream",
    "Fast_dLLM_QwenForCausalLM": "fast-dllm-v2",
    "SDARForCausalLM": "sdar",
    "WeDLMForCausalLM": "wedlm",
}
MODEL_TYPES = {
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "llama": "llama",
    "llada": "llada",
    "Dream": "dream",
    "Fast_dLLM_Qwen": "fast-dllm-v2",
    "sdar": "sdar",
    "wedlm": "wedlm",
}


def family_name(config_json: Json) -> str:
    """The family of a checkpoint, by `architectures`, else by `model_type`.

    Raises:
        UnmaskError: neither names a dense family that is built.
    """
    architectures = config_json.get("architectures") or []
    for name in architectures:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    kind = str(config_json.get("model_type"))
    moe = [str(n) for n in [*architectures, kind] if "moe" in str(n).lower()]
    if moe:
        raise UnmaskError(
            f"unknown checkpoint family {moe[0]!r}: mixture-of-experts models are not built yet "
            f"(dense only: {', '.join(ARCHITECTURES)})"
        )
    if architectures or kind not in MODEL_TYPES:
        raise unknown("checkpoint family", architectures[0] if architectures else kind, ARCHITECTURES)
    return MODEL_TYPES[kind]


def _rope(config_json: Json) -> tuple[float, dict[str, Any] | None]:
    """RoPE base and scaling: `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4)."""
    entry: dict[str, Any] = dict(config_json.get("rope_parameters") or config_json.get("rope_scaling") or {})
    theta = entry.pop("rope_theta", None) or config_json.get("rope_theta") or 10000.0
    kind = entry.pop("rope_type", None) or entry.pop("type", None) or "default"
    entry.pop("type", None)
    partial = entry.pop("partial_rotary_factor", None) or config_json.get("partial_rotary_factor") or 1.0
    if partial != 1.0:
        raise UnmaskError(f"config.json: partial_rotary_factor {partial} is not supported (only 1.0)")
    return float(theta), None if kind == "default" else {"rope_type": kind, **entry}


def _refuse(config_json: Json, allowed: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises if a key that is present has a value other than the allowed ones."""
    for key, values in allowed.items():
        if key in config_json and config_json[key] not in values:
            options = " or ".join(repr(v) for v in values)
            raise UnmaskError(f"config.json: {key} = {config_json[key]!r} is not supported (only {options})")


def _llama_like(
    family: str,
    config_json: Json,
    *,
    qkv_bias: bool,
    o_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
) -> ModelConfig:
    c = config_json
    _refuse(c, {"hidden_act": ("silu",), "use_sliding_window": (False, None), "use_mrope": (False, None)})
    layer_types = set(c.get("layer_types") or ()) - {"full_attention"}
    if layer_types:
        raise UnmaskError(f"config.json: layer_types holds {sorted(layer_types)}; only 'full_attention' is supported")
    theta, scaling = _rope(c)
    heads = c["num_attention_heads"]
    return ModelConfig(
        family=family,
        vocab_size=c["vocab_size"],
        hidden_size=c["hidden_size"],
        intermediate_size=c["intermediate_size"],
        num_layers=c["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=c.get("num_key_value_heads") or heads,
        head_dim=c.get("head_dim") or c["hidden_size"] // heads,
        rms_norm_eps=c.get("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        max_positions=c["max_position_embeddings"],
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        tied_head=bool(c.get("tie_word_embeddings", False)),
    )


def _qwen2(family: str) -> Callable[[Json], ModelConfig]:
    return lambda c: _llama_like(family, c, qkv_bias=True)


def _qwen3(family: str) -> Callable[[Json], ModelConfig]:
    def read(c: Json) -> ModelConfig:
        # The Qwen3 class puts attention_bias on o_proj as well, unlike Qwen2.
        bias = bool(c.get("attention_bias", False))
        return _llama_like(family, c, qkv_bias=bias, o_bias=bias, qk_norm=True)

    return read


def _llama(c: Json) -> ModelConfig:
    bias = bool(c.get("attention_bias", False))
    return _llama_like("llama", c, qkv_bias=bias, o_bias=bias, mlp_bias=bool(c.get("mlp_bias", False)))


def _wedlm(c: Json) -> ModelConfig:
    # 7B is Qwen2 (bias, no norm), 8B is Qwen3 (norm, no bias); the config says which. No o_proj bias.
    return _llama_like("wedlm", c, qkv_bias=bool(c["attention_bias"]), qk_norm=bool(c["qk_norm"]))


# Options of the LLaDA class that its released checkpoints do not use and this network does not have.
LLADA_ONLY: dict[str, tuple[Any, ...]] = {
    "block_type": ("llama",),
    "activation_type": ("silu",),
    "layer_norm_type": ("rms",),
    "rope": (True,),
    "alibi": (False,),
    "include_bias": (False,),
    "bias_for_layer_norm": (False, None),
    "layer_norm_with_affine": (True,),
    "attention_layer_norm": (False,),
    "input_emb_norm": (False,),
    "scale_logits": (False,),
    "clip_qkv": (None,),
    "block_group_size": (1,),
}


def _llada(c: Json) -> ModelConfig:
    _refuse(c, LLADA_ONLY)
    theta, scaling = _rope(c)
    heads = c["n_heads"]
    kv_heads = c.get("n_kv_heads") or (1 if c.get("multi_query_attention") else heads)
    return ModelConfig(
        family="llada",
        vocab_size=c.get("embedding_size") or c["vocab_size"],
        hidden_size=c["d_model"],
        intermediate_size=c.get("mlp_hidden_size") or c["mlp_ratio"] * c["d_model"],
        num_layers=c["n_layers"],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=c["d_model"] // heads,
        rms_norm_eps=c.get("rms_norm_eps", 1e-5),
        rope_theta=theta,
        rope_scaling=scaling,
        max_positions=c["max_sequence_length"],
        qkv_bias=bool(c.get("include_qkv_bias", False)),
        tied_head=bool(c.get("weight_tying", False)),
        names="llada",
    )


READERS: dict[str, Callable[[Json], ModelConfig]] = {
    "qwen2": _qwen2("qwen2"),
    "dream": _qwen2("dream"),
    "fast-dllm-v2": _qwen2("fast-dllm-v2"),
    "qwen3": _qwen3("qwen3"),
    "sdar": _qwen3("sdar"),
    "llama": _llama,
    "wedlm": _wedlm,
    "llada": _llada,
}
