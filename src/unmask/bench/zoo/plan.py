"""The plan of a zoo: a folder with `plan.yaml` and one YAML file for each stage.

A stage trains a model or lets one write data. What it takes from other stages stands under `needs` (a key of its
options, and the stage that gives it), what is measured of it under `curves`:

    minutes: 2.0                                # of one H200; ends the schedule of a training run
    needs: {init: masked, data: masked-answers}
    train: {recipe: {name: d2f}, ...}           # keys of a training config; or distil: {...}, see `Distil`
    curves:
      - {name: d2f, method: d2f, over: {threshold: [0.99, 0.9, 0.8]}, baseline: vanilla}

`plan.yaml` lists the stages in the order in which they are begun, options that all of them share, how each task is
measured, and the claims. A stage's `key` is a hash of its options, the config.json they name, and the keys of what it
needs: what was made under another key is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from unmask.bench.zoo.claims import Claim
from unmask.errors import UnmaskError, unknown

PLAN = "plan.yaml"
Kind = Literal["train", "distil"]
STAGE_KEYS = ("task", "minutes", "needs", "train", "distil", "curves", "tiny")
PLAN_KEYS = ("stages", "train", "tasks", "claims", "tiny")
NEEDS = {"train": ("init", "data"), "distil": ("model",)}
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TaskPlan:
    """How a task is measured.

    Args:
        problems: of the test split; for `grammar` how many samples are drawn.
        batch: problems decoded together.
        tokens: new tokens of an answer at most; for `grammar` the length of a sample.
        by_kind: keep the figures of each sort of problem too.
        seed: which problems.
    """

    problems: int
    batch: int
    tokens: int
    by_kind: bool = False
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A stage's model decoded one way, at several settings.

    Args:
        name: of the curve, unique in the plan.
        stage, task: of the model.
        method, options: see `LM.generate`.
        over: the settings, further options of the method each; the least parallel one first.
        title: in the table; the name if there is none.
        baseline: the curve whose least parallel point this one's accuracy is held against.
    """

    name: str
    stage: str
    task: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    over: tuple[dict[str, Any], ...] = ({},)
    title: str = ""
    baseline: str | None = None


@dataclass(frozen=True, kw_only=True)
class Distil:
    """What `unmask distil` would be told.

    Args:
        count: problems of the training split.
        seed: which of them.
        method, options: of decoding; None: the checkpoint's own method, with trajectories Jacobi's.
        max_new_tokens, batch: of decoding.
        only_right: keep answers that the task accepts.
        trajectories: keep all states of the blocks.
    """

    count: int
    seed: int = 0
    method: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    max_new_tokens: int = 128
    batch: int = 256
    only_right: bool = True
    trajectories: bool = False


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A run that makes a model or data.

    Args:
        minutes: its budget; of training, the end of the schedule (0: by steps alone), else what it is thought to take.
        needs: key of the options -> name of the stage that gives it.
        options: of the training config, or the fields of `Distil`.
    """

    name: str
    kind: Kind
    task: str
    minutes: float
    needs: dict[str, str]
    options: dict[str, Any]
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class Plan:
    """stages: by name, in the order in which they are begun, each behind what it needs."""

    folder: str
    stages: dict[str, Stage]
    tasks: dict[str, TaskPlan]
    claims: tuple[Claim, ...]

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """All curves by name."""
        return {curve.name: curve for stage in self.stages.values() for curve in stage.curves}

    def compared(self, names: Collection[str]) -> set[str]:
        """Curves of these names, those that they are held against, and those that the claims of them speak of."""
        found = set(names)
        for claim in self.claims:
            if claim.curve in names:
                found.update(claim.curves)
        for name in list(found):
            baseline = self.curves[name].baseline
            found.update([] if baseline is None else [baseline])
        return found

    def keys(self, given: Mapping[str, str]) -> dict[str, str]:
        """The key of each stage.

        Args:
            given: keys of stages whose output was given, by name.
        """
        found: dict[str, str] = {}
        for name, stage in self.stages.items():
            about = {"kind": stage.kind, "task": stage.task, "minutes": stage.minutes, "options": stage.options}
            shape = Path(stage.options.get("model", "")) if stage.kind == "train" else Path()
            about["shape"] = shape.read_text() if shape.is_file() else None
            found[name] = given.get(name) or digest(about, {k: found[need] for k, need in stage.needs.items()})
        return found

    def chosen(self, only: Sequence[str] | None) -> list[Stage]:
        """The stages of these names, None: all.

        Raises:
            UnmaskError: there is none of a name.
        """
        for name in only or ():
            if name not in self.stages:
                raise unknown("stage", name, self.stages)
        return [stage for name, stage in self.stages.items() if only is None or name in only]


def digest(*about: Any) -> str:
    """A short hash of plain values."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def load_plan(folder: str | Path, *, tiny: bool = False, budget: float = 1.0, changes: Sequence[str] = ()) -> Plan:
    """Reads the plan in a folder.

    Args:
        tiny: with the changes that make it run on a CPU in minutes and learn nothing.
        budget: what all minutes are multiplied by; data are written as many as they are, however long it takes.
        changes: STAGE.KEY=VALUE, where KEY may name an entry of an entry (d2f.train.recipe.block_size=8); null removes.

    Raises:
        UnmaskError: what is wrong, and in which file.
    """
    folder = Path(folder)
    raw = _read(folder / PLAN, PLAN_KEYS)
    names = raw.get("stages") or []
    stages = {str(name): _read(folder / f"{name}.yaml", STAGE_KEYS) for name in names}
    if not stages:
        raise UnmaskError(f"{folder / PLAN} lists no stages")
    small = raw.get("tiny") or {} if tiny else {}
    for change in changes:
        _apply(change, stages)
    made: dict[str, Stage] = {}
    for name, values in stages.items():
        if "train" in values:
            values["train"] = merged(raw.get("train") or {}, values["train"] or {})
        for changed in (small.get("stage") or {}, values.pop("tiny", None) or {}) if tiny else ():
            values = merged(values, {k: v for k, v in changed.items() if k not in ("train", "distil") or k in values})
        made[name] = _stage(name, values, made, budget, int(small.get("points", 0)))
    tasks = merged(raw.get("tasks") or {}, small.get("tasks") or {})
    plan = Plan(
        str(folder),
        made,
        {name: build(TaskPlan, values, f"task {name}") for name, values in tasks.items()},
        tuple(build(Claim, values, f"claim {i + 1}") for i, values in enumerate(raw.get("claims") or [])),
    )
    _check(plan)
    return plan


