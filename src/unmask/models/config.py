"""The shape of a transformer, read from a checkpoint's own config.json.

One dataclass describes Qwen2, Qwen3, Llama, LLaDA, Dream, DiffuCoder, Fast-dLLM v2, SDAR, TraDo, WeDLM, LLaDA-MoE and
LLaDA2.
What the network cannot do is refused here, with the key at fault, so that no checkpoint runs with part of its
config ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from unmask.errors import UnmaskError, unknown
from unmask.models import config_moe
from unmask.models.config_moe import MoeConfig

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
    """Scheme of the tensor names in the checkpoint; see `names`."""
    rotary_dim: int | None = None
    """Leading dimensions of a head that RoPE turns; None: all."""
    fused_qkv: bool = False
    """One matrix for queries, keys and values, in this order."""
    moe: MoeConfig | None = None
    """The experts, None for a dense network."""

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise UnmaskError(f"{self.num_heads} heads cannot share {self.num_kv_heads} key/value heads evenly")
        if self.rotated % 2:
            name = "rotary_dim" if self.rotary_dim else "head_dim"
            raise UnmaskError(f"{name} must be even for RoPE, got {self.rotated}")

    @property
    def rotated(self) -> int:
        """Dimensions of a head that RoPE turns."""
        return self.rotary_dim or self.head_dim

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


@dataclass(frozen=True, slots=True)
class DiTConfig(ModelConfig):
    """Sizes of a `dit.DiT`; `rms_norm_eps` is its layer norm's."""

    cond_dim: int = 128
    """Width of the condition vector."""
    sampling_eps: tuple[float, float] | None = None
    """BD3-LM's range of mask probabilities, where the checkpoint stores it."""


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
    "LLaDAMoEModelLM": "llada-moe",
    "LLaDA2MoeModelLM": "llada2",
    "MDLM": "mdlm",
    "BD3LM": "bd3lm",
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
    "llada2_moe": "llada2",
    "mdlm": "mdlm",
    "bd3lm": "bd3lm",
}


def family_name(config_json: Json) -> str:
    """The family of a checkpoint, by `architectures`, else by `model_type`.

    Raises:
        UnmaskError: neither names a family that is built.
    """
    architectures = config_json.get("architectures") or []
    for name in architectures:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    kind = str(config_json.get("model_type"))
    moe = [str(n) for n in [*architectures, kind] if "moe" in str(n).lower()]
    if moe and (architectures or kind not in MODEL_TYPES):
        built = ", ".join(name for name in ARCHITECTURES if "moe" in name.lower())
        raise UnmaskError(
            f"unknown checkpoint family {moe[0]!r}: this mixture-of-experts model is not built (built are {built})"
        )
    if architectures or kind not in MODEL_TYPES:
        raise unknown("checkpoint family", architectures[0] if architectures else kind, ARCHITECTURES)
    return MODEL_TYPES[kind]


def _rope(config_json: Json, partial: bool = False) -> tuple[float, dict[str, Any] | None]:
    """RoPE base and scaling: `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4).

    `partial`: the class rotates part of a head if told to (`_rotary_dim`).
    """
    entry: dict[str, Any] = dict(config_json.get("rope_parameters") or config_json.get("rope_scaling") or {})
    theta = entry.pop("rope_theta", None) or config_json.get("rope_theta") or 10000.0
    kind = entry.pop("rope_type", None) or entry.pop("type", None) or "default"
    entry.pop("type", None)
    entry.pop("partial_rotary_factor", None)
    if not partial and _rotary_share(config_json) != 1.0:
        share = _rotary_share(config_json)
        raise UnmaskError(f"config.json: partial_rotary_factor {share} is not supported (only 1.0)")
    return float(theta), None if kind == "default" else {"rope_type": kind, **entry}


def _rotary_share(config_json: Json) -> float:
    entry = config_json.get("rope_parameters") or config_json.get("rope_scaling") or {}
    return entry.get("partial_rotary_factor") or config_json.get("partial_rotary_factor") or 1.0


def _rotary_dim(config_json: Json, head_dim: int) -> int:
    """Rotated dimensions of a head; a config may state share and number, which must agree."""
    size, stated = int(head_dim * _rotary_share(config_json)), config_json.get("rotary_dim")
    if not 0 < size <= head_dim or stated not in (None, size):
        raise UnmaskError(
            f"config.json: partial_rotary_factor = {_rotary_share(config_json)} rotates {size} of {head_dim} "
            f"dimensions, rotary_dim = {stated}"
        )
    return size


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
    partial: bool = False,
) -> ModelConfig:
    c = config_json
    _refuse(c, {"hidden_act": ("silu",), "use_sliding_window": (False, None), "use_mrope": (False, None)})
    layer_types = set(c.get("layer_types") or ()) - {"full_attention"}
    if layer_types:
        raise UnmaskError(f"config.json: layer_types holds {sorted(layer_types)}; only 'full_attention' is supported")
    theta, scaling = _rope(c, partial)
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


def _llada_moe(c: Json) -> ModelConfig:
    _refuse(c, config_moe.LLADA_MOE_ONLY)
    moe = config_moe.llada_moe(c)
    inner = c["dense_intermediate_size"] if moe.dense_layers else moe.inner
    base = _llama_like("llada-moe", {**c, "intermediate_size": inner}, qkv_bias=False, qk_norm=bool(c["qk_layernorm"]))
    return replace(base, names="llada-moe", moe=moe)


def _llada2(c: Json) -> ModelConfig:
    _refuse(c, config_moe.LLADA2_ONLY)
    base = _llama_like("llada2", c, qkv_bias=False, qk_norm=bool(c.get("use_qk_norm", True)), partial=True)
    rotary = _rotary_dim(c, base.head_dim)
    return replace(base, names="llada2", rotary_dim=rotary, fused_qkv=True, moe=config_moe.llada2(c))


def _dit(family: str) -> Callable[[Json], ModelConfig]:
    def read(c: Json) -> ModelConfig:
        # A network that needs the noise level, or none of its modulation, is another one.
        _refuse(c, {"time_conditioning": (False,), "adaln": (True,), "causal": (False,)})
        return DiTConfig(
            family=family,
            vocab_size=c["vocab_size"],
            hidden_size=c["hidden_dim"],
            intermediate_size=4 * c["hidden_dim"],
            num_layers=c["n_blocks"],
            num_heads=c["n_heads"],
            num_kv_heads=c["n_heads"],
            head_dim=c["hidden_dim"] // c["n_heads"],
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
            max_positions=c["model_length"],
            # DiDi's files hold no wrapper class, so no prefix.
            names="backbone." if c.get("architectures") else "",
            cond_dim=c["cond_dim"],
            sampling_eps=(c["sampling_eps_min"], c["sampling_eps_max"]) if c.get("var_min") else None,
        )

    return read


READERS: dict[str, Callable[[Json], ModelConfig]] = {
    "qwen2": _qwen2("qwen2"),
    "dream": _qwen2("dream"),
    "fast-dllm-v2": _qwen2("fast-dllm-v2"),
    "qwen3": _qwen3("qwen3"),
    "sdar": _qwen3("sdar"),
    "llama": _llama,
    "wedlm": _wedlm,
    "llada": _llada,
    "llada-moe": _llada_moe,
    "llada2": _llada2,
    "mdlm": _dit("mdlm"),
    "bd3lm": _dit("bd3lm"),
}
