"""Which token is the mask, and how a model that has none gets one.

A recipe that hides tokens needs a mask. It is, in this order: the recipe's own option `mask_id`; what the checkpoint
and its family say, as the decoder will read it; the tokenizer's mask token; else a new token, which is put into the
tokenizer. Its embedding is a row that no token uses where the vocabulary has room, else the embedding grows. Either way
the row starts as the mean of the others and is trained: in full fine-tuning as part of the embedding, with LoRA as a
vector of its own (see `Objective.train_mask_row`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.errors import UnmaskError
from unmask.models.checkpoint import empty_model
from unmask.models.config import ModelConfig
from unmask.models.families import resolve
from unmask.models.hub import read_json_if_there, read_tokenizer_facts
from unmask.models.network import Network
from unmask.models.rope import Rope
from unmask.training.recipes import recipe_class

TOKEN = "<|mask|>"
MULTIPLE = 64
"""An embedding grows to a multiple of so many rows, which matrix kernels like."""


@dataclass(frozen=True, slots=True)
class Mask:
    """The mask token of a run.

    Args:
        id: None where there is none, and the recipe needs none.
        vocab: rows that the embedding has to have; 0: as many as it has.
        used: rows that belong to tokens, where the mask is new.
        said: what was done, in one line; empty where nothing was.
    """

    id: int | None
    vocab: int = 0
    used: int = 0
    said: str = ""

    @property
    def new(self) -> bool:
        """Whether the model has never seen this token."""
        return bool(self.used)


def find_mask(
    recipe: Mapping[str, Any], config_json: Mapping[str, Any], folder: Path | None, tokenizer: Any, tokens: Path | None
) -> Mask:
    """The mask token; one is added to `tokenizer` if it must be.

    Args:
        recipe: the config's `recipe` entry.
        config_json: of the model.
        folder: of the checkpoint that the run starts from, if it does.
        tokenizer: transformers' object, None for data that are token ids.
        tokens: its folder.
    """
    if "mask_id" in recipe:
        return Mask(recipe["mask_id"])
    generation = (None if folder is None else read_json_if_there(folder / "generation_config.json")) or {}
    facts = None if tokens is None else read_tokenizer_facts(tokens)
    said = [source["mask_token_id"] for source in (config_json, generation) if source.get("mask_token_id") is not None]
    stated = said[0] if said else resolve(config_json, generation, facts).mask_id
    if stated is not None and (said or not _ordinary(tokenizer, stated)):
        return Mask(stated)
    if tokenizer is None or tokenizer.mask_token_id is not None or not needs_mask(recipe):
        return Mask(None if tokenizer is None else tokenizer.mask_token_id)
    return _added(tokenizer, int(config_json.get("embedding_size") or config_json["vocab_size"]))


def needs_mask(recipe: Mapping[str, Any]) -> bool:
    """Whether the recipe of a config's entry hides tokens."""
    kind: Any = recipe_class(recipe.get("name"))
    return "mask_id" in {f.name for f in fields(kind)}


def _ordinary(tokenizer: Any, index: int) -> bool:
    """Whether the tokenizer uses an id for something else than a mask: the table of families speaks of tokens that a
    family's checkpoints have, which the tokenizer of a model that is to become one may not."""
    if tokenizer is None or index >= len(tokenizer) or index == tokenizer.mask_token_id:
        return False
    return "mask" not in str(tokenizer.convert_ids_to_tokens(index)).lower()


def _added(tokenizer: Any, vocab: int) -> Mask:
    used = len(tokenizer)
    tokenizer.add_special_tokens({"mask_token": TOKEN})
    index = int(tokenizer.mask_token_id)
    if index < used:
        return Mask(index, said=f"the tokenizer's token {TOKEN!r} (id {index}) is the mask")
    start = "its row starts as the mean of the others and is trained"
    if index < vocab:
        return Mask(index, vocab, used, f"added the mask token {TOKEN!r} as id {index}, an unused row; {start}")
    grown = -(-(index + 1) // MULTIPLE) * MULTIPLE
    said = f"added the mask token {TOKEN!r} as id {index}; the embedding grows from {vocab} to {grown} rows; {start}"
    return Mask(index, grown, used, said)


def with_rows(config_json: Mapping[str, Any], vocab: int) -> dict[str, Any]:
    """The config of a model whose embedding has so many rows."""
    key = "embedding_size" if config_json.get("embedding_size") else "vocab_size"
    return {**config_json, key: vocab}


@torch.no_grad()
def grown(network: Network, sizes: ModelConfig) -> Network:
    """The same network with further tokens, whose rows are the mean of the others."""
    larger = empty_model(sizes)
    due, state = larger.state_dict(), network.state_dict()
    for name, tensor in state.items():
        if due[name].shape != tensor.shape:
            rows = due[name].shape[0] - tensor.shape[0]
            mean = tensor.mean(0, keepdim=True)
            state[name] = torch.cat([tensor, mean.expand(rows, *tensor.shape[1:])])
    larger.load_state_dict(state, assign=True)
    for module in larger.modules():
        if isinstance(module, Rope):
            module.to_empty(device=network.device)
    return larger


@torch.no_grad()
def mean_row(embedding: Tensor, index: int, used: int | None = None) -> None:
    """Sets a row of the embedding to the mean of the others, or of the first `used`.

    A token that never occurred has been pushed by a tied head to where no hidden state points: a poor input.

    Raises:
        UnmaskError: there is no such row.
    """
    if not 0 <= index < len(embedding):
        raise UnmaskError(f"mask_id {index} is outside the vocabulary of {len(embedding)}")
    rows = torch.arange(len(embedding), device=embedding.device)
    others = (rows != index) & (rows < (len(embedding) if used is None else used))
    embedding[index] = embedding[others].mean(0)