def _read(path: Path, known: Sequence[str]) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UnmaskError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UnmaskError(f"{path} holds no options")
    for key in values:
        if key not in known:
            raise unknown(f"key of {path}", key, known)
    return values


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with entries replaced, mappings entry by entry; null removes one."""
    out = deepcopy(dict(base))
    for key, value in changes.items():
        if value is None:
            out.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(out.get(key), Mapping):
            out[key] = merged(out[key], value)
        else:
            out[key] = deepcopy(value)
    return out


def _apply(change: str, stages: dict[str, dict[str, Any]]) -> None:
    import yaml

    path, equals, text = change.partition("=")
    name, *keys = path.split(".")
    if not equals or not keys:
        raise UnmaskError(f"{change!r} is not of the form STAGE.KEY=VALUE")
    if name not in stages:
        raise unknown("stage", name, stages)
    if keys[0] not in STAGE_KEYS:
        raise unknown(f"key of stage {name}", keys[0], STAGE_KEYS)
    value = yaml.safe_load(text)
    for key in reversed(keys):
        value = {key: value}
    stages[name] = merged(stages[name], value)


def _stage(name: str, values: dict[str, Any], before: Mapping[str, Stage], budget: float, points: int) -> Stage:
    kinds = [kind for kind in NEEDS if kind in values]
    if len(kinds) != 1:
        raise UnmaskError(f"stage {name} needs either train or distil")
    kind: Any = kinds[0]
    needs = values.get("needs") or {}
    for key, need in needs.items():
        if key not in NEEDS[kind]:
            raise unknown(f"key in needs of stage {name}", key, NEEDS[kind])
        if need not in before:
            raise UnmaskError(f"stage {name} needs {need}, which must stand before it in {PLAN}")
    task = values.get("task", "wordmath")
    options = values[kind] or {}
    curves = [_curve(name, task, curve, points) for curve in values.get("curves") or []]
    return Stage(
        name=name,
        kind=kind,
        task=task,
        minutes=round(float(values.get("minutes", 0.0)) * budget, 3),
        needs=dict(needs),
        options=options,
        curves=tuple(curves),
    )


def _curve(stage: str, task: str, values: Mapping[str, Any], points: int) -> Curve:
    given = dict(values)
    over = given.pop("over", None) or [{}]
    if isinstance(over, Mapping):
        if len(over) != 1:
            raise UnmaskError(f"over of a curve of {stage} must name one option, or be a list of settings")
        ((option, listed),) = over.items()
        over = [{option: value} for value in listed]
    kept = tuple(dict(setting) for setting in (over[:points] if points else over))
    return build(Curve, {**given, "stage": stage, "task": task, "over": kept}, f"curve of {stage}")


def build(kind: type[T], values: Any, where: str) -> T:
    """A dataclass from a mapping of its fields.

    Raises:
        UnmaskError: a field that is not known, or one that is missing.
    """
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise UnmaskError(f"{where} must be a mapping, got {values!r}")
    for name in values:
        if name not in known:
            raise unknown(f"key of {where}", name, known)
    for name, f in known.items():
        if name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise UnmaskError(f"{where} lacks {name!r}")
    return kind(**values)


def _check(plan: Plan) -> None:
    """That what names something names what there is."""
    names = [curve.name for stage in plan.stages.values() for curve in stage.curves]
    for name in names:
        if names.count(name) > 1:
            raise UnmaskError(f"two curves are called {name}")
    for curve in plan.curves.values():
        if curve.task not in plan.tasks:
            raise unknown(f"task of curve {curve.name}", curve.task, plan.tasks)
        if curve.baseline is not None and curve.baseline not in names:
            raise unknown(f"baseline of curve {curve.name}", curve.baseline, names)
    for stage in plan.stages.values():
        if stage.kind == "distil":
            build(Distil, stage.options, f"distil of stage {stage.name}")
    for claim in plan.claims:
        for name in claim.curves:
            if name not in names:
                raise unknown(f"curve of claim {claim.what!r}", name, names)
