"""Files of rows: Parquet, JSON and JSON lines through the `datasets` library, files of `unmask distil` as they are.

`unmask distil` writes JSON lines that hold token ids (`prompt_ids`, `response_ids`); these are our own format and read
here, so that a model can be trained on its own answers without a further library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.errors import UnmaskError, unknown
from unmask.training.sources.chat import COLUMNS, Row

SUFFIXES = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
IDS = ("prompt_ids", "response_ids")
Layouts = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Table:
    """A file's rows.

    Args:
        name: of the file, for messages.
        layout: one of `COLUMNS`, or "ids".
        names: for each column of that layout what the file calls it.
        rows: lines of our own files, else a `datasets.Dataset`.
    """

    name: str
    layout: str
    names: Mapping[str, str]
    rows: Any

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, numbers: Sequence[int]) -> list[Row]:
        """The rows of these numbers (from 0), under our names of the columns."""
        if self.layout == "ids":
            return [self._parsed(number) for number in numbers]
        found: dict[str, list[Any]] = self.rows[list(numbers)]
        return [{ours: found[theirs][i] for ours, theirs in self.names.items()} for i in range(len(numbers))]

    def _parsed(self, number: int) -> Row:
        try:
            row = json.loads(self.rows[number])
            assert all(isinstance(row[name], list) for name in IDS)
        except (ValueError, KeyError, TypeError, AssertionError):
            raise UnmaskError(
                f"row {number + 1} of {self.name} holds no prompt_ids and response_ids; if the run that wrote it was "
                "cut off, start the same `unmask distil` again"
            ) from None
        return row


def open_tables(path: str, columns: Mapping[str, str], layouts: Layouts = COLUMNS) -> list[Table]:
    """The table of a file, or of each file of a folder in the order of their names.

    Args:
        columns: what the files call our columns, where it is not the same.
        layouts: sets of columns, the first that a file has is taken.

    Raises:
        UnmaskError: no such file (with the nearest name), none that can be read, columns that are not known.
    """
    return [_open(file, columns, layouts) for file in _files(Path(path))]


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
        if not found:
            raise UnmaskError(f"there is no file of data in {path} ({', '.join(SUFFIXES)})")
        return found
    if not path.is_file():
        near = [str(p) for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise unknown("file of data", str(path), near) if near else UnmaskError(f"there is no {path}")
    if path.suffix not in SUFFIXES:
        raise UnmaskError(f"{path} is no file of data ({', '.join(SUFFIXES)})")
    return [path]


def _open(path: Path, columns: Mapping[str, str], layouts: Layouts) -> Table:
    if path.suffix == ".jsonl" and not columns:
        lines = path.read_bytes().splitlines()
        if lines and _is_own(lines[0]):
            return Table(path.name, "ids", {}, lines)
    dataset = _dataset(path)
    layout, names = _layout(path, list(dataset.column_names), columns, layouts)
    return Table(path.name, layout, names, dataset)


def _is_own(line: bytes) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return isinstance(row, dict) and all(name in row for name in IDS)


def _dataset(path: Path) -> Any:
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]
        from datasets.exceptions import DatasetsError  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise UnmaskError(f"reading {path.name} needs datasets: pip install 'unmask[train]'") from None
    try:
        return load_dataset(SUFFIXES[path.suffix], data_files=str(path), split="train")
    except (DatasetsError, OSError, ValueError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise UnmaskError(f"{path} cannot be read: {reason}") from None


def _layout(path: Path, present: list[str], columns: Mapping[str, str], layouts: Layouts) -> tuple[str, dict[str, str]]:
    """The first layout whose columns are all there, with the file's names of them."""
    wanted = [name for names in layouts.values() for name in names]
    for ours, theirs in columns.items():
        if ours not in wanted:
            raise unknown("column", ours, wanted)
        if theirs not in present:
            raise unknown(f"column of {path.name}", theirs, present)
    for layout, names in layouts.items():
        found = {ours: columns.get(ours, ours) for ours in names}
        if all(theirs in present for theirs in found.values()) and (not columns or set(columns) <= set(names)):
            return layout, found
    choices = ", or ".join(" and ".join(names) for names in layouts.values())
    raise UnmaskError(
        f"{path.name} has the columns {', '.join(sorted(present))}; wanted are {choices}; others can be named under "
        "columns, such as prompt: question"
    )
