"""What a zoo gave, as one JSON object with a schema, and as tables.

The JSON holds everything but the weights: how each stage was made, all points with one character for each answer and a
digest of its tokens, AUP of each curve (y_max: the best accuracy on the task), and the claims as computed from these
points. `current` says whether an entry was made under the plan's own key.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unmask.bench import record
from unmask.bench.aup import ALPHA, OFFSET, aup
from unmask.bench.zoo.claims import FIGURES, fastest, forwards, judge, near, slowest
from unmask.bench.zoo.plan import Plan
from unmask.bench.zoo.store import Store, curve_key
from unmask.errors import UnmaskError
from unmask.schema import Check, count, each, fields, number, one_of, optional, scalar, table, text, whole
from unmask.schema import record as an_object

HEAD = {
    "schema": whole(record.SCHEMA, record.SCHEMA),
    "date": text,
    "command": text,
    "commit": text,
    "device": text,
    "python": text,
    "torch": text,
    "plan": text,
    "aup": table(number(0.0)),
    "stages": each(an_object),
    "curves": each(an_object),
    "claims": each(an_object),
}
MARK = "\\*"
FLAG = Check("true or false", lambda value: isinstance(value, bool))
STAGE = {
    "stage": text,
    "kind": one_of(("train", "distil")),
    "key": text,
    "current": FLAG,
    "budget_minutes": number(0.0),
    "minutes": optional(number(0.0)),
    "given": FLAG,
    "figures": table(scalar),
}
CURVE = {
    "curve": text,
    "title": text,
    "stage": text,
    "task": text,
    "method": text,
    "options": table(scalar),
    "baseline": optional(text),
    "key": text,
    "current": FLAG,
    "aup": optional(number(0.0)),
    "points": each(an_object),
}
POINT = {
    "settings": table(scalar),
    "problems": count(1 << 30),
    "accuracy": number(0.0, 100.0),
    "tokens": count(1 << 60),
    "forwards": table(count(1 << 60)),
    "tpf": number(0.0),
    "seconds": number(0.0),
    "tokens_per_second": number(0.0),
}
CLAIM = {
    "what": text,
    "figure": one_of(FIGURES),
    "bar": number(-1e300),
    "measured": optional(number(-1e300)),
    "holds": Check("true, false or null", lambda value: value is None or isinstance(value, bool)),
    "reason": optional(text),
}


def collect(plan: Plan, store: Store, keys: Mapping[str, str], device: str) -> dict[str, Any]:
    """The result of what is in the store.

    Args:
        keys: of the plan's stages.
        device: on which it was measured, for the head.
    """
    curves = [curve for curve in (_curve(plan, store, keys, name) for name in plan.curves) if curve is not None]
    for task in {curve["task"] for curve in curves}:
        _add_aup([curve for curve in curves if curve["task"] == task])
    stages = [entry for entry in (_stage(plan, store, keys, name) for name in plan.stages) if entry is not None]
    named = {curve["curve"]: curve for curve in curves}
    return {
        **record.environment(device),
        "plan": plan.folder,
        "aup": {"alpha": ALPHA, "offset": OFFSET},
        "stages": stages,
        "curves": curves,
        "claims": [judge(claim, named) for claim in plan.claims],
    }


def _stage(plan: Plan, store: Store, keys: Mapping[str, str], name: str) -> dict[str, Any] | None:
    """A stage that is done: in the folder, or by what an earlier zoo.json says of it."""
    stage, found = plan.stages[name], store.record(name)
    if found is None:
        old = next((e for e in store.before.get("stages", []) if e["stage"] == name), None)
        return None if old is None else {**old, "current": old["key"] == keys[name]}
    kept = {key: found[key] for key in ("date", "commit", "device", "torch") if key in found}
    return {
        "stage": name,
        "kind": stage.kind,
        "key": found["key"],
        "current": found["key"] == keys[name],
        "budget_minutes": stage.minutes,
        "minutes": found.get("minutes"),
        "given": name in store.given,
        "figures": found.get("figures", {}),
        **kept,
    }


def _curve(plan: Plan, store: Store, keys: Mapping[str, str], name: str) -> dict[str, Any] | None:
    curve, found = plan.curves[name], store.points(name)
    if found is None or not found["points"]:
        return None
    kept = {key: found[key] for key in ("date", "commit", "device", "torch", "stage_key") if key in found}
    return {
        "curve": name,
        "title": curve.title or name,
        "stage": curve.stage,
        "task": curve.task,
        "method": curve.method,
        "options": curve.options,
        "baseline": curve.baseline,
        "key": found["key"],
        "current": found["key"] == curve_key(curve, plan.tasks[curve.task], keys[curve.stage]),
        "aup": None,
        "points": found["points"],
        **kept,
    }


def _add_aup(curves: Sequence[dict[str, Any]]) -> None:
    """Of the curves of one task."""
    best = max(point["accuracy"] for curve in curves for point in curve["points"])
    for curve in curves:
        pairs = [(point["tpf"], point["accuracy"]) for point in curve["points"] if point["tpf"] > 0]
        curve["aup"] = round(aup(pairs, best), 2) if pairs else None


def check(result: Any) -> dict[str, Any]:
    """A result, if it is one.

    Raises:
        UnmaskError: the first field at fault, and what it has to be.
    """
    if not isinstance(result, dict):
        raise UnmaskError("a result must be an object")
    fields(result, HEAD)
    for part, wanted in (("stages", STAGE), ("curves", CURVE), ("claims", CLAIM)):
        for i, entry in enumerate(result[part]):
            fields(entry, wanted, f"{part}[{i}].")
    for i, curve in enumerate(result["curves"]):
        for j, point in enumerate(curve["points"]):
            fields(point, POINT, f"curves[{i}].points[{j}].")
    return result


def read(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        UnmaskError: it is none.
    """
    try:
        return check(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise UnmaskError(f"{path}: {error}") from None


def write(path: Path, result: dict[str, Any]) -> None:
    """Writes a result that is sound; an existing file is replaced whole or not at all."""
    record.write(path, check(result))


def markdown(result: Mapping[str, Any], within: float = 1.0) -> str:
    """The result as tables: claims, curves of each task, sorts of problems, stages.

    Args:
        within: how many percent points below its baseline a setting may be to be shown as a curve's fastest.
    """
    parts = [f"Measured on {_places(result)}; this table: `{result['command']}`", ""]
    if result["claims"]:
        parts += ["## Claims", "", *_claims(result["claims"]), ""]
    curves = {curve["curve"]: curve for curve in result["curves"]}
    for task in dict.fromkeys(curve["task"] for curve in result["curves"]):
        own = [curve for curve in result["curves"] if curve["task"] == task]
        counts = sorted({point["problems"] for curve in own for point in curve["points"]})
        what = "samples" if task == "grammar" else "problems of the test split"
        parts += [f"## {task}", "", f"{', '.join(map(str, counts))} {what}, each setting on the same ones.", ""]
        parts += [*(_samples(own) if task == "grammar" else _curves(own, curves, within)), ""]
        for curve in own:
            if any(point.get("by_kind") for point in curve["points"]):
                parts += [f"### {task} by sort: {curve['title']}", "", *_by_kind(curve), ""]
    if result["stages"]:
        parts += ["## Stages", "", *_stages(result["stages"]), ""]
    if any(not entry["current"] for part in ("stages", "curves") for entry in result[part]):
        parts += [f"{MARK} made by an earlier state of the configs", ""]
    return "\n".join(parts)


def _places(result: Mapping[str, Any]) -> str:
    """Where the points were measured, which need not be where their table was made."""
    told = [curve for curve in result["curves"] if "device" in curve] or [result]
    return ", ".join(dict.fromkeys(f"{entry['device']} at commit {entry['commit']}" for entry in told))


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["---:" for _ in head[1:]]], *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _star(entry: Mapping[str, Any], name: str) -> str:
    return entry[name] if entry["current"] else f"{entry[name]} {MARK}"


