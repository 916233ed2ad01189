"""LoRA adapters: merged equals unmerged, LLaDA's names, and everything that must not be skipped silently."""

import json
import shutil
from math import sqrt
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from unmask.errors import UnmaskError
from unmask.models import load_model
from unmask.models.adapter import _last

MODELS = Path(__file__).parents[1] / "golden" / "models"
BASE = MODELS / "llada-tiny-train"
PREFIX = "base_model.model.model.transformer."


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(MODELS / "llada-tiny-train-lora", folder)
    return folder


def settings(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def tensors(folder, edit):
    path = folder / "adapter_model.safetensors"
    content = load_file(path)
    edit(content)
    save_file(content, path)


def weight(checkpoint, layer=0):
    return checkpoint.model.model.layers[layer].self_attn.o_proj.weight


def delta(folder, layer=0):
    content = load_file(folder / "adapter_model.safetensors")
    a, b = (content[f"{PREFIX}blocks.{layer}.attn_out.lora_{side}.weight"] for side in "AB")
    return b @ a


def test_the_merged_weight_is_the_base_plus_the_scaled_product(adapter):
    merged, base = weight(load_model(BASE, adapter=adapter)), weight(load_model(BASE))
    torch.testing.assert_close(merged, base + 2.0 * delta(adapter))


def test_rslora_divides_by_the_root_of_the_rank(adapter):
    settings(adapter, use_rslora=True)
    merged, base = weight(load_model(BASE, adapter=adapter)), weight(load_model(BASE))
    torch.testing.assert_close(merged, base + 8 / sqrt(4) * delta(adapter))


def test_patterns_change_rank_and_alpha_of_the_modules_they_name(adapter):
    def narrow(content):
        a, b = (f"{PREFIX}blocks.0.attn_out.lora_{side}.weight" for side in "AB")
        content[a], content[b] = content[a][:2].clone(), content[b][:, :2].clone()

    tensors(adapter, narrow)
    settings(adapter, rank_pattern={r"blocks\.0\.attn_out": 2}, alpha_pattern={"attn_out": 6})
    merged, base = load_model(BASE, adapter=adapter), load_model(BASE)
    torch.testing.assert_close(weight(merged), weight(base) + 3.0 * delta(adapter))
    torch.testing.assert_close(weight(merged, 1), weight(base, 1) + 1.5 * delta(adapter, 1))


def test_bfloat16_weights_are_merged_in_float32(adapter):
    merged = weight(load_model(BASE, adapter=adapter, dtype="bfloat16"))
    base = weight(load_model(BASE, dtype="bfloat16"))
    assert torch.equal(merged, (base.float() + 2.0 * delta(adapter)).bfloat16())


def test_llada_block_and_head_ff_out_are_told_apart(adapter):
    a, b = torch.randn(4, 96), torch.randn(48, 4)

    def add(content):
        for layer in (0, 1):
            content[f"{PREFIX}blocks.{layer}.ff_out.lora_A.weight"] = a.clone()
            content[f"{PREFIX}blocks.{layer}.ff_out.lora_B.weight"] = b.clone()

    tensors(adapter, add)
    targets = ["q_proj", "k_proj", "v_proj", "attn_out", "ff_out"]
    settings(adapter, target_modules=targets)
    with pytest.raises(UnmaskError, match=r"no tensor for model\.transformer\.ff_out"):
        load_model(BASE, adapter=adapter)
    settings(adapter, exclude_modules=["model.transformer.ff_out"])
    merged, base = load_model(BASE, adapter=adapter).model, load_model(BASE).model
    down = base.model.layers[1].mlp.down_proj.weight + 2.0 * b @ a
    torch.testing.assert_close(merged.model.layers[1].mlp.down_proj.weight, down)
    assert merged.lm_head is not None and base.lm_head is not None
    assert torch.equal(merged.lm_head.weight, base.lm_head.weight)


def test_another_base_is_refused_unless_told_otherwise(adapter):
    settings(adapter, base_model_name_or_path="GSAI-ML/LLaDA-8B-Instruct")
    with pytest.raises(UnmaskError, match="adapter adapter was trained on GSAI-ML/LLaDA-8B-Instruct, not on"):
        load_model(BASE, adapter=adapter)
    load_model(BASE, adapter=adapter, check_base=False)
    settings(adapter, base_model_name_or_path="somewhere/LLADA-tiny-train/")
    load_model(BASE, adapter=adapter)
    settings(adapter, base_model_name_or_path=None)
    with pytest.raises(UnmaskError, match="does not say which model"):
        load_model(BASE, adapter=adapter)


def test_the_hubs_cache_folders_count_as_the_model_they_cache():
    assert _last("/x/models--Dream-org--Dream-v0-Base-7B/snapshots/abc") == "dream-v0-base-7b"
    assert _last("Dream-org/Dream-v0-Base-7B") == _last("/data/dream-v0-base-7b/") == "dream-v0-base-7b"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "only 'LORA'"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"r": None}, "lacks 'r'"),
        ({"r": 8}, r"lora_A is \[4, 48\].*\[8, 48\]"),
        ({"target_modules": ["q_proj", "o_proj"]}, "targets 'o_proj' but holds no tensor"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(adapter, changes, message):
    settings(adapter, **changes)
    with pytest.raises(UnmaskError, match=message):
        load_model(BASE, adapter=adapter)


KEY = f"{PREFIX}blocks.0.attn_out.lora_A.weight"


def pair_for_layer_7():
    module = f"{PREFIX}blocks.7.attn_out"
    return {f"{module}.lora_A.weight": torch.zeros(4, 48), f"{module}.lora_B.weight": torch.zeros(48, 4)}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(KEY), "lora_B alone"),
        (lambda t: t.update({KEY: torch.zeros(4, 40)}), r"lora_A is \[4, 40\]"),
        (lambda t: t.update({f"{PREFIX}wte.lora_embedding_A": torch.zeros(4, 4)}), "not a LoRA matrix"),
        (lambda t: t.update(pair_for_layer_7()), "blocks.7.attn_out, which is not"),
        (lambda t: [t.pop(k) for k in list(t) if "blocks.1.q_proj" in k], "no tensor for .*blocks.1.q_proj"),
    ],
    ids=["half", "shape", "embedding", "module", "layer"],
)
def test_tensors_that_do_not_fit_are_refused(adapter, edit, message):
    tensors(adapter, edit)
    with pytest.raises(UnmaskError, match=message):
        load_model(BASE, adapter=adapter)


def test_damaged_and_pickled_adapters_are_refused(adapter):
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UnmaskError, match="damaged"):
        load_model(BASE, adapter=adapter)
    path.rename(adapter / "adapter_model.bin")
    with pytest.raises(UnmaskError, match="pickled"):
        load_model(BASE, adapter=adapter)


def test_an_adapter_written_by_peft_merges_as_peft_does(tmp_path):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_pretrained(MODELS / "qwen2-tiny")
    options = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], use_rslora=True)
    wrapped = peft.get_peft_model(base, options)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    wrapped.save_pretrained(tmp_path)
    ours = load_model(MODELS / "qwen2-tiny", adapter=tmp_path).model
    theirs = wrapped.merge_and_unload().state_dict()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], msg=name)
