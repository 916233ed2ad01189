"""A whole zoo: what of the plan is to be done, the jobs for it, and its result."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from unmask.bench.zoo import report
from unmask.bench.zoo.jobs import Begin, Inline, Job, Pool, Process
from unmask.bench.zoo.plan import Plan, Stage
from unmask.bench.zoo.store import LOG, RESULT, Store, curve_key
from unmask.errors import UnmaskError

OVERHEAD = 1.0
"""Minutes that a training run takes beside its schedule: data, measuring, the checkpoint."""
MEASURING = 0.3
"""Minutes without which measuring is not begun; it ends between two points where time is over."""
RESERVE = 20.0
"""Seconds before the end of `within` at which no further point is begun."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What of a plan is to be done, and how.

    Args:
        only: names of stages; what they need and lack is made first, and measured as far as they are compared with it.
            None: all stages.
        measure_only: train nothing, measure what is there.
        parallel: jobs at a time on each device; 0: in this process.
        devices: cuda, cuda:1, cpu.
        within: minutes for all of it, None: as many as it takes.
    """

    only: Sequence[str] | None = None
    measure_only: bool = False
    parallel: int = 1
    devices: Sequence[str] = ("cpu",)
    within: float | None = None
    say: Callable[[str], None] = field(default=lambda text: None)


@dataclass(frozen=True)
class Todo:
    """Stages that are to be made, curves that are to be measured (with the number of points they lack)."""

    stages: list[Stage]
    curves: dict[str, int]


def todo(plan: Plan, store: Store, asked: Asked) -> Todo:
    """What is not done of what was asked for."""
    keys = store.keys(plan)
    wanted = plan.chosen(asked.only)
    making: set[str] = set()

    def need(stage: Stage) -> None:
        if stage.name in making or store.done(stage.name, keys[stage.name]):
            return
        making.add(stage.name)
        for name in stage.needs.values():
            need(plan.stages[name])

    for stage in () if asked.measure_only else wanted:
        need(stage)
    curves = {}
    names = plan.compared([curve.name for stage in wanted for curve in stage.curves])
    for stage in plan.stages.values():
        key = _made_key(store, stage, keys[stage.name], stage.name in making)
        for curve in [c for c in stage.curves if c.name in names] if key is not None else ():
            own = curve_key(curve, plan.tasks[curve.task], str(key))
            there = [] if stage.name in making else store.measured(curve, own)
            if len(there) < len(curve.over):
                curves[curve.name] = len(curve.over) - len(there)
    return Todo([stage for name, stage in plan.stages.items() if name in making], curves)


def _made_key(store: Store, stage: Stage, key: str, making: bool) -> str | None:
    """The key under which a stage's output is, or will be, made; None: there is none."""
    if making:
        return key
    found = store.record(stage.name)
    return None if found is None else str(found["key"])


