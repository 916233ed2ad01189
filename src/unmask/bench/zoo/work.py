"""One job of a zoo, in a process of its own: `python -m unmask.bench.zoo.work JOB.json`.

A job is a mapping of plain values: `kind` (train, distil or measure), `folder`, `record` (what stage.json is to hold),
`device`, and what the kind needs; see `train`, `distil` and `measure`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unmask.bench import record
from unmask.bench.zoo.plan import Curve, Distil, TaskPlan, digest
from unmask.bench.zoo.store import ANSWERS, STAGE
from unmask.errors import UnmaskError

ABOUT = ("date", "commit", "device", "torch")


def do(job: Mapping[str, Any]) -> None:
    """Does a job; what it makes stands in files.

    Raises:
        UnmaskError: it could not be done.
    """
    {"train": train, "distil": distil, "measure": measure}[job["kind"]](job)


def _about(job: Mapping[str, Any]) -> dict[str, Any]:
    found = record.environment(job["device"])
    return {name: found[name] for name in ABOUT}


def _finish(job: Mapping[str, Any], begun: float, figures: Mapping[str, Any]) -> None:
    minutes = round((time.monotonic() - begun) / 60, 3)
    made = {**job["record"], "done": True, "minutes": minutes, "figures": dict(figures), **_about(job)}
    record.write(Path(job["folder"]) / STAGE, made)


def train(job: Mapping[str, Any]) -> None:
    """Trains by the training config `options`."""
    from unmask.training.config import from_mapping
    from unmask.training.loop import run

    begun = time.monotonic()
    figures = run(from_mapping(job["options"]))
    _finish(job, begun, {name: round(value, 6) for name, value in figures.items()})


def distil(job: Mapping[str, Any]) -> None:
    """Lets the checkpoint `model` write answers to the problems of `task`; `options` are the fields of `Distil`."""
    from unmask.lm import load
    from unmask.tasks import get_task
    from unmask.training.generated import Journal, Problems, Writer
    from unmask.training.generated import distil as write

    begun, asked = time.monotonic(), Distil(**job["options"])
    lm = load(job["model"], device=job["device"])
    method = "jacobi" if asked.trajectories else asked.method or lm.default_method
    writer = Writer(lm=lm, method=method, options=asked.options, max_new_tokens=asked.max_new_tokens, seed=asked.seed)
    journal = Journal(Path(job["folder"]) / ANSWERS, {"key": job["record"]["key"]}, _about(job))
    write(
        Problems(get_task(job["task"]), "train", asked.seed),
        writer,
        journal,
        count=asked.count,
        batch=asked.batch,
        only_right=asked.only_right,
        trajectories=asked.trajectories,
        progress=lambda done: print(f"{done} of {asked.count}", flush=True),
    )
    _finish(job, begun, {"prompts": journal.tried, "rows": journal.written})


def measure(job: Mapping[str, Any]) -> None:
    """Measures what is missing of `curves`, each a mapping of `file`, `key`, `curve` (of a `Curve`), `task` (of a
    `TaskPlan`) and the `points` there are. Ends before the next point where `deadline` (of time.time) is over.

    Raises:
        UnmaskError: a curve that the checkpoint `model` cannot be decoded by; all others were measured.
    """
    from unmask.bench.zoo.measure import measure as point_of
    from unmask.lm import load

    lm = load(job["model"], device=job["device"], dtype="float32")
    trouble = []
    for asked in job["curves"]:
        curve, task = Curve(**{**asked["curve"], "over": tuple(asked["curve"]["over"])}), TaskPlan(**asked["task"])
        points = list(asked["points"])
        there = {digest(point["settings"]) for point in points}
        try:
            for settings in curve.over:
                if digest(settings) in there:
                    continue
                if job["deadline"] is not None and time.time() > job["deadline"]:
                    raise UnmaskError("out of time")
                points.append(point_of(lm, curve, task, settings))
                head = {"curve": curve.name, "key": asked["key"], "stage_key": asked["stage_key"], **_about(job)}
                record.write(Path(asked["file"]), {**head, "points": points})
                print(f"{curve.name} {settings}: {points[-1]['accuracy']} %, TPF {points[-1]['tpf']}", flush=True)
        except UnmaskError as error:
            trouble.append(f"{curve.name}: {error}")
    if trouble:
        raise UnmaskError("; ".join(trouble))


def main(path: str) -> int:
    """The exit code: 0, or 2 where it could not be done, with one line on stderr that says why."""
    try:
        do(json.loads(Path(path).read_text()))
    except UnmaskError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        from unmask.training.ranks import Ranks

        Ranks.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
