"""`bench.training`: operations counted by hand, rows filled exactly, the command's file and table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dummies import tiny_config, tiny_dummy, train_entry
from typer.testing import CliRunner

from unmask.bench import results, roofline, training
from unmask.cli.app import app
from unmask.errors import UnmaskError
from unmask.layout import causal
from unmask.training.recipes.base import Supervised, View


def test_operations_are_those_that_the_model_needs() -> None:
    lm = tiny_dummy()
    sizes = lm.model.config
    layers = lm.model.count_parameters() - 64 * 32 * (1 if sizes.tied_head else 2)
    entry = train_entry(lm, "autoregressive")
    # Two rows of 64 tokens, two samples in each, no padding; a quarter of each sample is prompt.
    assert entry["tokens"] == entry["forward_tokens"] == 128
    lengths = training.random_samples(2 * (training.WARM + 3), 64, 1, 2, 64).lengths.reshape(-1, 4)
    sees = (lengths * (lengths + 1) // 2)[training.WARM : training.WARM + 2].sum() / 2
    expected = 6 * layers * 128 + 6 * 64 * 32 * entry["supervised"] + 12 * 2 * 2 * 16 * sees
    assert entry["operations"] == pytest.approx(expected)
    assert entry["ms"] > 0 and len(entry["walls"]) == 2 and entry["mfu"] is None
    assert entry["of_product"] == pytest.approx(entry["achieved"] / 1e10)


def test_doubled_rows_count_both_halves_and_what_they_see() -> None:
    entry = train_entry(tiny_dummy(), "fast_dllm_v2", block_size=16)
    assert (entry["tokens"], entry["forward_tokens"]) == (128, 4 * 128)


def test_visible_pairs_leave_padding_out() -> None:
    layout = causal(6).batch(2).with_padding(torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool())
    tokens = torch.zeros(2, 6, dtype=torch.long)
    batch = Supervised.of(View(tokens, layout, tokens, torch.ones(2, 6), {}))
    assert training.visible_pairs(batch, torch.device("cpu")) == 10 + 21


def test_samples_fill_their_rows() -> None:
    samples = training.random_samples(5, 96, 16, 3, 64, drafts=True)
    assert len(samples) == 15 and (samples.lengths % 16 == 0).all() and (samples.prompts >= 16).all()
    assert samples.lengths.reshape(5, 3).sum(1).tolist() == [96] * 5 and samples.drafts is not None
    with pytest.raises(UnmaskError, match="do not hold 4 samples of two blocks"):
        training.random_samples(5, 96, 16, 4, 64)


def test_the_command_writes_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(roofline.SIZES, "cpu", (1 << 20, 64))
    file = tmp_path / "train.json"
    short = ["--row-tokens", "64", "--rows", "2", "--per-row", "2", "--steps", "2", "--precision", "fp32"]
    more = ["--set", "block_size=16", "--device", "cpu", "--out", str(file), "--kernels"]
    done = CliRunner().invoke(app, ["bench", "train", tiny_config(), *short, *more])
    assert done.exit_code == 0, done.output
    kept = results.read(file)
    assert kept["bench"] == "train" and kept["asked"]["recipe"] == "fast_dllm_v2"
    assert json.loads(done.stdout.splitlines()[-1]) == results.summary(kept)
    assert done.stdout.splitlines()[1].split()[:2] == ["processes", "ms"]
    assert any("backward" in kernel["name"] for kernel in kept["results"][0]["kernels"])
    for arguments, message in [
        (["--recipe", "fast_dllm"], "did you mean 'fast_dllm_v2'"),
        (["--precision", "fp16"], "unknown precision 'fp16'"),
        (["--device", "tpu"], "not on 'tpu'"),
    ]:
        wrong = CliRunner().invoke(app, ["bench", "train", tiny_config(), *short, "--device", "cpu", *arguments])
        assert wrong.exit_code == 2 and message in wrong.stderr