def shown(settings: Mapping[str, Any]) -> str:
    """Settings in a cell."""
    return ", ".join(f"{key} {value}" for key, value in settings.items()) or "-"


def _claims(claims: Iterable[Mapping[str, Any]]) -> list[str]:
    rows = []
    for claim in claims:
        measured = "-" if claim["measured"] is None else f"{claim['measured']:.4g}"
        holds = {True: "yes", False: "**no**", None: "not measured"}[claim["holds"]]
        about = [shown(claim["settings"])] if claim["settings"] else []
        if claim["accuracy"] is not None and claim["baseline_accuracy"] is not None:
            about.append(f"{claim['accuracy']:g} % (baseline {claim['baseline_accuracy']:g} %)")
        if claim["same"] is not None:
            about.append(f"{claim['same']} of {claim['problems']} texts the same")
        about += [claim["reason"]] if claim["reason"] else []
        rows.append([claim["what"], measured, f"{claim['bar']:g}", holds, "; ".join(about)])
    return _rows(("claim", "measured", "bar", "holds", "at"), rows)


def _curves(own: Iterable[Mapping[str, Any]], curves: Mapping[str, Any], within: float) -> list[str]:
    rows = []
    for curve in own:
        base = curves.get(curve["baseline"] or curve["curve"], curve)
        floor = slowest(base["points"])["accuracy"]
        good = near(curve["points"], floor, within)
        point = fastest(good) if good else max(curve["points"], key=lambda p: p["accuracy"])
        cells = [_star(curve, "title"), shown(point["settings"]) + ("" if good else " (none is near)")]
        cells += [f"{point['accuracy']:.1f} %", f"{point['accuracy'] - floor:+.1f}", f"{point['tpf']:.2f}"]
        cells += [f"{forwards(point) / point['problems']:.1f}", f"{point['tokens_per_second']:.0f}"]
        rows.append([*cells, "-" if curve["aup"] is None else f"{curve['aup']:.0f}"])
    head = ("variant", f"fastest setting within {within:g} of its baseline", "right", "against it", "TPF")
    return _rows((*head, "forwards an answer", "tokens/s", "AUP"), rows)


