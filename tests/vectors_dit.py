"""The official outputs of the tiny DiTs and their discriminator against ours: `check_dit(golden, "mdlm-dit-tiny")`."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from unmask.attention.dense import DenseAttention
from unmask.decoding.mdlm import subs
from unmask.layout import Layout, block_causal, doubled, full
from unmask.models import load_model
from unmask.models.discriminator import Discriminator, load_discriminator
from unmask.models.dit import DiT

Outputs = Iterator[tuple[str, Tensor]]
TOLERANCE = 1e-4


def check_dit(folder: Path, name: str) -> list[str]:
    """The failures, one line each; empty when all of the record `<name>-logits.json` in `folder` agrees."""
    record = json.loads((folder / f"{name}-logits.json").read_text())
    official = load_file(folder / f"{name}-logits.safetensors")
    failures = []
    with torch.inference_mode():
        ours = dict(DITS[name](folder / "models" / name, record, official))
    official.pop("soft_input", None)
    for key in sorted(official.keys() ^ ours.keys()):
        failures.append(f"{key}: {'not compared' if key in official else 'not recorded'}")
    for key in sorted(official.keys() & ours.keys()):
        # The rows after SUBS hold -1e6, of which float32 has no 1e-4.
        excess = (ours[key] - official[key]).abs() - TOLERANCE - 1e-6 * official[key].abs()
        if not float(excess.max()) <= 0:
            failures.append(f"{key}: differs by {float(excess.max()):.2g} more than allowed")
    return failures


def network(folder: Path, file: str = "model.safetensors") -> DiT:
    """A tiny DiT, or the one in another file of its folder (DiDi's teacher)."""
    with tempfile.TemporaryDirectory() as place:
        shutil.copyfile(folder / "config.json", Path(place) / "config.json")
        shutil.copyfile(folder / file, Path(place) / "model.safetensors")
        model = load_model(place).model
    assert isinstance(model, DiT)
    return model


def discriminator(folder: Path) -> Discriminator:
    return load_discriminator(str(folder), torch.device("cpu"))


def call(model: DiT, tokens: Tensor, layout: Layout, sigma: float | Tensor | None = None) -> Tensor:
    """Raw logits at a noise level; None: as every method calls it."""
    level = None if sigma is None else torch.as_tensor(sigma, dtype=torch.float32).expand(len(tokens))
    positions = layout.positions.expand_as(tokens)
    return model.head(model.hidden(tokens, positions, DenseAttention(layout), sigma_B=level))


def _mdlm(folder: Path, record: dict[str, Any], official: dict[str, Tensor]) -> Outputs:
    model = network(folder)
    for name, ids in record["inputs"].items():
        tokens = torch.tensor(ids)
        layout = full(tokens.shape[1])
        plain = model(tokens, layout.positions.expand_as(tokens), DenseAttention(layout))
        yield f"{name}.sigma0", plain
        for sigma in (0.7, 5.0):
            yield f"{name}.sigma{sigma:g}", call(model, tokens, layout, sigma)
        if f"{name}.subs" in official:
            yield f"{name}.subs", subs(plain, tokens, record_mask(folder))


def _bd3lm(folder: Path, record: dict[str, Any], official: dict[str, Tensor]) -> Outputs:
    model = network(folder)
    block = json.loads((folder / "config.json").read_text())["block_size"]
    for name, entry in record["inputs"].items():
        if name.startswith("train."):
            noisy, clean = torch.tensor(entry["noisy"]), torch.tensor(entry["clean"])
            length = noisy.shape[1]
            yield name, call(model, torch.cat([noisy, clean], 1), doubled(length, block))[:, :length]
        else:
            tokens = torch.tensor(entry)
            yield name, call(model, tokens, block_causal(tokens.shape[1], block))


def _didi(folder: Path, record: dict[str, Any], official: dict[str, Tensor]) -> Outputs:
    tokens, judge = torch.tensor(record["input"]), discriminator(folder)
    layout = full(tokens.shape[1])
    networks = {"student": network(folder), "teacher": network(folder, "teacher.safetensors")}
    inputs = {"discriminator": tokens, "discriminator_soft": official["soft_input"]}
    for sigma in (0.0, 0.7, 3.0):
        for name, model in networks.items():
            yield f"{name}.sigma{sigma:g}", call(model, tokens, layout, sigma)
        for name, given in inputs.items():
            level = torch.full((len(given),), sigma)
            positions = layout.positions.expand(len(given), -1)
            out = judge(judge.embed(given), level, positions, DenseAttention(layout))
            yield f"{name}.sigma{sigma:g}", out.unsqueeze(-1)


def record_mask(folder: Path) -> int:
    return json.loads((folder / "config.json").read_text())["vocab_size"] - 1


DITS: dict[str, Callable[[Path, dict[str, Any], dict[str, Tensor]], Outputs]] = {
    "mdlm-dit-tiny": _mdlm,
    "bd3lm-dit-tiny": _bd3lm,
    "didi-dit-tiny": _didi,
}
