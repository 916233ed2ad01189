"""The DiT and its discriminator: published layouts, sizes, noise level, cache, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints import tiny
from unmask.attention.dense import DenseAttention
from unmask.decoding.mdlm import subs
from unmask.errors import UnmaskError
from unmask.layout import full
from unmask.models import load_model, save
from unmask.models.checkpoint import empty_model
from unmask.models.config import DiTConfig, ModelConfig
from unmask.models.discriminator import Discriminator, folded, load_discriminator
from unmask.models.dit import DiT
from unmask.models.families import resolve
from vectors_dit import call, network

MODELS = Path(__file__).parents[1] / "golden" / "models"
NAMES = ("mdlm-dit-tiny", "bd3lm-dit-tiny", "didi-dit-tiny")
OWT = {
    "architectures": ["MDLM"],
    "model_type": "mdlm",
    "vocab_size": 50258,
    "model_length": 1024,
    "hidden_dim": 768,
    "cond_dim": 128,
    "n_blocks": 12,
    "n_heads": 12,
    "time_conditioning": False,
}


def assert_same_files(a: Path, b: Path):
    ours, theirs = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("like", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_round_trip_keeps_names_and_bits(name, like, tmp_path):
    read = load_model(MODELS / name)
    save(read.model, tmp_path / "out", read.config_json, like=read.folder if like else None)
    assert_same_files(tmp_path / "out", MODELS / name)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == read.config_json


@pytest.mark.parametrize("prefix", ["backbone.backbone.", ""])
def test_another_prefix_than_the_configs_is_read_and_written_back(prefix, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    shutil.copyfile(MODELS / "mdlm-dit-tiny" / "config.json", source / "config.json")
    tensors = load_file(MODELS / "mdlm-dit-tiny" / "model.safetensors")
    renamed = {prefix + name.removeprefix("backbone."): t for name, t in tensors.items()}
    renamed.pop(prefix + "rotary_emb.inv_freq")  # some exporters leave it out; then so do we
    save_file(renamed, source / "model.safetensors")
    read = load_model(source)
    for name, tensor in tiny("mdlm-dit-tiny").model.state_dict().items():
        assert torch.equal(read.model.state_dict()[name], tensor)
    save(read.model, tmp_path / "out", read.config_json, like=source)
    assert_same_files(tmp_path / "out", source)


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ((768, 12, 12), 169_627_218),
        ((512, 8, 8), 80_061_266),
        ((1024, 24, 16), 424_477_010),
        ((1280, 36, 20), 872_868_946),
    ],
)
def test_parameter_counts_are_the_published_ones(sizes, count):
    changes = dict(zip(("hidden_dim", "n_blocks", "n_heads"), sizes))
    assert empty_model(ModelConfig.from_json(OWT | changes)).count_parameters() == count


def test_the_discriminator_has_the_published_size():
    config = ModelConfig.from_json(OWT)
    assert isinstance(config, DiTConfig)
    with torch.device("meta"):
        judge = Discriminator(config)
    assert sum(p.numel() for p in judge.parameters()) == 131_371_265


def test_mask_and_end_tokens():
    family = resolve(OWT)
    assert (family.mask_id, family.eos_ids, family.attention, family.shift) == (50257, (50256,), "full", 0)
    block = resolve({"architectures": ["BD3LM"], "vocab_size": 50258, "block_size": 16})
    assert (block.mask_id, block.eos_ids, block.attention, block.block_size) == (50257, (50256,), "block", 16)
    assert resolve({"model_type": "mdlm", "vocab_size": 161}).eos_ids == ()


def test_without_a_noise_level_it_is_zero_and_a_level_changes_the_output():
    model = network(MODELS / "mdlm-dit-tiny")
    tokens = torch.tensor([[5, 160, 7, 160]])
    plain = call(model, tokens, full(4))
    assert torch.equal(plain, call(model, tokens, full(4), 0.0))
    assert (plain - call(model, tokens, full(4), 1.0)).abs().max() > 0.1


def test_an_untrained_network_is_the_identity_and_gives_uniform_logits():
    model = DiT(ModelConfig.from_json(OWT | {"vocab_size": 30, "hidden_dim": 32, "n_blocks": 2, "n_heads": 4}))  # type: ignore[arg-type]
    model.init_weights(generator=torch.Generator().manual_seed(0))
    tokens, layout = torch.tensor([[1, 2, 29]]), full(3)
    assert call(model, tokens, layout).abs().max() == 0
    x = model.embed(tokens)
    assert torch.equal(model.run(x, model.condition(None), layout.positions[None], DenseAttention(layout)), x)
    again = DiT(model.config)  # type: ignore[arg-type]
    again.init_weights(generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))


def test_bfloat16_weights_keep_exact_rotations_and_stay_near_float32():
    read = load_model(MODELS / "mdlm-dit-tiny", dtype="bfloat16")
    assert isinstance(read.model, DiT)
    assert read.model.dtype == torch.bfloat16
    assert read.model.rotary_emb.inv_freq.dtype == torch.float32
    tokens = torch.tensor([[5, 160, 7, 160]])
    near = call(read.model, tokens, full(4)).float()
    exact = call(network(MODELS / "mdlm-dit-tiny"), tokens, full(4))
    assert (near - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_the_first_bad_layer_is_named():
    model = network(MODELS / "mdlm-dit-tiny")
    tokens, layout = torch.tensor([[5, 6, 7]]), full(3)
    where = layout.positions[None], DenseAttention(layout)
    assert model.first_nonfinite(tokens, *where) is None
    with torch.no_grad():
        model.get_parameter("blocks.0.mlp.2.bias")[0] = torch.inf
    assert model.first_nonfinite(tokens, *where) == (1, 0, 0)


@pytest.mark.parametrize("change", [{"time_conditioning": True}, {"adaln": False}, {"causal": True}])
def test_networks_of_another_kind_are_refused(change):
    (key,) = change
    with pytest.raises(UnmaskError, match=f"{key} = .* is not supported"):
        ModelConfig.from_json(OWT | change)


def test_block_decoding_with_the_cache_equals_recomputing_everything():
    lm = tiny("bd3lm-dit-tiny")
    prompt = [30, 25, 69]
    result = lm.generate(prompt, method="block_diffusion", max_new_tokens=13, trace=True, early_exit=False)
    assert lm.default_method == "block_diffusion"
    canvas = prompt + [160] * 13
    for step in (s for s in result.trace if s.positions):
        stop = step.first + step.width + len(prompt)
        tokens = torch.tensor([canvas[:stop]])
        layout = replace(full(stop), order=torch.arange(stop) // 4)
        with torch.no_grad():
            logits = lm.model(tokens, layout.positions[None], DenseAttention(layout))[0]
        logits[:, 160] = -torch.inf
        for position, token in zip(step.positions, step.tokens):
            assert int(logits[position + len(prompt)].argmax()) == token
            canvas[position + len(prompt)] = token
    assert canvas[len(prompt) :] == result.ids


def test_subs_rows_are_distributions_that_never_hold_the_mask():
    generator = torch.Generator().manual_seed(0)
    logits, tokens = torch.randn(2, 4, 6, generator=generator), torch.tensor([[5, 1, 5, 0], [5, 5, 5, 2]])
    rows = subs(logits, tokens, 5)
    torch.testing.assert_close(rows.exp().sum(-1), torch.ones(2, 4))
    assert (rows.exp()[..., 5] == 0).all()
    visible = tokens != 5
    assert torch.equal(rows.exp()[visible], torch.nn.functional.one_hot(tokens[visible], 6).float())
    changed = logits.clone()
    changed[..., :5] += 3.0  # a constant on every real logit
    changed[..., 5] = 40.0
    torch.testing.assert_close(subs(changed, tokens, 5).exp(), rows.exp())


def test_spectral_norms_are_folded_as_pytorch_applies_them():
    layer = torch.nn.utils.spectral_norm(torch.nn.Linear(6, 4))
    for _ in range(3):
        layer(torch.randn(2, 6))
    layer.eval()
    stored = {f"output_layer.main.0.{name}": tensor for name, tensor in layer.state_dict().items()}
    flat = folded(stored)
    assert flat.keys() == {"output_layer.main.0.weight", "output_layer.main.0.bias"}
    x = torch.randn(3, 6)
    ours = torch.nn.functional.linear(x, *(flat[f"output_layer.main.0.{n}"] for n in ("weight", "bias")))
    torch.testing.assert_close(ours, layer(x))


def test_soft_input_that_is_sure_of_a_token_is_the_token():
    judge = load_discriminator(str(MODELS / "didi-dit-tiny"), torch.device("cpu"))
    tokens = torch.tensor([[5, 160, 7]])
    hard = 1e9 * torch.nn.functional.one_hot(tokens, 161)
    torch.testing.assert_close(judge.embed(hard), judge.embed(tokens))


def test_a_discriminator_that_does_not_fit_is_refused(tmp_path):
    cpu = torch.device("cpu")
    with pytest.raises(UnmaskError, match=r"no discriminator\.safetensors in"):
        load_discriminator(str(MODELS / "mdlm-dit-tiny"), cpu)
    folder = tmp_path / "copy"
    shutil.copytree(MODELS / "didi-dit-tiny", folder)
    tensors = load_file(folder / "discriminator.safetensors")
    save_file({n: t for n, t in tensors.items() if n != "blocks.0.norm1.weight"}, folder / "discriminator.safetensors")
    with pytest.raises(UnmaskError, match=r"lacks blocks\.0\.norm1\.weight"):
        load_discriminator(str(folder), cpu)
    tensors["blocks.0.norm1.weight"] = torch.ones(3)
    save_file(tensors, folder / "other.safetensors")
    with pytest.raises(UnmaskError, match=r"blocks\.0\.norm1\.weight is \[3\] in other\.safetensors, \[64\]"):
        load_discriminator(str(folder / "other.safetensors"), cpu)
    (folder / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(UnmaskError, match=r"broken\.safetensors is damaged"):
        load_discriminator(str(folder / "broken.safetensors"), cpu)
    shutil.copyfile(folder / "other.safetensors", folder / "discriminator.safetensors")
    shutil.copyfile(MODELS / "qwen2-tiny" / "config.json", folder / "config.json")
    with pytest.raises(UnmaskError, match="is a qwen2 checkpoint"):
        load_discriminator(str(folder), cpu)
