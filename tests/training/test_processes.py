"""Several processes: replicated or sharded, a run gives the losses of one process, and goes on after it was killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from processes import killed, together
from tokenizers_made import without_mask

from unmask.models.checkpoint import load_model
from unmask.training.log import read_log
from unmask.training.loop import run

DIFFUSION = {"name": "fast_dllm_v2", "block_size": 16, "clean_weight": 1.0}


def losses(config):
    return [e["loss"] for e in read_log(Path(config.output) / "log.jsonl") if "loss" in e]


def figures(config):
    return read_log(Path(config.output) / "log.jsonl")[-1]


def weights(config):
    return load_model(config.output).model.state_dict()


@pytest.mark.parametrize("shard", [False, True], ids=["replicated", "sharded"])
def test_two_processes_give_the_losses_of_one(tiny, shard):
    same = {"recipe": DIFFUSION, "decode_problems": 3, "decode_tokens": 8}
    one, two = tiny("one", steps=2, **same), tiny("two", steps=2, **same, shard=shard, rows_per_forward=1)
    run(one)
    together(2, lambda: run(two))
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    for name, value in figures(one).items():
        assert name == "minutes" or figures(two)[name] == pytest.approx(value, rel=1e-4), name
    for name, tensor in weights(one).items():
        assert (tensor - weights(two)[name]).abs().mean() < 1e-5, name


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["replicated", "sharded"])
def test_a_killed_run_of_two_processes_goes_on_as_if_nothing_had_happened(tiny, shard):
    same = {"recipe": DIFFUSION, "shard": shard, "schedule": "constant", "save_every": 2, "ema": 0.9}
    through = tiny("through", steps=4, **same)
    together(2, lambda: run(through))
    stopped = tiny("stopped", steps=1000, **same)
    killed(lambda: run(stopped), Path(stopped.output) / "log.jsonl", steps=3, count=2)
    resumed = tiny("stopped", steps=4, resume=True, **same)
    together(2, lambda: run(resumed))
    assert losses(resumed) == losses(through)
    for name, tensor in weights(through).items():
        assert torch.equal(tensor, weights(resumed)[name]), name


def test_a_state_of_two_sharded_processes_is_read_by_one(tiny):
    same = {"schedule": "constant", "save_every": 2}
    one = tiny("one", steps=3, **same)
    run(one)
    two = tiny("two", steps=2, shard=True, **same)
    together(2, lambda: run(two))
    resumed = tiny("two", steps=3, resume=True, **same)
    run(resumed)
    assert losses(resumed) == pytest.approx(losses(one), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["replicated", "sharded"])
def test_adapters_and_a_new_mask_row_in_two_processes_are_those_of_one(tiny, tmp_path, shard):
    model = json.loads((tmp_path / "config.json").read_text())
    model.pop("mask_token_id", None)
    (tmp_path / "config.json").write_text(json.dumps(model))
    tokens = str(without_mask(tmp_path / "tokenizer"))
    base = tiny("base", steps=2, tokenizer=tokens)
    run(base)
    same = {"model": None, "init": base.output, "tokenizer": tokens, "ema": 0.5}
    same |= {"recipe": DIFFUSION, "lora": {"rank": 4, "alpha": 16}, "rows_per_forward": 2, "learning_rate": 0.02}
    one, two = tiny("one", **same), tiny("two", shard=shard, decode_problems=2, decode_tokens=16, **same)
    run(one)
    together(2, lambda: run(two))
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(two)[name], tensor, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"recompute": True}, {"precision": "bf16"}], ids=["plain", "recomputed", "bf16"]
)
def test_a_teacher_is_sharded_as_well(tiny, options):
    changes = {"architectures": ["DreamModel"], "model_type": "Dream"}
    same = {"recipe": {"name": "d2f", "shift": True, "block_size": 16}, "config_changes": changes}
    one, two = tiny("one", **same), tiny("two", shard=True, **same, **options)
    run(one)
    together(2, lambda: run(two))
    assert losses(two) == pytest.approx(losses(one), rel=1e-2 if "precision" in options else 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["replicated", "sharded"])
def test_torchrun_starts_a_run(tiny, tmp_path, shard):
    config = tiny("out", shard=shard)
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(asdict(config)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "unmask.training"]
    source = Path(__file__).parents[2] / "src"
    done = subprocess.run(
        [*launch, str(path)],
        env={**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(losses(config)) == 4
