"""The network: equal to transformers' own classes, parameter counts, rows, gradients, error location."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from unmask.attention.dense import DenseAttention
from unmask.layout import causal, full
from unmask.models import ModelConfig, Transformer
from unmask.models.checkpoint import empty_model, load_model

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CLASSES = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen2-tied": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 12}),
    "qwen3-bias": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 8, "attention_bias": True}),
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama-bias": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama-scaled": (LlamaForCausalLM, LlamaConfig, {"rope_scaling": LLAMA3}),
    "qwen2-yarn": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    ),
}


@pytest.mark.parametrize("name", CLASSES)
def test_saved_models_of_transformers_give_the_same_logits_here(name, tmp_path):
    torch.manual_seed(0)
    build, configure, options = CLASSES[name]
    theirs = build(configure(**SIZES, **options)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    tokens = torch.randint(0, 96, (2, 40))
    layout = causal(40).batch(2)
    with torch.inference_mode():
        expected = theirs(tokens).logits
        logits = ours.model(tokens, layout.positions, DenseAttention(layout))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert ours.model.count_parameters() == theirs.num_parameters()


LLADA_8B = {
    "architectures": ["LLaDAModelLM"],
    "d_model": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 32,
    "mlp_hidden_size": 12288,
    "vocab_size": 126464,
    "embedding_size": 126464,
    "max_sequence_length": 4096,
    "rope_theta": 500000.0,
    "weight_tying": False,
}
DREAM_7B = {
    "architectures": ["DreamModel"],
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 131072,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(
    ("config_json", "count"), [(LLADA_8B, 8_015_581_184), (DREAM_7B, 7_615_616_512)], ids=["llada-8b", "dream-7b"]
)
def test_published_sizes_have_their_published_parameter_counts(config_json, count):
    assert empty_model(ModelConfig.from_json(config_json)).count_parameters() == count


@pytest.fixture
def model():
    config = ModelConfig("qwen2", 50, 32, 48, 2, 4, 2, 8, 1e-6, 1e4, 64, qkv_bias=True)
    model = Transformer(config)
    model.init_weights(0.2, torch.Generator().manual_seed(0))
    return model


def inputs():
    tokens = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(1))
    layout = full(9).batch(2)
    return tokens, layout.positions, DenseAttention(layout)


def test_rows_pick_window_columns_before_the_head(model):
    rows = torch.tensor([[3, 0], [8, 8]])
    everything = model(*inputs())
    picked = model(*inputs(), rows)
    torch.testing.assert_close(picked, torch.stack([everything[0, [3, 0]], everything[1, [8, 8]]]))


def test_given_embeddings_replace_the_lookup(model):
    tokens, positions, attend = inputs()
    same = model(torch.zeros_like(tokens), positions, attend, embeddings_BWC=model.embed(tokens))
    assert torch.equal(same, model(tokens, positions, attend))


def test_every_weight_gets_a_gradient(model):
    model(*inputs()).logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) or name.endswith("k_proj.bias"), name


def test_it_runs_under_autocast(model):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(*inputs())
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), model(*inputs()), rtol=0.1, atol=0.3)


def test_it_runs_in_bfloat16(model):
    expected = model(*inputs())
    logits = model.to(torch.bfloat16)(*inputs())
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=0.3)


def test_the_first_nonfinite_layer_input_is_located(model):
    tokens, positions, _ = inputs()
    attend = DenseAttention(causal(9).batch(2))
    assert model.first_nonfinite(tokens, positions, attend) is None
    tokens = torch.where(tokens == 7, 8, tokens)
    tokens[1, 4] = 7
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("nan")
    assert model.first_nonfinite(tokens, positions, attend) == (0, 1, 4)
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = 0.1
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("inf")
    assert model.first_nonfinite(tokens, positions, attend)[0] == 2


def test_it_compiles_as_one_graph(model):
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs()), model(*inputs()))
