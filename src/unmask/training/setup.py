"""What a run starts from: its tokenizer, mask token and config.json, then the network itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from unmask.errors import UnmaskError
from unmask.models.checkpoint import empty_model, load_weights, new_model
from unmask.models.config import ModelConfig, family_name
from unmask.models.families import resolve
from unmask.models.hub import read_json, read_json_if_there, read_tokenizer_facts, resolve_source
from unmask.models.network import Network
from unmask.training.config import TrainConfig
from unmask.training.mask import Mask, find_mask, grown, mean_row, needs_mask, with_rows
from unmask.training.recipes import make_recipe

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


@dataclass(frozen=True)
class Start:
    """What a run starts from, before its weights are read.

    Args:
        config: the run's, as `found` gives it.
        config_json: of the model that is trained, changes and mask token in it.
        source_json: of the checkpoint whose weights are read.
        tokenizer: None for data that are token ids; a mask token may have been added.
        mask: see `find_mask`.
    """

    config: TrainConfig
    config_json: dict[str, Any]
    source_json: dict[str, Any]
    tokenizer: Any
    mask: Mask

    @classmethod
    def of(cls, config: TrainConfig, mask_id: int | None = None) -> Start:
        """Reads the files that the config names.

        Args:
            mask_id: the mask of data that are token ids.

        Raises:
            UnmaskError: one that is missing, or does not say what is needed.
        """
        source = Path(config.model or Path(config.init or "") / "config.json")
        if not source.is_file():
            raise UnmaskError(f"there is no {source}")
        stated = {**read_json(source), **config.config_changes}
        renamed = make_recipe(config.recipe, mask_id=0).published_as(family_name(stated))
        # These only rename (architecture, block size); changes of the shape would not fit the weights.
        source_json = {**stated, **renamed, **config.config_changes}
        tokens = None if config.tokenizer is None else Path(config.tokenizer)
        tokenizer = None if tokens is None else load_tokenizer(tokens)
        folder = None if config.init is None else Path(config.init)
        mask = Mask(mask_id)
        if mask_id is None:
            mask = find_mask(config.recipe, source_json, folder, tokenizer, tokens)
        config_json = source_json
        if mask.vocab > ModelConfig.from_json(source_json).vocab_size:
            config_json = with_rows(source_json, mask.vocab)
        start = cls(config, config_json, source_json, tokenizer, mask)
        if mask.id is not None and needs_mask(config.recipe) and start.stated_mask != mask.id:
            start = replace(start, config_json={**config_json, "mask_token_id": mask.id})
        return start

    @property
    def folder(self) -> Path | None:
        """The checkpoint that the run starts from, None for one that trains from nothing."""
        return None if self.config.init is None else Path(self.config.init)

    @property
    def renamed(self) -> bool:
        """Whether the trained model is of another class than the checkpoint it starts from."""
        if self.folder is None:
            return False
        return family_name(read_json(self.folder / "config.json")) != family_name(self.config_json)

    @property
    def generation_json(self) -> dict[str, Any] | None:
        """The generation settings of the checkpoint that the run starts from."""
        return None if self.folder is None else read_json_if_there(self.folder / "generation_config.json")

    @property
    def stated_mask(self) -> int | None:
        """The mask token that whoever loads the checkpoint will find."""
        tokens = self.config.tokenizer
        facts = None if tokens is None else read_tokenizer_facts(Path(tokens))
        return resolve(self.config_json, self.generation_json, facts).mask_id


def found(config: TrainConfig) -> TrainConfig:
    """The config with hub names replaced by the folders they were fetched to, the checkpoint's tokenizer if no other
    is named."""
    init = None if config.init is None else resolve_source(config.init)
    tokenizer = None if config.tokenizer is None else resolve_source(config.tokenizer)
    has_ids = config.data is None and config.task == "grammar"
    if tokenizer is None and init is not None and not has_ids and (init / TOKENIZER_FILES[0]).is_file():
        tokenizer = init
    return replace(config, init=init and str(init), tokenizer=tokenizer and str(tokenizer))


def build_network(start: Start) -> Network:
    """The network in float32, new or from `init`, on the CPU."""
    config = start.config
    sizes = ModelConfig.from_json(start.config_json)
    if config.init is None:
        network = new_model(sizes)
        network.init_weights(generator=torch.Generator().manual_seed(config.seed))
    else:
        network = empty_model(ModelConfig.from_json(start.source_json))
        load_weights(network, Path(config.init), dtype=torch.float32)
        if start.config_json is not start.source_json and sizes.vocab_size != network.config.vocab_size:
            network = grown(network, sizes)
        if start.mask.new:
            assert start.mask.id is not None
            mean_row(network.embedding.detach(), start.mask.id, start.mask.used)
    if config.mask_init == "mean":
        if start.mask.id is None:
            raise UnmaskError("mask_init 'mean' needs a tokenizer with a mask token")
        mean_row(network.embedding.detach(), start.mask.id)
    return network.train()
