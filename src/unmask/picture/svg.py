"""One picture of a trace for documents: what was asked, counters, the chart and its legend."""

from __future__ import annotations

from typing import Any

from unmask.picture.chart import axis, cache, label, line, plot, rect
from unmask.picture.geometry import AXIS, CACHE, measure
from unmask.picture.palette import KINDS, chart_css, scale
from unmask.picture.text import cut, markup, visible, width, wrap
from unmask.trace import Trace

MARGIN = 28.0
INDENT = 84.0  # of what has a name at the left


def svg(trace: Trace) -> str:
    """The picture as SVG text, in light or dark colours as the viewer prefers."""
    geometry = measure(trace)
    body = max(AXIS + geometry.width + CACHE, 920.0)
    head, chart_top = _head(trace, body)
    chart = "".join(
        f'<g transform="translate({MARGIN + x:g} {chart_top:g})">{part}</g>'
        for x, part in (
            (0.0, axis(trace, geometry)),
            (AXIS, plot(trace, geometry)),
            (AXIS + geometry.width + 12, cache(trace, geometry)),
        )
    )
    legend, height = _legend(trace, chart_top + geometry.height + 26, body)
    full = body + 2 * MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{full:g}" height="{height:g}" viewBox="0 0 {full:g} '
        f'{height:g}" role="img" aria-labelledby="t d"><title id="t">{markup(title(trace))}</title>'
        f'<desc id="d">{markup(summary(trace))}</desc><style>{chart_css()}</style>'
        f"{rect(0, 0, full, height, 'bg')}{head}{chart}{legend}</svg>\n"
    )


def title(trace: Trace) -> str:
    """Model and method."""
    return f"{trace.model} · {trace.method}"


def summary(trace: Trace) -> str:
    """The run in a sentence or two, for those who cannot see the picture."""
    return (
        f"{trace.model} answered by {trace.method}: {trace.counters.tokens} tokens in {len(trace.steps)} forwards "
        f"({by_kind(trace)}), {trace.counters.tpf:.2f} tokens per forward. Columns are positions of the answer, rows "
        f"are forwards; a coloured cell is a token at the forward that fixed it. Answer: {trace.text}"
    )


def by_kind(trace: Trace) -> str:
    """Forwards by kind: "1 prefill + 12 denoise"."""
    return " + ".join(f"{n} {kind}" for kind, n in trace.counters.forwards.items() if n)


def options_line(trace: Trace) -> str:
    """What was asked of the method, and its blocks."""
    given = [f"{key} {_plain(value)}" for key, value in trace.options.items()]
    if trace.block_size is not None and "block_size" not in trace.options:
        given.append(f"block size {trace.block_size}")
    return ", ".join(given) or "defaults"


def stats(trace: Trace) -> list[tuple[str, str]]:
    """The counters: a number and what it counts. No speed: tracing slows a run down."""
    c = trace.counters
    run = sum(step.width for step in trace.steps)
    return [
        (str(c.tokens), "tokens"),
        (str(len(trace.steps)), f"forwards: {by_kind(trace)}"),
        (f"{c.tpf:.2f}", "tokens per forward"),
        (f"{run / max(c.tokens, 1):.1f}", "positions run per token"),
    ]


def used_kinds(trace: Trace) -> list[str]:
    """Kinds of forwards that occur."""
    return [kind for kind in KINDS if trace.counters.forwards.get(kind)]


def marks(trace: Trace) -> list[tuple[str, str]]:
    """Style and meaning of what else is drawn."""
    found = [(f"w k-{trace.steps[-1].kind}", "window of a forward"), ("trail", "decided")]
    if any(c is None for step in trace.steps for c in step.confidences):
        found.append(("none", "no confidence of its own"))
    if len(trace.ids) < trace.length:
        found.append(("end", "end of the answer"))
    if any(step.reads or step.stores for step in trace.steps):
        found += [("read", "slots read"), ("stored", "slots stored")]
    return found


def _plain(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _head(trace: Trace, room: float) -> tuple[str, float]:
    """Title, options, prompt and counters; where they end."""
    out = [label(MARGIN, 44, cut(visible(title(trace)), 60), "i b", 22)]
    out.append(label(MARGIN, 66, cut(visible(options_line(trace)), 130), "m", 13))
    y = 96.0
    for name, text, most in (("prompt", trace.prompt, 2), ("answer", trace.text, 3)):
        out.append(label(MARGIN, y, name, "m", 12))
        for row in wrap(text, 13, room - INDENT, most):
            out.append(label(MARGIN + INDENT, y, row, "i", 13))
            y += 19
        y += 3
    y += 22
    x = MARGIN
    for number, what in stats(trace):
        out.append(label(x, y, number, "i b tn", 24))
        out.append(label(x, y + 19, what, "m", 12))
        x += max(width(number, 26), width(what, 12.5)) + 40
    return "".join(out), y + 44


def _legend(trace: Trace, y: float, room: float) -> tuple[str, float]:
    """The legend, and the height of the picture with it."""
    rows = _Rows(y, room)
    rows.begin("forward")
    for kind in used_kinds(trace):
        rows.entry(f"k-{kind}", f"{kind}: {KINDS[kind]}")
    rows.begin("confidence")
    for name, least in scale():
        rows.out.append(rect(rows.x, rows.y, 34, 12, name))
        rows.out.append(label(rows.x, rows.y + 26, least, "m tn", 10.5, "middle"))
        rows.x += 34
    rows.out.append(label(rows.x, rows.y + 26, "1", "m", 10.5, "middle"))
    rows.x, rows.gap = rows.x + 30, 40
    for style, text in marks(trace):
        rows.entry(style, text)
    return "".join(rows.out), rows.y + 26 + MARGIN


def sample(x: float, y: float, style: str) -> str:
    """What a legend shows of a style."""
    if style == "end":
        return line(x + 8, y - 1, x + 8, y + 13, "edge", "3 3")
    return rect(x + 0.5, y + 0.5, 15, 11, style, 2.5)


class _Rows:
    """Entries of a legend, one after the other, in as many rows as they need."""

    def __init__(self, y: float, room: float) -> None:
        self.out: list[str] = []
        self.x, self.y, self._end = MARGIN, y - 28, MARGIN + room
        self.gap = 22.0  # to the next row, where one does not suffice

    def begin(self, name: str) -> None:
        """A new row with a name."""
        self.x, self.y = MARGIN, self.y + 28
        self.out.append(label(self.x, self.y + 10, name, "m", 12))
        self.x += INDENT

    def entry(self, style: str, text: str) -> None:
        """A sample of a colour, and what it stands for."""
        wide = 24 + width(text, 12.5)
        if self.x + wide > self._end:
            self.x, self.y, self.gap = MARGIN + INDENT, self.y + self.gap, 22.0
        self.out += [sample(self.x, self.y, style), label(self.x + 22, self.y + 10, text, "i", 12)]
        self.x += wide + 20
