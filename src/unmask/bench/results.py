"""Result files of the speed measurements: their head, their schema, how they are written and read back."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from unmask.bench import memory, record, roofline, steps, throughput, training
from unmask.errors import UnmaskError
from unmask.lm import LM
from unmask.schema import count, each, fields, number, one_of, optional, scalar, table, text, whole
from unmask.schema import record as an_object

KINDS = ("step", "throughput", "memory", "train")
HEAD = {
    "schema": whole(record.SCHEMA, record.SCHEMA),
    "bench": one_of(KINDS),
    "date": text,
    "command": text,
    "commit": text,
    "device": text,
    "device_type": one_of(("cuda", "cpu")),
    "threads": count(1 << 20),
    "python": text,
    "torch": text,
    "cuda": optional(text),
    "triton": optional(text),
    "model": text,
    "weights": one_of(("checkpoint", "random")),
    "dtype": text,
    "engine": table(scalar),
    "asked": an_object,
    "results": each(an_object),
}
"""Fields of every file. asked: what the command was told. engine: arguments of the engine."""
ASKED = {
    "step": {"context": whole(1, 1 << 30), "steps": whole(1, 1 << 30)},
    "throughput": {"prompt": optional(whole(1, 1 << 30)), "new_tokens": whole(1, 1 << 30), "task": optional(text)},
    "memory": {"prompt": whole(1, 1 << 30), "new_tokens": whole(1, 1 << 30), "device_bytes": optional(number(0.0))},
    "train": training.ASKED,
}
"""Fields of `asked`."""
RAW = ("walls", "gpus", "ttfts", "shapes", "kernels")
"""Lists of an entry that stand in files alone."""


def head(
    kind: str, lm: LM, model: str, *, random: bool, engine: dict[str, Any], asked: dict[str, Any]
) -> dict[str, Any]:
    """Everything of a result but its entries.

    Args:
        model: its name. random: it has random weights.
        engine: arguments of the engine. asked: the fields of `ASKED` for this kind.
    """
    return record.environment(str(lm.model.device)) | {
        "bench": kind,
        "device_type": lm.model.device.type,
        "cuda": torch.version.cuda,
        "triton": _triton(),
        "model": model,
        "weights": "random" if random else "checkpoint",
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "engine": engine,
        "asked": asked,
        "results": [],
    }


def check(data: Any) -> dict[str, Any]:
    """A result, if it is one.

    Raises:
        UnmaskError: the first field at fault, and what it has to be.
    """
    if not isinstance(data, dict):
        raise UnmaskError("a result must be an object")
    fields(data, HEAD)
    kind = data["bench"]
    fields(data["asked"], ASKED[kind], "asked.")
    if kind in ("step", "train"):
        fields(fields(data, {"ceilings": an_object})["ceilings"], roofline.CEILINGS, "ceilings.")
    for i, entry in enumerate(data["results"]):
        _entry(kind, entry, f"results[{i}].")
    return data


def _entry(kind: str, entry: dict[str, Any], where: str) -> None:
    plain = {"step": steps.ENTRY, "train": training.ENTRY}
    if kind in plain:
        fields(entry, plain[kind], where)
        return
    module = throughput if kind == "throughput" else memory
    fields(entry, module.ENTRY, where)
    if entry["reason"] is not None:
        return
    fields(entry, module.MEASURED, where)
    if kind == "throughput":
        fields(entry["decode"], throughput.DECODE, f"{where}decode.")
    else:
        fields(entry["pages"], memory.PAGES, f"{where}pages.")


def write(path: Path, data: dict[str, Any]) -> None:
    """Writes a result that is sound; an existing file is replaced whole or not at all."""
    record.write(path, check(data))


def read(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        UnmaskError: it is none.
    """
    try:
        return check(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise UnmaskError(f"{path}: {error}") from None


def summary(data: dict[str, Any]) -> dict[str, Any]:
    """A result without its long lists."""
    return data | {"results": [{k: v for k, v in e.items() if k not in RAW} for e in data["results"]]}


def _triton() -> str | None:
    try:
        return version("triton")
    except PackageNotFoundError:
        return None
