"""config.json to ModelConfig: every family, both spellings, and what is refused."""

import json
from pathlib import Path

import pytest

from unmask.errors import UnmaskError
from unmask.models import ModelConfig

MODELS = Path(__file__).parents[1] / "golden" / "models"


def config_of(name, **changes):
    return {**json.loads((MODELS / name / "config.json").read_text()), **changes}


@pytest.mark.parametrize(
    ("name", "family", "flags"),
    [
        ("qwen2-tiny", "qwen2", {"qkv_bias"}),
        ("dream-tiny", "dream", {"qkv_bias"}),
        ("fast-dllm-v2-tiny", "fast-dllm-v2", {"qkv_bias", "tied_head"}),
        ("sdar-tiny", "sdar", {"qk_norm"}),
        ("wedlm-tiny", "wedlm", {"qk_norm"}),
        ("wedlm-qwen2-tiny", "wedlm", {"qkv_bias"}),
        ("llada-tiny", "llada", set()),
    ],
)
def test_each_family_gets_its_flags(name, family, flags):
    config = ModelConfig.from_json(config_of(name))
    on = {
        "qkv_bias": config.qkv_bias,
        "o_bias": config.o_bias,
        "mlp_bias": config.mlp_bias,
        "qk_norm": config.qk_norm,
        "tied_head": config.tied_head,
    }
    assert config.family == family
    assert {flag for flag, value in on.items() if value} == flags
    assert config.names == ("llada" if family == "llada" else "llama")


def test_llada_sizes_come_from_its_own_keys():
    config = ModelConfig.from_json(config_of("llada-tiny", embedding_size=256, n_kv_heads=2, mlp_hidden_size=None))
    assert (config.vocab_size, config.num_kv_heads, config.intermediate_size) == (256, 2, 4 * 64)
    assert (config.hidden_size, config.num_layers, config.rms_norm_eps) == (64, 3, 1e-5)


def test_head_dim_is_read_or_derived():
    assert ModelConfig.from_json(config_of("sdar-tiny")).head_dim == 24
    assert ModelConfig.from_json(config_of("wedlm-qwen2-tiny")).head_dim == 16


def test_model_type_serves_when_architectures_is_absent():
    assert ModelConfig.from_json(config_of("dream-tiny", architectures=None)).family == "dream"


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llada-tiny", "alibi", True),
        ("llada-tiny", "block_type", "sequential"),
        ("llada-tiny", "layer_norm_type", "default"),
        ("llada-tiny", "activation_type", "swiglu"),
        ("llada-tiny", "rope", False),
        ("llada-tiny", "include_bias", True),
        ("llada-tiny", "block_group_size", 4),
        ("qwen2-tiny", "use_sliding_window", True),
        ("qwen2-tiny", "hidden_act", "gelu"),
        ("dream-tiny", "use_mrope", True),
        ("qwen2-tiny", "partial_rotary_factor", 0.5),
    ],
)
def test_a_feature_the_network_lacks_is_refused_by_key(name, key, value):
    with pytest.raises(UnmaskError, match=key):
        ModelConfig.from_json(config_of(name, **{key: value}))


def test_sliding_layer_types_and_quantisation_are_refused():
    with pytest.raises(UnmaskError, match="sliding_attention"):
        ModelConfig.from_json(config_of("qwen2-tiny", layer_types=["full_attention", "sliding_attention"]))
    with pytest.raises(UnmaskError, match="quantised"):
        ModelConfig.from_json(config_of("qwen2-tiny", quantization_config={"bits": 4}))


def test_an_unknown_family_names_the_nearest():
    with pytest.raises(UnmaskError, match=r"unknown checkpoint family 'DreamModl'; did you mean 'DreamModel'"):
        ModelConfig.from_json(config_of("dream-tiny", architectures=["DreamModl"]))


@pytest.mark.parametrize("name", ["SDARMoeForCausalLM", "Qwen3MoeForCausalLM"])
def test_other_mixtures_of_experts_are_said_not_to_be_built(name):
    with pytest.raises(UnmaskError, match=f"{name}.*is not built .built are LLaDAMoEModelLM, LLaDA2MoeModelLM"):
        ModelConfig.from_json(config_of("llada-tiny", architectures=[name]))


def test_a_missing_key_is_named():
    config = config_of("qwen2-tiny")
    del config["num_hidden_layers"]
    with pytest.raises(UnmaskError, match="lacks 'num_hidden_layers'"):
        ModelConfig.from_json(config)
