"""A plan of four stages, and jobs that make their output without a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from unmask.bench import record
from unmask.bench.zoo.jobs import Inline, Job, Running
from unmask.bench.zoo.plan import Plan, load_plan
from unmask.bench.zoo.store import STAGE

TRAIN: dict[str, Any] = {"recipe": {"name": "autoregressive"}, "model": "config.json"}
PLAN: dict[str, Any] = {
    "stages": ["base", "data", "fast", "other"],
    "train": {"steps": 7, "tokenizer": "words", "betas": [0.9, 0.98]},
    "tasks": {"wordmath": {"problems": 4, "batch": 2, "tokens": 8}},
    "claims": [{"what": "fast", "figure": "tpf", "curve": "fast", "bar": 3.0}],
    "tiny": {"points": 1, "stage": {"minutes": 0, "train": {"steps": 2}, "distil": {"count": 3}}},
}
STAGES: dict[str, dict[str, Any]] = {
    "base": {"minutes": 2.0, "train": TRAIN, "curves": [{"name": "one", "method": "autoregressive"}]},
    "data": {"minutes": 1.0, "needs": {"model": "base"}, "distil": {"count": 100}},
    "fast": {
        "minutes": 3.0,
        "needs": {"init": "base", "data": "data"},
        "train": {"recipe": {"name": "fast_dllm_v2"}, "tokenizer": None},
        "curves": [
            {"name": "fast", "method": "fast_dllm_v2", "over": {"threshold": [0.9, 0.5]}, "baseline": "one"},
        ],
        "tiny": {"train": {"row_tokens": 32}},
    },
    "other": {"train": TRAIN},
}


def write_plan(folder: Path, plan: Mapping[str, Any] | None = None, **stages: Mapping[str, Any]) -> Path:
    """The files of the plan with some entries of its own or of its stages replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.yaml").write_text(yaml.safe_dump({**PLAN, **(plan or {})}, sort_keys=False))
    for name, values in STAGES.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**values, **stages.get(name, {})}, sort_keys=False))
    return folder


def small_plan(folder: Path, **options: Any) -> Plan:
    """The plan as it is read."""
    return load_plan(write_plan(folder), **options)


def point(tpf: float, accuracy: float, digests: str = "aaaaaaaabbbbbbbb", **more: Any) -> dict[str, Any]:
    """A measured point of 100 problems."""
    counts = {"problems": 100, "tokens": 1000, "forwards": {"prefill": 100, "denoise": round(1000 / tpf)}}
    times = {"seconds": 2.0, "tokens_per_second": 500.0, "by_kind": None, "right": "10", "digests": digests}
    return {"settings": {"x": tpf}, "accuracy": accuracy, "tpf": tpf, **counts, **times, **more}


@dataclass
class Fake:
    """Begins jobs that end at once: stages write their stage.json, measuring writes points.

    fails: names of jobs that do not succeed. begun: names of all.
    """

    fails: set[str] = field(default_factory=set)
    begun: list[str] = field(default_factory=list)
    specs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def begin(self, job: Job, device: str) -> Running:
        self.begun.append(job.name)
        spec = self.specs[job.name] = job.make(device)
        if job.name in self.fails:
            return Inline("it broke")
        if spec["kind"] != "measure":
            made = {**spec["record"], "done": True, "minutes": 1.0, "figures": {"step": 5}}
            record.write(Path(spec["folder"]) / STAGE, made)
        for curve in spec.get("curves", ()):
            there = [p["settings"] for p in curve["points"]]
            new = [point(2.0, 90.0, settings=s) for s in curve["curve"]["over"] if s not in there]
            points = [*curve["points"], *new]
            record.write(Path(curve["file"]), {"curve": curve["curve"]["name"], "key": curve["key"], "points": points})
        return Inline("")
