"""`train` by a recipe's name, `train --dry-run`, `train --resume`, and `export`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from unmask.cli.app import app
from unmask.training.config import from_mapping
from unmask.training.estimate import estimate

ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "configs" / "nano" / "tokenizer"
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def run(*arguments: str):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    nano = json.loads((ROOT / "configs" / "nano" / "model" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**nano, **SIZES, "num_key_value_heads": 2}))
    values = {
        "model": tmp_path / "config.json",
        "tokenizer": TOKENIZER,
        "output": tmp_path / "out",
        "task": "lists:remove",
        "problems": 40,
        "eval_problems": 4,
        "row_tokens": 112,
        "rows_per_step": 4,
        "rows_per_forward": 2,
        "steps": 2,
        "save_every": 1,
        "warmup_steps": 1,
        "workers": 1,
        "decode_problems": 0,
        "plot": "false",
    }
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def test_a_recipe_is_trained_by_its_name_resumed_and_exported(options: list[str], tmp_path: Path) -> None:
    first = run("train", "autoregressive", *options)
    assert first.exit_code == 0, first.output
    assert "validation_loss" in first.stdout
    assert "resume: true" in run("train", "autoregressive", *options).stderr
    more = run("train", "autoregressive", *options, "--set", "steps=3", "--resume", "--json")
    assert json.loads(more.stdout)["step"] == 3
    done = run("export", tmp_path / "out", tmp_path / "new", "--json")
    assert json.loads(done.stdout) == {"step": 3, "form": "merged", "folder": str(tmp_path / "new")}
    assert (tmp_path / "new" / "model.safetensors").is_file()
    again = run("export", tmp_path / "out", tmp_path / "new")
    assert again.exit_code == 2 and "nothing is overwritten" in again.stderr
    adapter = run("export", tmp_path / "out", tmp_path / "other", "--adapter")
    assert adapter.exit_code == 2 and "leave out --adapter" in adapter.stderr


def test_a_dry_run_says_what_it_will_take(options: list[str], tmp_path: Path) -> None:
    done = run("train", "fast_dllm_v2", *options, "--set", "recipe.block_size=16", "--dry-run", "--json")
    facts = json.loads(done.stdout)
    assert not (tmp_path / "out").exists()
    assert facts["parameters"] == facts["trained"] == 2048 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32) + 32 + 2 * 96
    assert (facts["samples"], facts["rows"], facts["steps"]) == (40, 40, 2)
    assert facts["tokens_per_step"] == 4 * 2 * 2 * 112  # two views of doubled rows
    assert facts["memory_gib"]["sum"] > 0


def test_sharding_divides_the_estimate(options: list[str], tmp_path: Path) -> None:
    values = dict(part.split("=", 1) for part in options[1::2])
    values |= {"recipe": {"name": "autoregressive"}, "plot": False, "rows_per_forward": 1}
    one = estimate(from_mapping(values), processes=1)
    four = estimate(from_mapping({**values, "shard": True}), processes=4)
    name = "weights, gradients, moments"
    assert four["memory_gib"][name] <= one["memory_gib"][name]
    assert four["tokens_per_step"] == one["tokens_per_step"]


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    for arguments, message in [
        (["train", "fast_dlm_v2"], "did you mean 'fast_dllm_v2'?"),
        (["train", "fast_dllm_v2"], "lacks 'output'"),
        (["train", "fast_dllm_v2", "--set", f"output={tmp_path}"], "give either model"),
        (["train", "masked", "--set", "a"], "not of the form key=value"),
        (["export", str(tmp_path), str(tmp_path / "x")], "holds no last state to export"),
    ]:
        result = run(*arguments)
        assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1
