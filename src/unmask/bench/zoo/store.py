"""The folder that a zoo fills, and what of it is done.

    OUT/STAGE/          a checkpoint, or answers.jsonl; stage.json says under which key it was made, and how
    OUT/points/         the measured points of each curve
    OUT/zoo.json        all of it but the weights: table, points and claims (see `report`)

A stage is done when its stage.json says so under the plan's key. Points that OUT/zoo.json holds and OUT/points does
not are taken from there, so that this one file carries what was measured from machine to machine.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unmask.bench import record
from unmask.bench.zoo.plan import Curve, Plan, Stage, TaskPlan, digest
from unmask.errors import UnmaskError
from unmask.models.hub import SHIPPED, resolve_source

ANSWERS = "answers.jsonl"
STAGE = "stage.json"
RESULT = "zoo.json"
LOG = "output.txt"


class Store:
    """A zoo's folder.

    Args:
        out: the folder.
        given: stages whose output stands elsewhere, by name: a folder, or the name of a shipped checkpoint.
    """

    def __init__(self, out: Path, given: Mapping[str, str] | None = None) -> None:
        self.out = out
        self.given = {name: _given(name, place) for name, place in (given or {}).items()}
        result = _read(out / RESULT)
        self.before: dict[str, Any] = result if isinstance(result, dict) else {}
        """What an earlier run left in zoo.json."""

    def folder(self, name: str) -> Path:
        """Where a stage's output is."""
        return self.given.get(name, self.out / name)

    def output(self, stage: Stage) -> Path:
        """What other stages take of it."""
        folder = self.folder(stage.name)
        return folder / ANSWERS if stage.kind == "distil" else folder

    def keys(self, plan: Plan) -> dict[str, str]:
        """The key of each stage, given ones by what stands in their folder."""
        for name in self.given:
            plan.chosen([name])
        return plan.keys({name: _key_of(folder) for name, folder in self.given.items()})

    def record(self, name: str) -> dict[str, Any] | None:
        """What stage.json says of a stage that is done, None for others."""
        if name in self.given:
            return {**(_read(self.given[name] / STAGE) or {}), "key": _key_of(self.given[name]), "done": True}
        found = _read(self.out / name / STAGE)
        return found if isinstance(found, dict) and found.get("done") else None

    def done(self, name: str, key: str) -> bool:
        """Whether a stage's output is there, made under this key."""
        found = self.record(name)
        return found is not None and found["key"] == key

    def begin(self, stage: Stage, key: str) -> Path:
        """The stage's folder, without what was made under another key. What was measured of a model that is trained
        again, on another machine perhaps, is dropped: equal options do not make equal weights.

        Raises:
            UnmaskError: the folder holds something that no zoo made.
        """
        folder = self.out / stage.name
        if folder.exists() and any(folder.iterdir()):
            found = _read(folder / STAGE)
            if not isinstance(found, dict) or "key" not in found:
                raise UnmaskError(f"{folder} holds files that no zoo made; remove them, or choose another --out")
            # Data that were begun under the same key go on where they stopped.
            if found["key"] != key or stage.kind == "train":
                shutil.rmtree(folder)
        gone = {curve.name for curve in stage.curves}
        for name in gone:
            self.points_file(name).unlink(missing_ok=True)
        self.before["curves"] = [entry for entry in self.before.get("curves", []) if entry["curve"] not in gone]
        folder.mkdir(parents=True, exist_ok=True)
        record.write(folder / STAGE, {"stage": stage.name, "key": key, "done": False})
        return folder

    def points_file(self, curve: str) -> Path:
        """The file of a curve's points."""
        return self.out / "points" / f"{curve}.json"

    def points(self, curve: str) -> dict[str, Any] | None:
        """What was measured of a curve: `key`, `points`, where and when."""
        found = _read(self.points_file(curve))
        if isinstance(found, dict):
            return found
        for entry in self.before.get("curves", []):
            if entry["curve"] == curve and entry["points"]:
                return {name: value for name, value in entry.items() if name != "aup"}
        return None

    def measured(self, curve: Curve, key: str) -> list[dict[str, Any]]:
        """The points of a curve that were measured under this key."""
        found = self.points(curve.name)
        if found is None or found["key"] != key:
            return []
        wanted = {digest(setting) for setting in curve.over}
        return [point for point in found["points"] if digest(point["settings"]) in wanted]


def curve_key(curve: Curve, task: TaskPlan, stage_key: str) -> str:
    """A hash of all that a curve's points depend on beside their settings."""
    how = (task.problems, task.tokens, task.by_kind, task.seed)
    return digest(stage_key, curve.task, curve.method, curve.options, how)


def _given(name: str, place: str) -> Path:
    folder = resolve_source(place) if place in SHIPPED else Path(place)
    if not folder.is_dir():
        raise UnmaskError(f"there is no folder {place} for stage {name}")
    return folder


def _key_of(folder: Path) -> str:
    """The key that a zoo made a folder under; of others a hash of their files."""
    found = _read(folder / STAGE)
    if isinstance(found, dict) and "key" in found:
        return str(found["key"])
    total = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".json", ".jsonl", ".safetensors")):
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()[:16]


def _read(path: Path) -> Any:
    """The JSON in a file, None where there is none, or a broken one."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