def _samples(own: Iterable[Mapping[str, Any]]) -> list[str]:
    rows = []
    for curve in own:
        for point in curve["points"]:
            cells = [_star(curve, "title"), shown(point["settings"]), f"{forwards(point) / point['problems']:.1f}"]
            cells += [f"{point['excess']:.4f}", f"{point['unigram_entropy']:.4f}", f"{point['accuracy']:.2f} %"]
            rows.append([*cells, f"{point['tpf']:.2f}"])
    head = ("variant", "setting", "forwards a sample", "excess (nats a token)", "entropy", "fitting tokens", "TPF")
    return _rows(head, rows)


def _by_kind(curve: Mapping[str, Any]) -> list[str]:
    points = [point for point in curve["points"] if point.get("by_kind")]
    kinds = sorted({kind for point in points for kind in point["by_kind"]})
    rows = []
    for kind in kinds:
        found = [point["by_kind"].get(kind) for point in points]
        rows.append([kind, *("-" if f is None else f"{f['accuracy']:.1f} % ({f['tpf']:.1f})" for f in found)])
    return _rows(("right (TPF)", *(shown(point["settings"]) for point in points)), rows)


def _stages(stages: Iterable[Mapping[str, Any]]) -> list[str]:
    rows = []
    for stage in stages:
        figures = stage["figures"]
        made = f"{figures['step']} updates" if "step" in figures else f"{figures.get('rows', '-')} rows"
        spent = "given" if stage["given"] else "-" if stage["minutes"] is None else f"{stage['minutes']:.1f}"
        loss = figures.get("validation_loss")
        cells = [_star(stage, "stage"), made, f"{stage['budget_minutes']:g}", spent]
        rows.append([*cells, "-" if loss is None else f"{loss:.4f}", stage.get("device", "-")])
    return _rows(("stage", "made", "budget (min)", "spent (min)", "validation loss", "device"), rows)
