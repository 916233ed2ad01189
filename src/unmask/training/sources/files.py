"""Samples from files: rows drawn for training and held out, encoded in several processes, each with its number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from unmask.errors import UnmaskError
from unmask.models.tokenizer import Tokenizer
from unmask.training.config import TooLong, Turns
from unmask.training.packing import Format
from unmask.training.samples import Ints, Samples, fit
from unmask.training.setup import load_tokenizer
from unmask.training.sources.chat import Chat, Pair, Row
from unmask.training.sources.problems import token_ids
from unmask.training.sources.tables import Table, open_tables
from unmask.training.sources.trajectories import NoiseSchedule, noisy_answer
from unmask.training.sources.workers import spread

_CHUNK = 2_000
HELD_SHARE = 10
"""At most one row in so many is held out."""


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Args:
        tokenizer: its folder; None: the files hold token ids.
        form: of the rows to come.
        columns: what the files call our columns.
        turns: see `Chat`.
        too_long: see `samples.fit`.
        schedule: which states of trajectories are shown; None: the data are answers alone.
        seed: of the order of rows.
        workers: see `spread`.
    """

    tokenizer: Path | None
    form: Format
    columns: Mapping[str, str] = field(default_factory=dict)
    turns: Turns = "each"
    too_long: TooLong = "refuse"
    schedule: NoiseSchedule | None = None
    seed: int = 0
    workers: int = 0

    def split(self, path: str, count: int, held: int) -> tuple[Samples, Samples]:
        """At most `count` rows of a file or folder to train on, and at most `held` others, all drawn by the seed."""
        tables = open_tables(path, self.columns)
        total = sum(map(len, tables))
        order = np.random.default_rng([self.seed, total]).permutation(total)
        aside = min(held, max(total // HELD_SHARE, 1))
        if total < 2 and held:
            raise UnmaskError(f"{path} holds {total} rows; one is held out, so at least 2 are needed")
        return self._load(tables, order[aside : aside + count]), self._load(tables, order[:aside])

    def load(self, path: str, count: int) -> Samples:
        """At most `count` rows of a file or folder, drawn by the seed."""
        tables = open_tables(path, self.columns)
        total = sum(map(len, tables))
        if not total:
            raise UnmaskError(f"{path} holds no rows")
        return self._load(tables, np.random.default_rng([self.seed, total]).permutation(total)[:count])

    def _load(self, tables: Sequence[Table], numbers: Ints) -> Samples:
        """The rows of these numbers, counted through all tables, in the order of the files."""
        if not len(numbers):
            return Samples.of([])
        bounds = np.cumsum([0, *map(len, tables)])
        parts = []
        for table, low, high in zip(tables, bounds, bounds[1:]):
            own = np.sort(numbers[(numbers >= low) & (numbers < high)]) - low
            if len(own):
                parts.append(fit(self._encoded(table, own.tolist()), self.form, table.name, self.too_long))
        return Samples.join(parts)

    def _encoded(self, table: Table, numbers: list[int]) -> Samples:
        chunks = [numbers[at : at + _CHUNK] for at in range(0, len(numbers), _CHUNK)]
        pieces = [Piece(table.name, table.layout, [n + 1 for n in c], table.take(c)) for c in chunks]
        if table.layout == "ids":
            self._check_tokens(pieces[0])
        elif self.tokenizer is None:
            raise UnmaskError(f"{table.name} holds text, which needs a tokenizer; name its folder under tokenizer")
        return Samples.join(spread(partial(encode, self), pieces, self.workers))

    def _check_tokens(self, piece: Piece) -> None:
        """Refuses ids of another tokenizer: the first row's prompt must be encoded as it was."""
        row = piece.rows[0]
        if self.tokenizer is None or "prompt" not in row:
            return
        if Tokenizer(load_tokenizer(self.tokenizer)).encode_prompt(row["prompt"]) != row["prompt_ids"]:
            raise UnmaskError(
                f"{piece.name} holds token ids of another tokenizer than the one in {self.tokenizer}; to train on its "
                "text, name the columns (columns: {prompt: prompt, response: response})"
            )


@dataclass(frozen=True)
class Piece:
    """Rows of a file with their numbers in it, from 1."""

    name: str
    layout: str
    numbers: list[int]
    rows: list[Row]

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        return zip(self.numbers, self.rows)

    @contextmanager
    def naming(self, number: int) -> Iterator[None]:
        """Puts the row before what is said to be wrong with it."""
        try:
            yield
        except UnmaskError as error:
            raise UnmaskError(f"row {number} of {self.name} {error}") from None


def encode(reading: Reading, piece: Piece) -> Samples:
    """The samples of some rows."""
    if piece.layout == "ids":
        return _from_ids(reading, piece)
    assert reading.tokenizer is not None
    inner = load_tokenizer(reading.tokenizer)
    chat = Chat(inner, reading.turns)
    pairs: list[Pair] = []
    numbers: list[int] = []
    for number, row in piece:
        with piece.naming(number):
            found = chat.pairs(row)
        pairs += found
        numbers += [number] * len(found)
    encoded = {raw: iter(token_ids(inner, [p.prompt for p in pairs if p.raw == raw], raw)) for raw in (False, True)}
    prompts = [next(encoded[p.raw]) for p in pairs]
    return Samples.of(zip(prompts, token_ids(inner, [p.answer for p in pairs])), numbers)


def _from_ids(reading: Reading, piece: Piece) -> Samples:
    samples = Samples.of(((row["prompt_ids"], row["response_ids"]) for row in piece.rows), piece.numbers)
    if reading.schedule is None:
        return samples
    drafts: list[int] = []
    for number, row in piece:
        with piece.naming(number):
            noisy = noisy_answer(row, number, reading.schedule, reading.form.block)
        drafts += [*row["prompt_ids"], *noisy]
    return replace(samples, drafts=np.array(drafts, np.int32))
