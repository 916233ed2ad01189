"""LoRA: named as the checkpoint names its layers, off for the teacher, saved as PEFT reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import unmask
from checkpoints import GOLDEN
from unmask.attention.dense import DenseAttention
from unmask.errors import UnmaskError
from unmask.layout import causal, full
from unmask.models.adapter import read_adapter
from unmask.models.checkpoint import load_model
from unmask.training.adapters import Adapters, chosen, linear_layers
from unmask.training.export import export
from unmask.training.log import read_log
from unmask.training.loop import run
from unmask.training.lora import LoraOptions
from unmask.training.objective import Objective
from unmask.training.recipes.autoregressive import Autoregressive

MODELS = GOLDEN / "models"
TOKENS = torch.arange(5, 25).unsqueeze(0)


def adapted(name, **options):
    """A golden network with adapters whose B is not zero, and its objective."""
    network = load_model(MODELS / name).model
    objective = Objective(network, Autoregressive())
    adapters = Adapters(network, LoraOptions(rank=4, **options), seed=0)
    objective.adapt(adapters)
    draw = torch.Generator().manual_seed(1)
    for parameter_name, parameter in network.named_parameters():
        if "lora_B" in parameter_name:
            parameter.data = torch.randn(parameter.shape, generator=draw) / 10
    return network, objective, adapters


def logits(network, layout=full):
    with torch.no_grad():
        return network(TOKENS, torch.arange(20).unsqueeze(0), DenseAttention(layout(20)))


@pytest.mark.parametrize("name", ["llada-tiny", "llada2-moe-tiny", "mdlm-dit-tiny", "qwen2-tiny"])
def test_an_adapter_is_read_back_and_merged_to_the_same_logits(name, tmp_path):
    network, _, adapters = adapted(name, alpha=6.0)
    adapters.write(tmp_path, network.state_dict(), name)
    loaded = load_model(MODELS / name, adapter=tmp_path).model
    torch.testing.assert_close(logits(loaded), logits(network), atol=2e-4, rtol=1e-3)
    merged = load_model(MODELS / name).model
    merged.load_state_dict(adapters.merged(network.state_dict()))
    torch.testing.assert_close(logits(merged), logits(network), atol=2e-4, rtol=1e-3)


def test_peft_itself_reads_the_adapter_onto_the_published_class(tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    network, _, adapters = adapted("qwen2-tiny", alpha=6.0, rslora=True, targets=("q_proj", "down_proj"))
    adapters.write(tmp_path, network.state_dict(), "qwen2-tiny")
    base = AutoModelForCausalLM.from_pretrained(MODELS / "qwen2-tiny", dtype=torch.float32)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base, tmp_path)(TOKENS).logits
    torch.testing.assert_close(logits(network, causal), theirs, atol=2e-4, rtol=1e-3)


def test_without_adapters_the_network_is_the_teacher():
    network, objective, _ = adapted("qwen2-tiny")
    plain = load_model(MODELS / "qwen2-tiny").model
    layout = causal(20)
    teacher = objective.teacher(TOKENS, layout)
    torch.testing.assert_close(teacher.head(teacher.hidden), logits(plain, causal)[0], atol=1e-6, rtol=1e-5)
    student = objective.student(TOKENS, layout)
    assert (student.head(student.hidden) - teacher.head(teacher.hidden)).abs().max() > 1e-2
    assert {n.split(".")[-3] for n, p in network.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    assert not teacher.hidden.requires_grad and student.hidden.requires_grad


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_prj"], r"unknown LoRA target 'q_prj'; did you mean 'q_proj'\? \(known: all, attn_out, ff_out"),
        (["q_proj", "o_proj"], "unknown LoRA target 'o_proj'; this checkpoint calls it 'attn_out'"),
        (["wte"], "unknown LoRA target 'wte'"),
    ],
)
def test_a_target_that_is_not_there_is_refused(targets, message):
    network = load_model(MODELS / "llada-tiny").model
    with pytest.raises(UnmaskError, match=message):
        chosen(linear_layers(network), targets)


def test_targets_that_also_end_the_name_of_another_layer_are_written_whole():
    _, _, adapters = adapted("llada-tiny", targets=("ff_out", "q_proj"))
    assert "model.transformer.blocks.0.ff_out" in adapters.target_modules
    _, _, simple = adapted("llada-tiny", targets=("attn_out", "q_proj"))
    assert simple.target_modules == ["attn_out", "q_proj"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rnk": 4}, "did you mean 'rank'"),
        ({}, "lora needs a rank"),
        ({"rank": 0}, "rank must be a whole number of at least 1"),
        ({"rank": 4, "dropout": 1.0}, "dropout must be at least 0"),
        ({"rank": 4, "alpha": "much"}, "alpha must be a number"),
        ({"rank": 4, "targets": []}, "targets must be a list of names"),
    ],
)
def test_options_are_checked(values, message):
    with pytest.raises(UnmaskError, match=message):
        LoraOptions.of(values)


@pytest.fixture
def base(tiny):
    """A checkpoint that learnt for two steps."""
    config = tiny("base", steps=2)
    run(config)
    return config


def losses(config):
    return [e["loss"] for e in read_log(Path(config.output) / "log.jsonl") if "loss" in e]


def test_a_run_trains_adapters_repeats_its_dropout_and_leaves_what_load_takes(tiny, base, tmp_path):
    lora = {"rank": 4, "alpha": 8, "dropout": 0.3, "targets": ["q_proj", "down_proj"]}
    same = {"model": None, "init": base.output, "lora": lora, "schedule": "constant", "learning_rate": 0.05}
    through = tiny("through", steps=4, save_every=4, **same)
    run(through)
    run(tiny("stopped", steps=2, save_every=2, **same))
    resumed = tiny("stopped", steps=4, resume=True, save_every=2, **same)
    run(resumed)
    assert losses(resumed) == losses(through)
    other = tiny("other", steps=4, **{**same, "lora": {**lora, "dropout": 0.0}})
    run(other)
    assert losses(other)[0] == pytest.approx(losses(through)[0], rel=1e-3) and losses(other)[3] != losses(through)[3]
    assert read_adapter(Path(through.output)).settings["lora_alpha"] == 8

    before = unmask.load(base.output, device="cpu").model
    after = unmask.load(base.output, adapter=through.output, device="cpu").model
    assert not torch.equal(logits(before, causal), logits(after, causal))
    written = export(through.output, tmp_path / "merged", form="merged")
    assert written["step"] == 4
    merged = unmask.load(tmp_path / "merged", device="cpu").model
    torch.testing.assert_close(logits(merged, causal), logits(after, causal), atol=1e-5, rtol=1e-4)


def test_a_frozen_copy_is_the_teacher_of_a_full_fine_tuning():
    network = load_model(MODELS / "qwen2-tiny").model
    objective = Objective(network, Autoregressive(), teacher=load_model(MODELS / "qwen2-tiny").model)
    objective.train()
    assert not objective.frozen.training and not any(p.requires_grad for p in objective.frozen.parameters())
    before = objective.teacher(TOKENS, causal(20)).hidden
    with torch.no_grad():
        network.embedding.mul_(2)
    assert torch.equal(objective.teacher(TOKENS, causal(20)).hidden, before)


def test_an_adapter_that_makes_another_class_of_its_base_is_merged(tiny):
    base = tiny("base", steps=1)
    run(base)
    recipe = {"name": "fast_dllm_v2", "block_size": 16}
    config = tiny("blocks", model=None, init=base.output, recipe=recipe, lora={"rank": 2}, steps=1)
    run(config)
    assert not (Path(config.output) / "adapter_model.safetensors").exists()
    assert load_model(config.output).family.name == "fast-dllm-v2"
