"""A stand-in for the `datasets` library, after its documentation, for machines without it: JSON files alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


class DatasetsError(Exception):
    """Base of the library's errors."""


class Dataset:
    """Rows with the same columns; a missing entry is None, as in a table."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self.column_names = list(dict.fromkeys(name for row in rows for name in row))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, numbers: list[int]) -> dict[str, list[Any]]:
        return {name: [self.rows[n].get(name) for n in numbers] for name in self.column_names}


LOADED: list[tuple[str, str, str]] = []


def load_dataset(kind: str, *, data_files: str, split: str) -> Dataset:
    """The rows of a JSON file; of a Parquet file those of the JSON text that tests put there."""
    LOADED.append((kind, data_files, split))
    text = Path(data_files).read_text()
    try:
        return Dataset(json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()])
    except ValueError as error:
        raise DatasetsError("An error occurred while generating the dataset") from error


def put(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `import datasets` find the stand-in."""
    module, exceptions = ModuleType("datasets"), ModuleType("datasets.exceptions")
    module.__dict__.update(load_dataset=load_dataset, exceptions=exceptions)
    exceptions.__dict__.update(DatasetsError=DatasetsError)
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setitem(sys.modules, "datasets.exceptions", exceptions)
    LOADED.clear()
