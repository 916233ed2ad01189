"""The floor of a step: bytes and operations counted on real networks, ceilings, and shapes with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dummies import CONFIG, tiny_config, tiny_dummy
from torch.utils.flop_counter import FlopCounterMode

from checkpoints import tiny
from unmask import UnmaskError
from unmask.bench import roofline
from unmask.bench.dummy import SHAPES, dummy, endless, has_no_weights
from unmask.bench.roofline import Ceilings, Work, ceilings, work
from unmask.models.config import ModelConfig


def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention over the window alone, with every head's keys at hand."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v


@pytest.mark.parametrize(("rows", "window", "asked"), [(1, 1, 1), (3, 8, 8), (2, 8, 3)])
def test_operations_are_those_of_a_forward(rows: int, window: int, asked: int) -> None:
    model = tiny_dummy().model
    tokens = torch.zeros(rows, window, dtype=torch.int64)
    wanted = torch.zeros(rows, asked, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(tokens, tokens, attend, wanted)
    assert work(model.config, rows, window, 0, asked).operations == counter.get_total_flops()


def test_attention_counts_the_context() -> None:
    config = tiny_dummy().model.config
    more = work(config, 2, 4, 100, 4).operations - work(config, 2, 4, 0, 4).operations
    assert more == config.num_layers * config.num_heads * 2 * 4 * 100 * config.head_dim * 2 * 2


def test_bytes_are_those_of_the_projections() -> None:
    model = tiny_dummy().model
    every = sum(w.numel() for name, w in model.named_parameters() if w.dim() == 2 and "embed" not in name)
    assert work(model.config, 1, 1, 9, 1, item=4).bytes == 4 * every
    rounded = work(model.config, 1, 1, 9, 1, item=4, quantised=True)
    assert rounded.bytes == every
    assert rounded.operations8 == 2 * every
    assert rounded.operations + rounded.operations8 == work(model.config, 1, 1, 9, 1).operations


def test_the_shape_that_counts_reads_14_gigabytes() -> None:
    # Qwen2.5-7B has 7.616e9 parameters, of which 0.545e9 are the embedding, which no step reads as a whole.
    config = ModelConfig.from_json(SHAPES["fast-dllm-v2-7b"])
    assert work(config, 1, 1, 1024, 1).bytes == pytest.approx(2 * (7.616e9 - 0.545e9), rel=1e-3)


def test_the_floor_is_the_larger_time() -> None:
    can = Ceilings(copy=10.0, product=100.0, product8=200.0)
    assert (Work(20, 100).floor(can), Work(20, 100).bound(can)) == (2.0, "bytes")
    assert (Work(20, 900).floor(can), Work(20, 900).bound(can)) == (9.0, "operations")
    assert Work(20, 100, 400).floor(can) == 3.0
    assert Work(20, 100, 400).floor(Ceilings(10.0, 100.0)) == 5.0  # no rate of its own: that of the other products


def test_only_dense_transformers_have_a_floor() -> None:
    for name in ("llada-moe-tiny", "mdlm-dit-tiny"):
        with pytest.raises(UnmaskError, match="dense transformers"):
            work(tiny(name).model.config, 1, 1, 1, 1)


def test_ceilings_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(roofline.SIZES, "cpu", (1 << 20, 64))
    can = ceilings(torch.device("cpu"), torch.float32, quantised=True)
    assert 1e7 < can.copy < 1e13 and 1e7 < can.product < 1e14 and can.product8 is None
    times = iter([1.0, 2.0, 9.0, 3.0, 3.0])
    monkeypatch.setattr(roofline, "_on_host", lambda call: next(times))
    assert roofline.seconds(torch.device("cpu"), lambda: None, repeats=5) == 3.0


def test_a_dummy_has_its_shape_and_no_end(tmp_path: Path) -> None:
    lm = tiny_dummy()
    assert lm.facts.eos_ids == () and lm.facts.mask_id == 63 and lm.model.config.num_layers == 2
    logits = lm.model(*[torch.arange(8)[None]] * 2, attend)
    assert logits.isfinite().all() and logits.std() > 0
    again, other = tiny_dummy(), tiny_dummy(seed=1)
    assert torch.equal(again.model.embedding, lm.model.embedding)
    assert not torch.equal(other.model.embedding, lm.model.embedding)
    nano = tiny("fast-dllm-v2-tiny")
    assert nano.facts.eos_ids and endless(nano).facts.eos_ids == () and endless(nano).model is nano.model
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert has_no_weights(str(tmp_path)) and has_no_weights(tiny_config()) and has_no_weights("dream-7b")
    (tmp_path / "model.safetensors").touch()
    assert not has_no_weights(str(tmp_path)) and not has_no_weights("nano") and not has_no_weights("some/model")


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_known_shapes_are_configs_with_mask_or_none(name: str) -> None:
    from unmask.models.families import resolve

    config, family = ModelConfig.from_json(SHAPES[name]), resolve(SHAPES[name])
    assert (family.mask_id is None) == name.startswith("qwen")
    assert config.num_heads * config.head_dim == config.hidden_size


def test_mistakes_of_dummies(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    for source, message in (("qwen2.5-7", "did you mean 'qwen2.5-7b'"), (str(bad), "cannot read")):
        with pytest.raises(UnmaskError, match=message):
            dummy(source, device="cpu", dtype=torch.float32)
    mdlm = Path(__file__).parents[1] / "golden" / "models" / "mdlm-dit-tiny" / "config.json"
    with pytest.raises(UnmaskError, match="made for transformers"):
        dummy(str(mdlm), device="cpu", dtype=torch.float32)
