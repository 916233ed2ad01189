"""Each mistake a user can make: one line on stderr, exit code 2, nothing on stdout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from cli_parts import run
from safetensors.torch import load_file, save_file

from checkpoints import GOLDEN

MODELS = GOLDEN / "models"
PROMPT = ["--ids", "5 6 7"]


def copy(name: str, target: Path) -> Path:
    shutil.copytree(MODELS / name, target)
    for file in target.iterdir():
        file.chmod(0o644)
    return target


def broken(kind: str, tmp_path: Path) -> list[str]:
    """The arguments of a command that meets the mistake."""
    folder = copy("qwen2-tiny", tmp_path / "model")
    weights, config = folder / "model.safetensors", folder / "config.json"
    if kind == "missing":
        weights.unlink()
    if kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    if kind == "misfit":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": 96}))
    if kind == "family":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": ["Qwen9ForCausalLM"]}))
    if kind == "nan":
        tensors = load_file(weights)
        tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.nan
        save_file(tensors, weights, metadata={"format": "pt"})
    if kind == "adapter":
        return ["generate", str(MODELS / "dream-tiny"), *PROMPT, "--adapter", str(MODELS / "llada-tiny-train-lora")]
    return ["generate", str(folder), *PROMPT]


QWEN = ["generate", str(MODELS / "qwen2-tiny")]
LLADA = ["generate", str(MODELS / "llada-tiny"), *PROMPT]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*QWEN, *PROMPT, "-m", "autoregresive"], "did you mean 'autoregressive'"),
        ([*LLADA, "-m", "d2f", "--set", "treshold=0.5"], "did you mean 'threshold'"),
        ([*LLADA, "-m", "d2f", "--set", "add_threshold=7"], "between 0.0 and 1.0, not 7"),
        ([*LLADA, "--temperature", "-1"], "temperature must be at least 0"),
        ([*QWEN, *PROMPT, "-m", "d2f"], "has no mask token; use autoregressive"),
        ([*LLADA, "-m", "autoregressive"], "predicts masked tokens in place"),
        ("missing", "no model.safetensors"),
        ("truncated", "is damaged or incomplete"),
        ("misfit", "config does not fit the weights"),
        ("adapter", "llada-tiny-train"),
        ([*QWEN, "--ids", " ".join(["5"] * 1100)], "the context of this checkpoint is 1024"),
        ([*QWEN, "--ids", ""], "the prompt is empty"),
        (["generate", "nano", ""], "the prompt is empty"),
        ("family", "unknown checkpoint family 'Qwen9ForCausalLM'; did you mean 'Qwen"),
        (["generate", "someone/never-downloaded", "Hi"], "the hub cannot be reached"),
        ("nan", "the input of layer 2 is already NaN or infinite at position 0"),
        (["generate", "./nowhere", "Hi"], "no folder ./nowhere"),
        ([*QWEN, *PROMPT, "--device", "cuda9"], "unknown device 'cuda9'"),
        ([*QWEN, *PROMPT, "--dtype", "float31"], "did you mean 'float32'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = run(*(broken(arguments, tmp_path) if isinstance(arguments, str) else arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("unmask: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
