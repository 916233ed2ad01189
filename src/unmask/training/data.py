"""The data of a run: from the config's keys to packed rows.

    task: wordmath | lists | lists:shuffle | grammar     made by program (see unmask.tasks)
    data: FILE or FOLDER                                 JSON lines, JSON, Parquet (see sources.chat, sources.tables)

Problems and chats are put in the tokenizer's chat format; the answer alone is learnt. The grammar has ids of its own
and no tokenizer: one sample fills a row. A file of `unmask distil` holds token ids, and trajectories if asked for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig
from unmask.tasks import Split
from unmask.tasks.grammar import Grammar
from unmask.training.packing import Format, Packed, build_batch, pack
from unmask.training.samples import Samples, fit
from unmask.training.setup import load_tokenizer
from unmask.training.sources.files import Reading
from unmask.training.sources.problems import encode_problems, grammar_samples, load_samples
from unmask.training.sources.trajectories import NoiseSchedule

if TYPE_CHECKING:
    from unmask.training.config import TrainConfig
    from unmask.training.recipes.base import Recipe

__all__ = [
    "Format",
    "Marks",
    "Packed",
    "Samples",
    "build_batch",
    "encode_problems",
    "load_data",
    "load_samples",
    "make_format",
    "marks_of",
    "pack",
]


@dataclass(frozen=True, slots=True)
class Marks:
    """Ids of the tokens that mean no text; None where there is none."""

    mask_id: int | None
    pad_id: int
    end_id: int | None


def marks_of(config: TrainConfig) -> Marks:
    """From the tokenizer, or from the grammar, which has none. Padding is the mask, as training hides text, too."""
    if config.data is None and config.task == "grammar":
        return Marks(Grammar().mask_id, Grammar().mask_id, None)
    if config.tokenizer is None:
        raise UnmaskError("this data needs a tokenizer; name its folder under tokenizer")
    tokenizer = load_tokenizer(Path(config.tokenizer))
    mask, pad, end = tokenizer.mask_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id
    return Marks(mask, next(i for i in (mask, pad, end) if i is not None), end)


def make_format(config: TrainConfig, recipe: Recipe, marks: Marks) -> Format:
    """How samples lie in rows under this config and recipe."""
    return Format(
        length=config.row_tokens,
        block=recipe.block,
        pad_id=marks.pad_id,
        end_id=marks.end_id,
        fill_end=config.fill_end,
        anchored=recipe.anchored,
        answer_tokens=config.answer_tokens,
        extra_ends=config.extra_ends,
        context=_context(config),
    )


def load_data(config: TrainConfig, recipe: Recipe, form: Format) -> tuple[Samples, Samples]:
    """The samples to train on and those held out. Call it before anything touches a GPU (see `workers.spread`).

    Raises:
        UnmaskError: data that cannot be read, or does not suit the recipe; names file and row.
    """
    schedule = NoiseSchedule.of(config.drafts, config.seed) if recipe.needs_drafts else None
    if config.data is None:
        if schedule is not None:
            raise UnmaskError("this recipe needs trajectories: data made by `unmask distil --trajectories`")
        held = _of_task(config, form, "validation", config.eval_problems)
        return _of_task(config, form, "train", config.problems), held
    reading = Reading(
        tokenizer=None if config.tokenizer is None else Path(config.tokenizer),
        form=form,
        columns=config.columns,
        turns=config.turns,
        too_long=config.too_long,
        schedule=schedule,
        seed=config.seed,
        workers=config.workers,
    )
    if config.validation_data is None:
        train, held = reading.split(config.data, config.problems, config.eval_problems)
    else:
        train = reading.load(config.data, config.problems)
        held = reading.load(config.validation_data, config.eval_problems)
    if schedule is not None and (train.drafts is None or held.drafts is None):
        raise UnmaskError(f"this recipe needs trajectories, and {config.data} holds none; see `unmask distil`")
    return train, held


def _of_task(config: TrainConfig, form: Format, split: Split, count: int) -> Samples:
    if config.task == "grammar":
        samples = grammar_samples(Grammar(), config.row_tokens, split, count, config.seed)
    else:
        assert config.tokenizer is not None
        samples = load_samples(config.task, split, count, config.seed, Path(config.tokenizer), config.workers)
    return fit(samples, form, config.task, config.too_long)


def _context(config: TrainConfig) -> int:
    """Positions of the model, 0 where its config is not found (which building it will say)."""
    source = Path(config.model or Path(config.init or "") / "config.json")
    if not source.is_file():
        return 0
    return ModelConfig.from_json({**json.loads(source.read_text()), **config.config_changes}).max_positions
