"""Folders of a run's state, from which it goes on as if it had not stopped: safetensors and JSON, no pickle.

    OUTPUT/state-00000400/    weights, both moments, averages after update 400; the newest one is kept
    OUTPUT/best-00000300/     weights (averages, if there are any) with the best figures so far

Each process writes its own pieces into a draft, which gets its name once all are written: a run that is killed, or a
disk that is full, leaves the folder before it as it was. Pieces are rows of a tensor, so a state can be read by any
number of processes.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unmask.errors import UnmaskError
from unmask.models.hub import read_json
from unmask.training.optimizer import Weight
from unmask.training.ranks import Ranks
from unmask.training.trainer import Trainer
from unmask.training.wrap import piece

META = "state.json"
FIXED = ("recipe", "model", "init", "config_changes", "lora", "rows_per_step", "row_tokens", "seed")
"""What a resumed run must have in common with the one that was stopped."""


def write(target: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], ranks: Ranks) -> None:
    """Writes a folder whole, or leaves what was there; older folders of its kind are removed then.

    Args:
        tensors: this process's pieces.

    Raises:
        UnmaskError: it cannot be written.
    """
    draft = target.with_name(f".{target.name}.draft")
    error: Exception | None = None
    if ranks.main:
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
        except OSError as found:
            error = found
    ranks.wait()
    try:
        if error is None:
            held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(held, draft / f"part-{ranks.index:05}-of-{ranks.count:05}.safetensors")
        if ranks.main and error is None:
            (draft / META).write_text(json.dumps(meta) + "\n")
    except (OSError, SafetensorError) as found:
        error = found
    if not ranks.any(error is not None) and ranks.main:
        try:
            shutil.rmtree(target, ignore_errors=True)
            draft.rename(target)
        except OSError as found:
            error = found
    if ranks.any(error is not None):
        if ranks.main:
            shutil.rmtree(draft, ignore_errors=True)
        reason = "another process could not" if error is None else " ".join(str(error).split())
        raise UnmaskError(f"cannot write {target} ({reason}); what was saved before is kept")
    if ranks.main:
        for path in _folders(target.parent, target.name.partition("-")[0]):
            if path != target:
                shutil.rmtree(path, ignore_errors=True)


def newest(output: Path, kind: str = "state") -> Path | None:
    """The last folder of a kind ("state" or "best") in a run's output."""
    return max(_folders(output, kind), default=None)


def _folders(output: Path, kind: str) -> list[Path]:
    return [path for path in output.glob(f"{kind}-*") if re.fullmatch(rf"{kind}-\d+", path.name)]


