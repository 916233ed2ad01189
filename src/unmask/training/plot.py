"""Draws the curves of training logs: loss, and what held-out problems gave, accuracy and tokens per forward.

python -m unmask.training.plot curves.png runs/nano-ar/log.jsonl runs/nano-fast-dllm-v2/log.jsonl
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unmask.training.log import read_log

__all__ = ["draw", "read_log"]

PANELS = (
    ("loss (nats)", (("loss", "-"), ("validation_loss", "o--"))),
    ("right answers", (("accuracy", "o-"),)),
    ("tokens per forward", (("tpf", "o-"),)),
)
"""The label of each panel, with the log's names that it shows and their line styles."""


def draw(logs: Sequence[Path], target: Path) -> None:
    """A panel for each kind of figure that the logs have, against the step, one colour for each log; as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    entries = {path: read_log(path) for path in logs}
    panels = [panel for panel in PANELS if any(_points(e, n) for e in entries.values() for n, _ in panel[1])]
    figure, axes = pyplot.subplots(
        max(len(panels), 1), figsize=(7, 1 + 3 * len(panels)), layout="constrained", squeeze=False
    )
    for axis, (label, lines) in zip(axes.flat, panels):
        for index, (path, found) in enumerate(entries.items()):
            for name, style in lines:
                points = _points(found, name)
                if points:
                    title = f"{path.parent.name} {name.replace('_', ' ')}"
                    axis.plot(*zip(*points), style, color=f"C{index}", label=title, markersize=4, linewidth=1)
        positive = all(y > 0 for e in entries.values() for n, _ in lines for _, y in _points(e, n))
        axis.set(xlabel="step", ylabel=label, yscale="log" if "loss" in label and positive else "linear")
        axis.legend()
        axis.grid(alpha=0.3)
    figure.savefig(target, dpi=150)
    pyplot.close(figure)


def _points(entries: Sequence[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(e["step"], e[name]) for e in entries if name in e and "step" in e]


if __name__ == "__main__":
    draw([Path(p) for p in sys.argv[2:]], Path(sys.argv[1]))
