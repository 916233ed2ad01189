"""RoPE scaling rules against transformers' own."""

from dataclasses import replace

import pytest
import torch
import transformers
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from unmask.errors import UnmaskError
from unmask.models import ModelConfig, Transformer
from unmask.models.rope import Rope, frequencies, rotate

BASE = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": LLAMA3,
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "mscale": 0.7,
        "mscale_all_dim": 1.2,
        "beta_fast": 16,
        "beta_slow": 2,
    },
    "yarn-factor": {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 128,
        "attention_factor": 1.25,
        "truncate": False,
    },
}


@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_equal_transformers(name):
    scaling = SCALINGS[name]
    if "truncate" in scaling and int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("this transformers ignores truncate")
    theirs_config = LlamaConfig(
        hidden_size=64, num_attention_heads=2, max_position_embeddings=256, rope_scaling=dict(scaling)
    )
    theirs, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](theirs_config, device="cpu")
    ours, our_factor = frequencies(ModelConfig.from_json({**BASE, "rope_scaling": scaling}))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    assert our_factor == pytest.approx(factor, rel=1e-12)


def test_both_spellings_of_rope_settings_are_read():
    old = ModelConfig.from_json({**BASE, "rope_theta": 5e5, "rope_scaling": {**LLAMA3}})
    new = {k: v for k, v in BASE.items() if k != "rope_theta"}
    assert ModelConfig.from_json({**new, "rope_parameters": {**LLAMA3, "rope_theta": 5e5}}) == old
    plain = ModelConfig.from_json({**new, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}})
    assert (plain.rope_theta, plain.rope_scaling) == (1e6, None)


def test_the_scaling_type_may_be_called_type():
    config = ModelConfig.from_json({**BASE, "rope_scaling": {"type": "linear", "factor": 2.0}})
    assert config.rope_scaling == {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "mystery"])
def test_a_scaling_that_is_not_built_is_refused_by_name(kind):
    config = ModelConfig.from_json({**BASE, "rope_scaling": {"rope_type": kind, "factor": 2.0}})
    with pytest.raises(UnmaskError, match=f"RoPE scaling '{kind}' is not supported"):
        Transformer(config)


def test_a_scaling_without_its_numbers_is_refused():
    config = ModelConfig.from_json({**BASE, "rope_scaling": {"rope_type": "linear"}})
    with pytest.raises(UnmaskError, match="lacks 'factor'"):
        Transformer(config)


def test_rotation_turns_each_pair_by_position_times_frequency():
    config = ModelConfig.from_json(BASE)
    x = torch.randn(1, 3, 1, config.head_dim, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 7, 2]])
    turned = rotate(x, *Rope(config)(positions))
    half = config.head_dim // 2
    pairs = torch.complex(x[..., :half], x[..., half:])
    angle = positions[..., None, None] * frequencies(config)[0]
    expected = pairs * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(turned, torch.cat([expected.real, expected.imag], -1))


def test_partial_rotation_is_a_rotation_of_a_smaller_head_and_leaves_the_rest():
    config_json = {**BASE, "num_attention_heads": 2, "architectures": ["LlamaForCausalLM"], "head_dim": 32}
    whole = ModelConfig.from_json(config_json)
    part = replace(whole, rotary_dim=12)
    x = torch.randn(1, 3, 2, 32, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 7, 2]])
    turned = rotate(x, *Rope(part)(positions))
    assert torch.equal(turned[..., 12:], x[..., 12:])
    alone = rotate(x[..., :12], *Rope(replace(whole, head_dim=12))(positions))
    assert torch.equal(turned[..., :12], alone)
    assert not torch.equal(alone, rotate(x, *Rope(whole)(positions))[..., :12])


def test_partial_rotation_scales_as_transformers_does():
    scaling = SCALINGS["yarn"]
    theirs_config = LlamaConfig(
        hidden_size=64, num_attention_heads=2, max_position_embeddings=256, rope_scaling=dict(scaling)
    )
    theirs_config.head_dim = 16  # the rotated half alone
    theirs, _ = ROPE_INIT_FUNCTIONS["yarn"](theirs_config, device="cpu")
    config = replace(ModelConfig.from_json({**BASE, "rope_scaling": scaling}), rotary_dim=16)
    torch.testing.assert_close(frequencies(config)[0], theirs, rtol=1e-6, atol=0)


def test_an_odd_number_of_rotated_dimensions_is_refused():
    with pytest.raises(UnmaskError, match="rotary_dim must be even for RoPE, got 9"):
        replace(ModelConfig.from_json(BASE), rotary_dim=9)


def test_frequencies_survive_a_change_of_dtype_and_the_meta_device():
    config = ModelConfig.from_json({**BASE, "rope_scaling": LLAMA3})
    exact = frequencies(config)[0]
    assert torch.equal(Transformer(config).to(torch.bfloat16).model.rope.inv_freq, exact)
    with torch.device("meta"):
        model = Transformer(config)
    assert torch.equal(model.to_empty(device="cpu").model.rope.inv_freq, exact)
