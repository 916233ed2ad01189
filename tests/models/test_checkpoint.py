"""Reading and writing checkpoints: round trips bit for bit, and one clear line for everything that can be wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from unmask.errors import UnmaskError
from unmask.models import load_model, resolve_source, save
from unmask.models.checkpoint import INDEX, SINGLE
from unmask.models.writing import _named_tensors

MODELS = Path(__file__).parents[1] / "golden" / "models"


@pytest.fixture
def copy(tmp_path):
    def copy_of(name):
        target = tmp_path / name
        shutil.copytree(MODELS / name, target)
        return target

    return copy_of


def stored(folder):
    return {n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


def change(folder, edit):
    tensors = load_file(folder / SINGLE)
    edit(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def shard(folder):
    """Splits a single file into two shards with an index, as a hub checkpoint has them."""
    tensors = load_file(folder / SINGLE)
    names = sorted(tensors)
    (folder / SINGLE).unlink()
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
    weight_map = {n: file for file, part in parts.items() for n in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


@pytest.mark.parametrize("name", ["llada-tiny", "dream-tiny", "fast-dllm-v2-tiny", "sdar-tiny", "wedlm-tiny"])
def test_a_round_trip_keeps_names_bits_and_config(name, tmp_path):
    read = load_model(MODELS / name)
    save(read.model, tmp_path / "out", read.config_json, like=read.folder)
    assert_same(stored(tmp_path / "out"), stored(MODELS / name))
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == read.config_json
    assert_same(load_model(tmp_path / "out").model.state_dict(), read.model.state_dict())
    extras = {"generation_config.json"} & {p.name for p in (MODELS / name).iterdir()}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"config.json", SINGLE} | extras


def test_shards_of_the_source_are_kept(copy, tmp_path):
    folder = copy("llada-tiny")
    weight_map = shard(folder)
    read = load_model(folder)
    save(read.model, tmp_path / "out", read.config_json, like=folder)
    assert json.loads((tmp_path / "out" / INDEX).read_text())["weight_map"] == weight_map
    for file in set(weight_map.values()):
        assert_same(load_file(tmp_path / "out" / file), load_file(folder / file))


def test_large_models_are_sharded_and_small_ones_replace_them(tmp_path):
    read = load_model(MODELS / "llada-tiny")
    save(read.model, tmp_path / "out", read.config_json, shard_bytes=200_000)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    assert_same(stored(tmp_path / "out"), stored(MODELS / "llada-tiny"))
    assert_same(load_model(tmp_path / "out").model.state_dict(), read.model.state_dict())
    (tmp_path / "out" / "notes.txt").write_text("mine")
    save(read.model, tmp_path / "out", read.config_json)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {SINGLE, "config.json", "notes.txt"}


def test_bfloat16_is_kept_bit_for_bit_and_named_in_the_config(tmp_path):
    read = load_model(MODELS / "dream-tiny", dtype="bfloat16")
    save(read.model, tmp_path / "half", read.config_json)
    again = load_model(tmp_path / "half", dtype="stored")
    assert again.config_json["torch_dtype"] == "bfloat16"
    assert_same(again.model.state_dict(), read.model.state_dict())
    wide = load_model(tmp_path / "half").model
    assert {p.dtype for p in wide.parameters()} == {torch.float32}


def test_a_tied_head_that_is_stored_is_checked_and_written_back(copy, tmp_path):
    folder = copy("fast-dllm-v2-tiny")
    change(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    read = load_model(folder)
    save(read.model, tmp_path / "out", read.config_json, like=folder)
    assert_same(stored(tmp_path / "out"), stored(folder))
    change(folder, lambda t: t["lm_head.weight"].add_(1))
    with pytest.raises(UnmaskError, match=r"ties the head.*lm_head\.weight"):
        load_model(folder)


def test_nothing_half_written_stays_behind(tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    read = load_model(MODELS / "llada-tiny")
    monkeypatch.setattr("unmask.models.writing.save_file", fail)
    with pytest.raises(UnmaskError, match="No space left"):
        save(read.model, tmp_path / "out", read.config_json)
    assert list(tmp_path.iterdir()) == []


def test_saving_over_the_source_folder_works(copy):
    folder = copy("llada-tiny")
    before = stored(folder)
    read = load_model(folder)
    save(read.model, folder, read.config_json, like=folder)
    assert_same(stored(folder), before)
    assert_same(_named_tensors(read.model, None), before)


def test_a_shape_that_differs_names_tensor_file_and_both_shapes(copy):
    folder = copy("llada-tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "mlp_hidden_size": 96}))
    with pytest.raises(UnmaskError, match=r"ff_\w+\.weight is \[.*\] in model\.safetensors, \[.*\] by config\.json"):
        load_model(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), "lack model.norm.weight"),
        (lambda t: t.update(extra=torch.zeros(2)), "also hold extra"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(64, dtype=torch.int8)}), "stored as I8"),
    ],
    ids=["missing", "surplus", "dtype"],
)
def test_tensors_that_do_not_fit_are_named(copy, edit, message):
    folder = copy("dream-tiny")
    change(folder, edit)
    with pytest.raises(UnmaskError, match=message):
        load_model(folder)


def test_llama_names_in_a_llada_checkpoint_do_not_count(copy):
    folder = copy("llada-tiny")
    change(folder, lambda t: t.update({"model.norm.weight": t["model.transformer.ln_f.weight"].clone()}))
    with pytest.raises(UnmaskError, match=r"also hold model\.norm\.weight"):
        load_model(folder)


def test_saved_rotary_constants_are_ignored(copy):
    folder = copy("dream-tiny")
    change(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    load_model(folder)


@pytest.mark.parametrize("keep", [0, 5, 1000, -100])
def test_a_truncated_file_is_named(copy, keep):
    folder = copy("dream-tiny")
    content = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(content[:keep])
    with pytest.raises(UnmaskError, match=r"model\.safetensors is damaged"):
        load_model(folder)


def test_a_missing_shard_is_named(copy):
    folder = copy("dream-tiny")
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UnmaskError, match="names model-00002-of-00002"):
        load_model(folder)


def test_an_index_must_agree_with_its_shards(copy):
    folder = copy("dream-tiny")
    weight_map = shard(folder)
    for broken in ({}, {**weight_map, "model.norm.weight": "../model-00001-of-00002.safetensors"}):
        (folder / INDEX).write_text(json.dumps({"weight_map": broken}))
        with pytest.raises(UnmaskError, match=INDEX):
            load_model(folder)
    swapped = {n: f"model-0000{3 - int(f[10])}-of-00002.safetensors" for n, f in weight_map.items()}
    (folder / INDEX).write_text(json.dumps({"weight_map": swapped}))
    with pytest.raises(UnmaskError, match="does not hold it"):
        load_model(folder)


def test_pickled_weights_are_not_read(copy):
    folder = copy("dream-tiny")
    (folder / SINGLE).rename(folder / "pytorch_model.bin")
    with pytest.raises(UnmaskError, match=r"pytorch_model\.bin.*\.safetensors"):
        load_model(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UnmaskError, match=r"no model\.safetensors"):
        load_model(folder)


def test_a_missing_or_broken_config_is_named(copy):
    folder = copy("dream-tiny")
    (folder / "config.json").write_text("{")
    with pytest.raises(UnmaskError, match=r"cannot read .*config\.json"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UnmaskError, match=r"no config\.json"):
        load_model(folder)


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/folder", "nowhere", "a/b/c", Path("some/folder")])
def test_a_folder_that_does_not_exist_is_not_looked_up(source):
    with pytest.raises(UnmaskError, match="no folder"):
        resolve_source(source)


def test_an_uncached_hub_name_offline_is_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UnmaskError, match="someone/something is not cached") as caught:
        resolve_source("someone/something")
    assert "\n" not in str(caught.value)


def test_an_unknown_dtype_names_the_nearest():
    with pytest.raises(UnmaskError, match="did you mean 'bfloat16'"):
        load_model(MODELS / "dream-tiny", dtype="bfloat")


def test_overrides_reach_the_family():
    family = load_model(MODELS / "fast-dllm-v2-tiny", mask_token_id=190, eos_token_id=3).family
    assert (family.mask_id, family.eos_ids) == (190, (3,))


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(UnmaskError, match="no device cuda:99"):
        load_model(MODELS / "dream-tiny", device="cuda:99")
    with pytest.raises(UnmaskError, match="unknown device 'gpu'"):
        load_model(MODELS / "dream-tiny", device="gpu")
    assert load_model(MODELS / "dream-tiny", device="cpu:0").model.lm_head.weight.device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_stored_dtype_is_kept_and_logits_agree():
    from unmask.attention.dense import DenseAttention
    from unmask.layout import full

    here, there = load_model(MODELS / "dream-tiny").model, load_model(MODELS / "dream-tiny", device="cuda").model
    layout, tokens = full(6).batch(1), torch.arange(6).unsqueeze(0)
    on_gpu = layout.to("cuda")
    ours = there(tokens.cuda(), on_gpu.positions, DenseAttention(on_gpu))
    torch.testing.assert_close(ours.cpu(), here(tokens, layout.positions, DenseAttention(layout)), rtol=1e-3, atol=1e-2)