def zoo(plan: Plan, store: Store, asked: Asked, begin: Begin | None = None) -> tuple[dict[str, Any], dict[str, str]]:
    """Does what is not done, and writes zoo.json, zoo.md and the figures to the store's folder.

    Args:
        begin: how a job is begun; None: in a process of its own, or in this one where `parallel` is 0.

    Returns:
        The result, and of each job "" or why there is nothing of it.
    """
    work, keys, jobs = todo(plan, store, asked), store.keys(plan), _Jobs(plan, store, asked)
    made = [jobs.stage(stage, keys, {s.name for s in work.stages}) for stage in work.stages]
    made += [
        jobs.measuring(stage, keys, work.curves, stage in work.stages)
        for stage in plan.stages.values()
        if any(curve.name in work.curves for curve in stage.curves)
    ]
    device = asked.devices[0]
    places = [device for _ in range(max(asked.parallel, 1)) for device in asked.devices]
    # Each process takes all cores for itself otherwise, and training that waits for them was seen ten times slower.
    threads = max(1, (os.cpu_count() or 1) // len(places))
    pool = Pool(
        places,
        begin or (partial(Process.begin, threads=threads) if asked.parallel else Inline.begin),
        within=asked.within,
        say=asked.say,
        after=lambda name: report.write(store.out / RESULT, report.collect(plan, store, keys, device)),
    )
    outcome = pool.run(made)
    return finish(plan, store, device, asked.say), outcome


def finish(plan: Plan, store: Store, device: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Writes the result of what is in the store, its tables and figures."""
    result = report.collect(plan, store, store.keys(plan), device)
    write_all(result, store.out, say)
    return result


def write_all(result: dict[str, Any], folder: Path, say: Callable[[str], None]) -> None:
    """zoo.json, zoo.md and a figure for each task."""
    report.write(folder / RESULT, result)
    (folder / "zoo.md").write_text(report.markdown(result))
    try:
        from unmask.bench.zoo.plot import draw

        draw(result, folder)
    except ModuleNotFoundError as error:
        say(f"no figures were drawn: {error.name} is not installed")


class _Jobs:
    """Makes the jobs of a run."""

    def __init__(self, plan: Plan, store: Store, asked: Asked) -> None:
        self.plan, self.store = plan, store
        self.deadline = None if asked.within is None else time.time() + asked.within * 60 - RESERVE

    def stage(self, stage: Stage, keys: dict[str, str], making: set[str]) -> Job:
        """The job that makes a stage's output."""
        needs = tuple(name for name in dict.fromkeys(stage.needs.values()) if name in making)
        minutes = stage.minutes + (OVERHEAD if stage.kind == "train" and stage.minutes else 0.0)

        def make(device: str) -> dict[str, Any]:
            folder = self.store.begin(stage, keys[stage.name])
            about = {"stage": stage.name, "key": keys[stage.name], "budget_minutes": stage.minutes}
            common = {"kind": stage.kind, "folder": str(folder), "device": device, "record": about, "task": stage.task}
            needed = {key: str(self.store.output(self.plan.stages[name])) for key, name in stage.needs.items()}
            if stage.kind == "distil":
                return {**common, **needed, "options": stage.options}
            options = {"task": stage.task, **stage.options, **needed, "output": str(folder)}
            return {**common, "options": {"max_minutes": stage.minutes, **options}}

        return Job(stage.name, needs, minutes, self.store.out / "logs" / f"{stage.name}-{LOG}", make)

    def measuring(self, stage: Stage, keys: dict[str, str], wanted: Collection[str], making: bool) -> Job:
        """The job that measures what is missing of those of a stage's curves that are wanted."""

        def make(device: str) -> dict[str, Any]:
            key = _made_key(self.store, stage, keys[stage.name], False)
            if key is None:
                raise UnmaskError(f"there is no checkpoint of {stage.name}")
            model, curves = str(self.store.output(stage)), []
            for curve in [c for c in stage.curves if c.name in wanted]:
                task = self.plan.tasks[curve.task]
                own = curve_key(curve, task, key)
                entry = {"curve": asdict(curve), "task": asdict(task), "key": own, "stage_key": key}
                file = str(self.store.points_file(curve.name))
                curves.append({**entry, "file": file, "points": self.store.measured(curve, own)})
            common = {"kind": "measure", "device": device, "deadline": self.deadline}
            return {**common, "model": model, "curves": curves}

        name = f"measure {stage.name}"
        log = self.store.out / "logs" / f"{stage.name}-measure-{LOG}"
        return Job(name, (stage.name,) if making else (), MEASURING, log, make)


def overview(plan: Plan, work: Todo) -> list[str]:
    """Lines that say what is to be done."""
    lines = []
    for stage in work.stages:
        needs = f", needs {', '.join(stage.needs.values())}" if stage.needs else ""
        lines.append(f"{stage.kind} {stage.name}: {stage.minutes:g} min{needs}")
    for stage in plan.stages.values():
        lacking = {curve.name: work.curves[curve.name] for curve in stage.curves if curve.name in work.curves}
        if lacking:
            points = ", ".join(f"{name} ({count} points)" for name, count in lacking.items())
            lines.append(f"measure {stage.name}: {points}")
    total = sum(stage.minutes for stage in work.stages)
    return [*lines, f"{total:g} minutes of training and writing data in sum"] if lines else ["nothing is left to do"]


def checked(plan: Plan) -> Plan:
    """The plan, if each training config in it is one.

    Raises:
        UnmaskError: names the stage and what is wrong.
    """
    from unmask.training.config import from_mapping

    for stage in plan.stages.values():
        if stage.kind == "train":
            given = dict.fromkeys(stage.needs, "there")
            try:
                from_mapping({"task": stage.task, **stage.options, **given, "output": stage.name})
            except UnmaskError as error:
                raise UnmaskError(f"stage {stage.name}: {error}") from None
    return plan
