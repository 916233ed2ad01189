"""Figures of a zoo: accuracy against tokens per forward for each task, AUP in the legend.

Tasks of several sorts of problems have a panel for each sort, the grammar one for the excess of its samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS = 4
"""Panels side by side, of a task that has many."""
Pairs = list[tuple[float, float]]


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """A PNG for each task, zoo-TASK.png in the folder; the files written.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for task in dict.fromkeys(curve["task"] for curve in result["curves"]):
        curves = [curve for curve in result["curves"] if curve["task"] == task]
        files.append(folder / f"zoo-{task.replace(':', '-')}.png")
        _figure(task, curves, files[-1])
    return files


def _figure(task: str, curves: Sequence[Mapping[str, Any]], target: Path) -> None:
    from matplotlib import pyplot

    panels = panels_of(curves)
    wide = min(len(panels), COLUMNS) if len(panels) > 2 else len(panels)
    high = -(-len(panels) // wide)
    size = (11, 6.5) if len(panels) == 1 else (4.2 * wide, 3.4 * high)
    figure, axes = pyplot.subplots(high, wide, figsize=size, layout="constrained", squeeze=False)
    for axis, (label, pairs_of) in zip(axes.flat, panels):
        for index, curve in enumerate(curves):
            pairs = sorted(pairs_of(curve))
            if not pairs:
                continue
            style = "o-" if index < 10 else "s--"
            area = "" if curve["aup"] is None else f" (AUP {curve['aup']:.0f})"
            look = {"color": f"C{index % 10}", "label": curve["title"] + area}
            axis.plot(*zip(*pairs), style, markersize=4, linewidth=1, **look)
        axis.set(xlabel="tokens per forward", ylabel=label)
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_axis_off()
    figure.legend(*axes.flat[0].get_legend_handles_labels(), fontsize=7, loc="outside right upper")
    figure.suptitle(task)
    figure.savefig(target, dpi=150)
    pyplot.close(figure)


def panels_of(curves: Sequence[Mapping[str, Any]]) -> list[tuple[str, Callable[[Mapping[str, Any]], Pairs]]]:
    """The label of each panel of a task, and the points that it shows of a curve."""
    points = [point for curve in curves for point in curve["points"]]
    if any("excess" in point for point in points):
        return [
            ("fitting tokens (%)", lambda curve: [(p["tpf"], p["accuracy"]) for p in curve["points"]]),
            ("excess (nats a token)", lambda curve: [(p["tpf"], p["excess"]) for p in curve["points"]]),
        ]
    found = [("right answers (%)", lambda curve: [(p["tpf"], p["accuracy"]) for p in curve["points"]])]
    kinds = sorted({kind for point in points for kind in point.get("by_kind") or {}})
    return found + [(f"{kind} (%)", _of_kind(kind)) for kind in kinds]


def _of_kind(kind: str) -> Callable[[Mapping[str, Any]], Pairs]:
    def pairs(curve: Mapping[str, Any]) -> Pairs:
        sorts = [(point.get("by_kind") or {}).get(kind) for point in curve["points"]]
        return [(sort["tpf"], sort["accuracy"]) for sort in sorts if sort is not None]

    return pairs