@dataclass(frozen=True)
class Saved:
    """A folder that `write` wrote."""

    folder: Path
    meta: dict[str, Any]
    held: dict[str, list[tuple[Path, int]]]
    """The files that hold a tensor, in order, with the rows that each has."""

    @classmethod
    def open(cls, folder: Path) -> Saved:
        """Raises UnmaskError where a file is missing or damaged."""
        files = sorted(folder.glob("part-*.safetensors"))
        count = int(files[0].stem.rpartition("-")[2]) if files else 0
        if not files or len(files) != count:
            raise UnmaskError(f"{folder} holds {len(files)} of {count or 1} parts")
        held: dict[str, list[tuple[Path, int]]] = {}
        try:
            for path in files:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118 - not a dict
                        shape = file.get_slice(name).get_shape()
                        held.setdefault(name, []).append((path, shape[0] if shape else 1))
        except SafetensorError as error:
            raise UnmaskError(f"{folder} is damaged ({error})") from None
        return cls(folder, read_json(folder / META), held)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor, or some of its rows.

        Raises:
            UnmaskError: it is not there.
        """
        if name not in self.held:
            raise UnmaskError(f"{self.folder} holds no {name}: it was written under another config")
        pieces, at = [], 0
        for path, count in self.held[name]:
            first, last = (0, count) if rows is None else (max(rows.start - at, 0), min(rows.stop - at, count))
            at += count
            with safe_open(path, framework="pt") as file:
                if rows is None:
                    pieces.append(file.get_tensor(name))
                elif first < last:
                    pieces.append(file.get_slice(name)[first:last])
                elif not pieces:
                    pieces.append(file.get_tensor(name)[:0])
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def best_figures(output: Path) -> dict[str, Any]:
    """The figures of the best checkpoint that a run has kept; empty where there is none."""
    folder = newest(output, "best")
    return {} if folder is None else read_json(folder / META)["best"]


def clear(output: Path) -> None:
    """Removes what a run left that was killed while it wrote, or before its first state."""
    for path in output.glob(".*-*.draft"):
        shutil.rmtree(path, ignore_errors=True)
    if newest(output) is None:
        for path in _folders(output, "best"):
            shutil.rmtree(path, ignore_errors=True)


def save_state(trainer: Trainer, output: Path, config: Mapping[str, Any]) -> Path:
    """Writes everything a resumed run needs; see `write`."""
    tensors: dict[str, Tensor] = {}
    updates: dict[str, float] = {}
    for index, weight in enumerate(trainer.weights):
        if not (weight.sharded or trainer.ranks.main):
            continue
        tensors[f"weight/{weight.name}"] = weight.leaf
        moments = trainer.optimizer.moments(weight)
        if moments is not None:
            tensors[f"first/{weight.name}"], tensors[f"second/{weight.name}"], updates[weight.name] = moments
        if trainer.average is not None:
            tensors[f"average/{weight.name}"] = trainer.average.shadows[index]
    if trainer.ranks.main:
        tensors |= {f"buffer/{name}": tensor for name, tensor in _buffers(trainer).items()}
    meta = {"done": trainer.done, "seconds": trainer.seconds, "updates": updates, "config": config}
    target = output / f"state-{trainer.done:08}"
    write(target, tensors, meta, trainer.ranks)
    return target


def save_best(trainer: Trainer, output: Path, config: Mapping[str, Any], best: Mapping[str, Any]) -> Path:
    """Writes the weights as they stand, while they are measured; `best` are their figures."""
    tensors = {f"weight/{w.name}": w.leaf for w in trainer.weights if w.sharded or trainer.ranks.main}
    target = output / f"best-{trainer.done:08}"
    write(target, tensors, {"done": trainer.done, "config": config, "best": best}, trainer.ranks)
    return target


def load_state(trainer: Trainer, folder: Path, config: Mapping[str, Any]) -> None:
    """Puts the trainer where it was.

    Raises:
        UnmaskError: a damaged state, or one of another run.
    """
    saved = Saved.open(folder)
    for name in FIXED:
        if saved.meta["config"].get(name) != config[name]:
            was, now = saved.meta["config"].get(name), config[name]
            raise UnmaskError(f"cannot resume {folder}: its {name} is {was}, the config's is {now}")
    load_weights(trainer, saved, "weight")
    for index, weight in enumerate(trainer.weights):
        rows = _rows(weight, trainer.ranks)
        if f"first/{weight.name}" in saved.held and weight.leaf.numel():
            moments = (saved.read(f"{side}/{weight.name}", rows) for side in ("first", "second"))
            trainer.optimizer.set_moments(weight, *moments, updates=saved.meta["updates"][weight.name])
        if trainer.average is not None:
            trainer.average.shadows[index].copy_(saved.read(f"average/{weight.name}", rows))
    for name, buffer in _buffers(trainer).items():
        buffer.copy_(saved.read(f"buffer/{name}"))
    trainer.done, trainer.seconds = saved.meta["done"], saved.meta["seconds"]


@torch.no_grad()
def load_weights(trainer: Trainer, saved: Saved, kind: str) -> None:
    """Reads weights into the networks. `kind`: "weight" or "average"."""
    for weight in trainer.weights:
        tensor = saved.read(f"{kind}/{weight.name}", _rows(weight, trainer.ranks))
        if tensor.shape != weight.leaf.shape:
            shapes = f"{list(tensor.shape)}, the config needs {list(weight.leaf.shape)}"
            raise UnmaskError(f"{saved.folder}: {weight.name} is {shapes}")
        weight.leaf.copy_(tensor)
    trainer.raw.place_mask_row()


def _rows(weight: Weight, ranks: Ranks) -> slice | None:
    return piece(weight.parameter.shape[0], ranks.index, ranks.count) if weight.sharded else None


def _buffers(trainer: Trainer) -> dict[str, Tensor]:
    """What the recipe's own modules remember beside their weights."""
    named = trainer.raw.modules_of_recipe.state_dict()
    parameters = {name for name, _ in trainer.raw.modules_of_recipe.named_parameters()}
    return {name: tensor for name, tensor in named.items() if name not in parameters}
