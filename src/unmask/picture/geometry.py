"""Where things stand in a chart of commits: columns are positions, rows are forwards."""

from __future__ import annotations

from dataclasses import dataclass

from unmask.picture.text import cut, token_label, width
from unmask.trace import Trace

AXIS = 112.0  # width of the panel of forwards at the left
CACHE = 208.0  # width of the panel of cache use at the right
STRIP = 18.0  # height of the names of blocks
LABEL = 10.5  # size of token labels
_ROOM = 790.0  # what the columns may take before they get as narrow as they can
_HEIGHT = 560.0


@dataclass(frozen=True)
class Geometry:
    """Sizes in pixels.

    columns, rows: positions and forwards. cell, row: their sizes. prompt: its tokens; ahead: how many of them are drawn
    at scale; fold: the width of the others together. labels: the height of token labels above the rows, 0 where there
    is no room.
    """

    columns: int
    rows: int
    cell: float
    row: float
    prompt: int
    ahead: int
    fold: float
    labels: float

    @property
    def gutter(self) -> float:
        """Width of the prompt, where position 0 begins."""
        return self.fold + self.ahead * self.cell

    @property
    def top(self) -> float:
        """Where the rows begin."""
        return self.labels + STRIP + 4

    @property
    def bottom(self) -> float:
        """Where the rows end."""
        return self.top + self.rows * self.row

    @property
    def height(self) -> float:
        """Of all panels."""
        return self.bottom + 38

    @property
    def width(self) -> float:
        """Of the panel of commits."""
        return max(self.gutter + self.columns * self.cell, self.gutter + 160.0) + 12

    def x(self, position: float) -> float:
        """Left edge of a position."""
        if position >= -self.ahead:
            return round(self.gutter + position * self.cell, 2)
        return round(self.fold * max(position + self.prompt, 0) / max(self.prompt - self.ahead, 1), 2)

    def y(self, step: float) -> float:
        """Top edge of a forward."""
        return round(self.top + step * self.row, 2)

    def every(self, room: float) -> int:
        """So that labels of forwards are at least `room` apart, every how many gets one."""
        return nice(room / self.row)


def measure(trace: Trace) -> Geometry:
    """The geometry of a trace: as large as fits, never so small that nothing can be told apart."""
    columns, rows = trace.length, len(trace.steps)
    reach = max((-s.first for s in trace.steps if s.kind != "prefill"), default=0)
    prompt = len(trace.prompt_ids)
    ahead = min(prompt, reach if reach <= 32 else 6)
    cell = min(max(_ROOM / (columns + ahead), 3.0), 24.0)
    row = min(max(_HEIGHT / rows, 3.0), 24.0)
    labels = 0.0
    if cell >= LABEL + 1:
        texts = (cut(token_label(trace.piece(p, t)), 12) for p, t in trace.final.items())
        labels = min(max((width(text, LABEL) * 1.15 for text in texts), default=0.0), 84.0) + 6
    fold = 40.0 if prompt > ahead else 0.0
    return Geometry(columns, rows, round(cell, 2), round(row, 2), prompt, ahead, fold, round(labels))


def nice(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50 ... that is not below `least`."""
    unit = 1
    while True:
        for factor in (1, 2, 5):
            if unit * factor >= least:
                return unit * factor
        unit *= 10
