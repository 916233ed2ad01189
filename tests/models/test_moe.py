"""Mixtures of experts: routers by hand, experts against a literal loop, checkpoints bit for bit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from unmask.errors import UnmaskError
from unmask.models import ModelConfig, load_model, save
from unmask.models import moe as moe_module
from unmask.models.checkpoint import SINGLE, empty_model
from unmask.models.config_moe import MoeConfig
from unmask.models.moe import Experts, MoE, Router, can_group, gathered, grouped, looped, route

MODELS = Path(__file__).parents[1] / "golden" / "models"
NAMES = ["llada-moe-tiny", "llada2-moe-tiny"]


def chosen(scores, moe, bias=None, kind="softmax"):
    """{expert: weight} of one token whose scores after softmax or sigmoid are these."""
    scores = torch.tensor([scores])
    logits = scores.log() if kind == "softmax" else torch.logit(scores)
    expert, weight = route(logits, None if bias is None else torch.tensor(bias), replace(moe, scores=kind))
    return {int(e): pytest.approx(float(w), abs=1e-6) for e, w in zip(expert[0], weight[0])}


def test_softmax_weights_are_taken_as_they_are():
    assert chosen([0.4, 0.1, 0.3, 0.2], MoeConfig(4, 2, 8)) == {0: 0.4, 2: 0.3}


def test_llada_moes_bias_chooses_and_stays_in_the_weights():
    moe = MoeConfig(4, 2, 8, bias=True, weigh_bias=True)
    assert chosen([0.4, 0.3, 0.2, 0.1], moe, [0.0, 0.0, 0.25, 0.0]) == {2: 0.45, 0: 0.4}


GROUPED = MoeConfig(8, 3, 8, groups=4, kept_groups=2, renormalise=True, scale=2.5)


def test_experts_of_dropped_groups_are_out_of_reach_however_good():
    # Sums of the two best: 1.0, 1.25, 0.8, 1.15, so groups 1 and 3 are kept and the 0.9 of group 0 is not.
    scores = [0.9, 0.1, 0.65, 0.6, 0.5, 0.3, 0.2, 0.95]
    factor = 2.5 / (0.95 + 0.65 + 0.6)
    expected = {7: 0.95 * factor, 2: 0.65 * factor, 3: 0.6 * factor}
    assert chosen(scores, GROUPED, kind="sigmoid") == expected


def test_llada2s_bias_chooses_groups_and_experts_and_is_not_in_the_weights():
    scores = [0.9, 0.1, 0.65, 0.6, 0.5, 0.3, 0.2, 0.95]
    bias = [0.0, 0.0, -0.3, 0.0, 0.0, 0.5, 0.0, 0.0]  # sums: 1.0, 0.95, 1.3, 1.15
    factor = 2.5 / (0.95 + 0.3 + 0.5)
    assert chosen(scores, GROUPED, bias, "sigmoid") == {7: 0.95 * factor, 5: 0.3 * factor, 4: 0.5 * factor}


def test_all_experts_compete_where_all_groups_are_kept():
    moe = replace(GROUPED, kept_groups=4, renormalise=False, scale=1.0)
    assert chosen([0.9, 0.1, 0.65, 0.6, 0.5, 0.3, 0.2, 0.95], moe, kind="sigmoid") == {7: 0.95, 0: 0.9, 2: 0.65}


def test_the_router_counts_in_float32_whatever_the_dtype_around_it():
    torch.manual_seed(0)
    router, x = Router(16, GROUPED), torch.randn(40, 16)
    wide = router(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = router(x)
    assert narrow[1].dtype == torch.float32
    assert torch.equal(wide[0], narrow[0]) and torch.equal(wide[1], narrow[1])


def literal(experts, x_TC, expert_TK, weight_TK):
    """Token by token, expert by expert."""
    out = torch.zeros_like(x_TC)
    inner = experts.down_proj.shape[-1]
    for t, x in enumerate(x_TC):
        for e, w in zip(expert_TK[t], weight_TK[t]):
            gate, up = experts.gate_up_proj[e, :inner], experts.gate_up_proj[e, inner:]
            out[t] += w * (experts.down_proj[e] @ (F.silu(gate @ x) * (up @ x)))
    return out


@pytest.mark.parametrize("tokens", [1, 3, 50])
def test_experts_equal_a_loop_over_tokens(tokens):
    torch.manual_seed(tokens)
    moe = MoeConfig(7, 3, 5)
    experts, x = Experts(6, moe), torch.randn(tokens, 6)
    expert, weight = route(torch.randn(tokens, 7), None, moe)
    torch.testing.assert_close(experts(x, expert, weight), literal(experts, x, expert, weight))


def test_the_shared_expert_sees_every_token():
    torch.manual_seed(0)
    block, x = MoE(8, MoeConfig(4, 2, 8, shared_inner=16)), torch.randn(2, 5, 8)
    routed = block.experts(x.flatten(0, 1), *block.gate(x.flatten(0, 1))).view_as(x)
    torch.testing.assert_close(block(x), routed + block.shared_experts(x))
    assert not torch.equal(block(x), routed)


def test_gradients_reach_router_and_the_experts_that_ran():
    torch.manual_seed(0)
    block = MoE(8, MoeConfig(6, 2, 4))
    x = torch.randn(3, 8)
    block(x).sum().backward()
    used = set(block.gate(x)[0].flatten().tolist())
    touched = {e for e in range(6) if block.experts.down_proj.grad[e].abs().sum() > 0}
    assert touched == used and len(used) < 6
    assert block.gate.weight.grad.abs().sum() > 0


def test_init_weights_reaches_stacked_experts():
    model = load_model(MODELS / "llada2-moe-tiny").model
    before = model.model.layers[1].mlp.experts.down_proj.clone()
    model.init_weights(0.3, torch.Generator().manual_seed(0))
    stack = model.model.layers[1].mlp.experts.down_proj.detach()
    assert not torch.equal(stack, before) and float(stack.std()) == pytest.approx(0.3, rel=0.02)


def test_a_cpu_and_float32_take_the_loop():
    assert not can_group(torch.zeros(2, 8, dtype=torch.bfloat16), torch.zeros(2, 8, 8, dtype=torch.bfloat16))


@pytest.mark.parametrize("at_once", [1, 4, 1000])
def test_weights_gathered_per_pair_equal_the_loop(at_once, monkeypatch):
    torch.manual_seed(at_once)
    experts, x = Experts(6, MoeConfig(7, 3, 5)), torch.randn(11, 6)
    monkeypatch.setattr(moe_module, "GATHERED", at_once * 4 * (10 * 6 + 6 * 5))
    ends = torch.tensor([0, 3, 3, 4, 9, 11, 11])  # experts without a token first, between and last
    stacks = experts.gate_up_proj, experts.down_proj
    torch.testing.assert_close(gathered(x, *stacks, ends), looped(x, *stacks, ends))


@pytest.mark.gpu
def test_experts_in_float32_run_in_a_captured_graph():
    torch.manual_seed(0)
    block, x = MoE(8, MoeConfig(6, 2, 4, shared_inner=8)).to("cuda"), torch.randn(3, 8, device="cuda")
    expected, graph = block(x).detach(), torch.cuda.CUDAGraph()
    with torch.no_grad():
        block(x)  # sets the libraries up
        with torch.cuda.graph(graph):
            captured = block(x)
    graph.replay()
    torch.testing.assert_close(captured, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 32, 700])
def test_the_grouped_product_equals_the_loop(tokens):
    torch.manual_seed(tokens)
    moe = MoeConfig(64, 8, 512)
    experts = Experts(256, moe).to("cuda", torch.bfloat16)
    x = torch.randn(tokens, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    pairs = route(torch.randn(tokens, 64, device="cuda"), None, moe)[0].flatten().sort().values
    ends = torch.searchsorted(pairs, torch.arange(64, device="cuda"), right=True)
    rows = x.repeat_interleave(8, 0)
    assert can_group(rows, experts.gate_up_proj, experts.down_proj)
    results = [f(rows, experts.gate_up_proj, experts.down_proj, ends) for f in (looped, grouped)]
    torch.testing.assert_close(results[1], results[0], rtol=2e-2, atol=2e-3)
    wanted = [x, experts.gate_up_proj, experts.down_proj]
    slow, fast = (torch.autograd.grad(y.float().square().sum(), wanted, retain_graph=True) for y in results)
    for a, b in zip(slow, fast):
        torch.testing.assert_close(b, a, rtol=5e-2, atol=2e-2 * float(a.abs().max()))


LLADA_MOE_7B = {
    "architectures": ["LLaDAMoEModelLM"],
    "model_type": "llada",
    "vocab_size": 157184,
    "hidden_size": 2048,
    "dense_intermediate_size": 8192,
    "expert_intermediate_size": 1024,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 8192,
    "qk_layernorm": True,
}
LLADA2_MINI = {
    "model_type": "llada2_moe",
    "vocab_size": 157184,
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "moe_intermediate_size": 512,
    "num_experts": 256,
    "num_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "first_k_dense_replace": 1,
    "score_function": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "partial_rotary_factor": 0.5,
    "max_position_embeddings": 32768,
}


@pytest.mark.parametrize(
    ("config_json", "count"), [(LLADA_MOE_7B, 7_356_880_896), (LLADA2_MINI, 16_255_638_528)], ids=["7b", "mini"]
)
def test_published_sizes_have_their_published_parameter_counts(config_json, count):
    assert empty_model(ModelConfig.from_json(config_json)).count_parameters() == count


def test_the_tiny_configs_are_read_in_full():
    full = ModelConfig.from_json(json.loads((MODELS / "llada-moe-tiny" / "config.json").read_text()))
    assert full.family == "llada-moe" and full.qk_norm and not full.fused_qkv and full.rotary_dim is None
    assert full.moe == MoeConfig(experts=8, per_token=2, inner=32)
    block = ModelConfig.from_json(json.loads((MODELS / "llada2-moe-tiny" / "config.json").read_text()))
    assert block.family == "llada2" and block.qk_norm and block.fused_qkv and block.rotary_dim == 8
    assert block.moe == MoeConfig(
        experts=16,
        per_token=4,
        inner=32,
        shared_inner=32,
        dense_layers=(0,),
        scores="sigmoid",
        bias=True,
        renormalise=True,
        groups=4,
        kept_groups=2,
        scale=2.5,
    )


def test_llada_moe_may_have_dense_layers_and_a_bias():
    config_json = {**LLADA_MOE_7B, "num_hidden_layers": 3, "moe_router_enable_expert_bias": True}
    config = ModelConfig.from_json({**config_json, "moe_layer_freq": [0, 1, 1]})
    assert config.moe.dense_layers == (0,) and config.intermediate_size == 8192
    assert config.moe.bias and config.moe.weigh_bias


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (LLADA_MOE_7B, {"moe_router_score_function": "sigmoid"}, "moe_router_score_function = 'sigmoid'"),
        (LLADA_MOE_7B, {"norm_topk_prob": True}, "norm_topk_prob = True"),
        (LLADA_MOE_7B, {"shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size = 64"),
        (LLADA_MOE_7B, {"moe_layer_freq": [1, 2]}, "moe_layer_freq"),
        (LLADA_MOE_7B, {"clip_qkv": 8.0}, "clip_qkv"),
        (LLADA_MOE_7B, {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        (LLADA_MOE_7B, {"num_experts_per_tok": 65}, "num_experts_per_tok = 65"),
        (LLADA2_MINI, {"score_function": "softmax"}, "score_function = 'softmax'"),
        (LLADA2_MINI, {"norm_topk_prob": False}, "norm_topk_prob = False"),
        (LLADA2_MINI, {"router_dtype": "bf16"}, "router_dtype"),
        (LLADA2_MINI, {"use_qkv_bias": True}, "use_qkv_bias"),
        (LLADA2_MINI, {"sliding_window": 512}, "sliding_window"),
        (LLADA2_MINI, {"num_nextn_predict_layers": 1}, "num_nextn_predict_layers"),
        (LLADA2_MINI, {"moe_shared_expert_intermediate_size": 1024}, "only 512"),
        (LLADA2_MINI, {"n_group": 7}, "256 experts do not form 7 groups"),
        (LLADA2_MINI, {"topk_group": 9}, "9 of 8 expert groups"),
        (LLADA2_MINI, {"rotary_dim": 32}, "rotates 64 of 128 dimensions, rotary_dim = 32"),
        (LLADA2_MINI, {"num_experts": None}, "num_experts"),
    ],
)
def test_what_the_network_does_not_do_is_refused_by_key(base, changes, message):
    config_json = {key: value for key, value in {**base, **changes}.items() if value is not None}
    with pytest.raises(UnmaskError, match=message) as caught:
        ModelConfig.from_json(config_json)
    assert "\n" not in str(caught.value)


@pytest.fixture
def copy(tmp_path):
    def copy_of(name):
        return Path(shutil.copytree(MODELS / name, tmp_path / name))

    return copy_of


def change(folder, edit):
    tensors = load_file(folder / SINGLE)
    edit(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


@pytest.mark.parametrize("name", NAMES)
def test_a_round_trip_keeps_names_bits_and_config(name, tmp_path):
    read = load_model(MODELS / name)
    save(read.model, tmp_path / "out", read.config_json, like=read.folder)
    old, new = load_file(MODELS / name / SINGLE), load_file(tmp_path / "out" / SINGLE)
    assert old.keys() == new.keys()
    assert all(torch.equal(old[n], new[n]) and old[n].dtype == new[n].dtype for n in old)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == read.config_json


def test_shards_may_part_the_experts_of_a_layer(tmp_path):
    read = load_model(MODELS / "llada2-moe-tiny")
    save(read.model, tmp_path / "out", read.config_json, shard_bytes=100_000)
    assert len(list((tmp_path / "out").glob("model-*"))) > 8
    again = load_model(tmp_path / "out").model.state_dict()
    assert all(torch.equal(tensor, again[n]) for n, tensor in read.model.state_dict().items())


def test_each_expert_is_where_its_name_says(copy):
    folder = copy("llada2-moe-tiny")
    stored = load_file(folder / SINGLE)
    experts = load_model(folder).model.model.layers[2].mlp.experts
    for e in (0, 15):
        parts = [stored[f"model.layers.2.mlp.experts.{e}.{part}_proj.weight"] for part in ("gate", "up", "down")]
        assert torch.equal(experts.gate_up_proj[e], torch.cat(parts[:2]))
        assert torch.equal(experts.down_proj[e], parts[2])


def test_the_routers_bias_is_never_narrowed(copy, tmp_path):
    folder = copy("llada2-moe-tiny")
    before = load_model(folder).model.model.layers[1].mlp.gate.expert_bias
    model = load_model(folder, dtype="bfloat16").model
    assert model.dtype == torch.bfloat16
    assert torch.equal(model.model.layers[1].mlp.gate.expert_bias, before)
    save(model, tmp_path / "half", json.loads((folder / "config.json").read_text()))
    again = load_file(tmp_path / "half" / SINGLE)
    assert torch.equal(again["model.layers.1.mlp.gate.expert_bias"], before)
    assert again["model.layers.1.mlp.experts.3.up_proj.weight"].dtype == torch.bfloat16


def test_a_bias_of_llada_moe_belongs_to_the_block(copy):
    folder = copy("llada-moe-tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "moe_router_enable_expert_bias": True}))
    with pytest.raises(UnmaskError, match=r"lack model\.layers\.0\.mlp\.expert_bias"):
        load_model(folder)
    change(folder, lambda t: t.update({f"model.layers.{i}.mlp.expert_bias": torch.ones(8) * i for i in range(3)}))
    assert float(load_model(folder).model.model.layers[2].mlp.gate.expert_bias[0]) == 2.0


UP = "model.layers.1.mlp.experts.3.up_proj.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(UP), f"lack {UP}"),
        (lambda t: t.update({UP: torch.zeros(32, 60)}), rf"{UP} is \[32, 60\] in model.safetensors, \[32, 64\] by"),
        (lambda t: t.update({UP.replace(".3.", ".16."): torch.zeros(32, 64)}), r"also hold .*experts\.16\."),
        (lambda t: t.update({UP: torch.zeros(32, 64).half()}), f"{UP} is stored as torch.float16, other experts"),
    ],
    ids=["missing", "shape", "surplus", "dtype"],
)
def test_expert_tensors_that_do_not_fit_are_named(copy, edit, message):
    folder = copy("llada2-moe-tiny")
    change(folder, edit)
    with pytest.raises(UnmaskError, match=message):
        load_model(folder, dtype="stored")


def adapter(folder, modules, rank=2):
    """An adapter on the given modules {name: (in, out)}; returns the product of each, scaled."""
    torch.manual_seed(0)
    pairs = {name: (torch.randn(rank, i), torch.randn(o, rank)) for name, (i, o) in modules.items()}
    folder.mkdir()
    targets = sorted({name.rpartition(".")[2] for name in modules})
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 3 * rank, "target_modules": targets}
    settings |= {"layers_to_transform": [1], "base_model_name_or_path": "llada2-moe-tiny"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    prefix = "base_model.model."
    tensors = {f"{prefix}{n}.lora_{s}.weight": m for n, pair in pairs.items() for s, m in zip("AB", pair)}
    save_file(tensors, folder / "adapter_model.safetensors")
    return {name: 3 * b @ a for name, (a, b) in pairs.items()}


def test_adapters_merge_into_fused_attention_and_into_single_experts(tmp_path):
    modules = {
        "attention.query_key_value": (64, 128),
        "attention.dense": (64, 64),
        "mlp.shared_experts.up_proj": (64, 32),
    }
    modules |= {"mlp.experts.3.up_proj": (64, 32), "mlp.experts.15.down_proj": (32, 64)}
    delta = adapter(tmp_path / "lora", {f"model.layers.1.{name}": size for name, size in modules.items()})
    base = load_model(MODELS / "llada2-moe-tiny")
    merged = load_model(MODELS / "llada2-moe-tiny", adapter=tmp_path / "lora")
    for read in (base, merged):
        save(read.model, tmp_path / ("a" if read is base else "b"), read.config_json)
    old, new = load_file(tmp_path / "a" / SINGLE), load_file(tmp_path / "b" / SINGLE)
    for name in old:
        due = old[name] + delta[name.removesuffix(".weight")] if name.removesuffix(".weight") in delta else old[name]
        torch.testing.assert_close(new[name], due)


def test_an_adapter_for_an_expert_that_is_not_there_is_refused(tmp_path):
    adapter(tmp_path / "lora", {"model.layers.1.mlp.experts.16.up_proj": (64, 32)})
    with pytest.raises(UnmaskError, match=r"experts\.16\.up_proj, which is not a linear layer"):
        load_model(MODELS / "llada2-moe-tiny", adapter=tmp_path / "lora")
