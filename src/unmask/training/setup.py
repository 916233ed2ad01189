"""The two ends of a run: the network and tokenizer it starts from, the checkpoint it leaves."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from unmask.errors import UnmaskError
from unmask.models.checkpoint import DTYPES, empty_model, load_weights, new_model
from unmask.models.config import ModelConfig
from unmask.models.network import Network
from unmask.models.writing import save
from unmask.training.config import TrainConfig

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer as transformers reads it; it must name an end token."""
    from transformers import AutoTokenizer

    if not (folder / TOKENIZER_FILES[0]).is_file():
        raise UnmaskError(f"no {TOKENIZER_FILES[0]} in {folder}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.eos_token_id is None:
        raise UnmaskError(f"the tokenizer in {folder} names no eos_token")
    return tokenizer


def build_network(config: TrainConfig, mask_id: int | None) -> tuple[Network, dict[str, Any]]:
    """The network in float32 with its config.json, new or from `config.init`."""
    source = Path(config.model or Path(config.init or "") / "config.json")
    if not source.is_file():
        raise UnmaskError(f"there is no {source}")
    original = json.loads(source.read_text())
    config_json = {**original, **config.config_changes}
    # Some changes only rename (architecture, block size); those of the shape would not fit the weights.
    sizes = ModelConfig.from_json(config_json)
    if config.init is None:
        network = new_model(sizes)
        network.init_weights(generator=torch.Generator().manual_seed(config.seed))
    else:
        network = empty_model(sizes)
        load_weights(network, Path(config.init), dtype=torch.float32)
    if config.mask_init == "mean":
        _mean_mask(network, mask_id)
    return network.train(), config_json


@torch.no_grad()
def _mean_mask(network: Network, mask_id: int | None) -> None:
    """Sets the mask token's embedding to the mean of the others.

    A token that never occurred has been pushed by the tied head to where no hidden state points: a poor input.
    """
    if mask_id is None:
        raise UnmaskError("mask_init 'mean' needs a tokenizer with a mask token")
    weight = network.embedding
    others = torch.arange(len(weight)) != mask_id
    weight[mask_id] = weight[others].mean(0)


def save_checkpoint(network: Network, config_json: dict[str, Any], config: TrainConfig) -> None:
    """Writes weights, config.json and tokenizer to `config.output`."""
    folder = Path(config.output)
    final = copy.deepcopy(network).to(DTYPES[config.dtype])
    save(final, folder, {**config_json, "torch_dtype": config.dtype}, shard_bytes=config.shard_megabytes * 10**6)
    for name in TOKENIZER_FILES:
        shutil.copyfile(Path(config.tokenizer) / name, folder / name)
