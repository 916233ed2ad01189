"""Draws the curves of training logs.

python -m unmask.training.plot curves.png runs/nano-ar/log.jsonl runs/nano-fast-dllm-v2/log.jsonl
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log, one for each line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def draw(logs: Sequence[Path], target: Path) -> None:
    """Training and validation loss against the step, one colour for each log, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for index, path in enumerate(logs):
        entries = read_log(path)
        for name, style in (("loss", "-"), ("validation_loss", "o--")):
            points = [(e["step"], e[name]) for e in entries if name in e and "step" in e]
            if points:
                label = f"{path.parent.name} {name.replace('_', ' ')}"
                axes.plot(*zip(*points), style, color=f"C{index}", label=label, markersize=4, linewidth=1)
    axes.set(xlabel="step", ylabel="loss (nats per supervised token)", yscale="log")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(target, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    draw([Path(p) for p in sys.argv[2:]], Path(sys.argv[1]))
