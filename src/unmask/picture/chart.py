"""The parts of the chart, each at its own origin and all of one height: forwards, commits, cache use."""

from __future__ import annotations

from unmask.decoding.loop import TraceStep
from unmask.picture.geometry import AXIS, CACHE, LABEL, Geometry, nice
from unmask.picture.palette import shade
from unmask.picture.text import cut, markup, token_label
from unmask.trace import Trace


def rect(x: float, y: float, width: float, height: float, style: str, round_: float = 0.0, title: str = "") -> str:
    """A rectangle; `title` is shown where the pointer rests on it."""
    corner = f' rx="{round_:g}"' if round_ else ""
    head = f'<rect class="{style}" x="{x:.6g}" y="{y:.6g}" width="{max(width, 0.5):.6g}" height="{height:.6g}"{corner}'
    return f"{head}><title>{markup(title)}</title></rect>" if title else f"{head}/>"


def label(x: float, y: float, content: str, style: str = "m", size: float = 11, anchor: str = "start") -> str:
    """A line of text."""
    where = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{style}" x="{x:.6g}" y="{y:.6g}" font-size="{size:g}"{where}>{markup(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, style: str = "line", dash: str = "") -> str:
    """A thin line."""
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line class="{style}" x1="{x1:.6g}" y1="{y1:.6g}" x2="{x2:.6g}" y2="{y2:.6g}"{dashes}/>'


def about(step: TraceStep) -> str:
    """A forward in words."""
    run = "1 token" if step.width == 1 else f"{step.width} tokens"
    fixed, slots = len(step.positions), "slot" if step.reads == 1 else "slots"
    return f"window {span(step)}, {run} run, {fixed} fixed, {step.reads} {slots} read, {step.stores} stored"


def span(step: TraceStep) -> str:
    """The window's first and last position."""
    return f"{step.first} to {step.first + step.span - 1}".replace("-", "\u2212")


def axis(trace: Trace, geometry: Geometry) -> str:
    """Number and kind of each forward; where rows are too thin for words, its colour and every so many numbers."""
    named = geometry.row >= 13
    every = 1 if named else geometry.every(13)
    gap = 1.0 if geometry.row >= 6 else 0.0
    out = [label(0, geometry.top - 7, "forward", size=11)]
    for i, step in enumerate(trace.steps):
        y = geometry.y(i)
        out.append(rect(AXIS - 10, y + gap / 2, 6, geometry.row - gap, f"k-{step.kind}", 1.5 if gap else 0))
        middle = y + geometry.row / 2 + 4
        if (i + 1) % every == 0 or (i == 0 and (every - 1) * geometry.row >= 12):
            out.append(label(24 if named else AXIS - 16, middle, str(i + 1), "m tn", anchor="end"))
        if named:
            out.append(label(32, middle, step.kind, "i", 11.5))
    return "".join(out)


def plot(trace: Trace, geometry: Geometry) -> str:
    """Which forward fixed which position, over the windows that the forwards ran."""
    parts = [_ground(trace, geometry), _settled(trace, geometry)]
    for i, step in enumerate(trace.steps):
        parts += _forward(trace, geometry, i, step)
    parts += [_answer_end(trace, geometry), _token_labels(trace, geometry), _ticks(geometry)]
    return "".join(parts)


def cache(trace: Trace, geometry: Geometry) -> str:
    """Slots read and stored by each forward, as bars."""
    most = max(max(s.reads, s.stores) for s in trace.steps)
    left, room = 8.0, CACHE - 40.0
    out = [label(left, geometry.top - 7, "cache slots", size=11)]
    if not most:
        return "".join([*out, label(left, geometry.top + 14, "no cache is used")])
    unit = nice(most / 4)
    top = -(-most // unit) * unit
    for mark in range(0, top + 1, unit):
        x = left + room * mark / top
        out.append(line(x, geometry.top, x, geometry.bottom + 4))
        out.append(label(x, geometry.bottom + 17, str(mark), "m tn", 10.5, "middle"))
    thick = geometry.row * 0.36 if geometry.row >= 6 else geometry.row / 2
    for i, step in enumerate(trace.steps):
        y = geometry.y(i) + (geometry.row - 2 * thick) / 2
        for k, (count, style) in enumerate(((step.reads, "read"), (step.stores, "stored"))):
            if count:
                out.append(
                    rect(left, y + k * thick, room * count / top, thick, style, 0, f"forward {i + 1}: {count} {style}")
                )
    return "".join(out)


def _ground(trace: Trace, geometry: Geometry) -> str:
    """Prompt, blocks and their names."""
    top, height = geometry.top, geometry.bottom - geometry.top
    out = [rect(0, top, geometry.gutter, height, "panel"), label(0, top - 7, "prompt", size=10.5)]
    if geometry.fold:  # everything left of this line is pressed together
        out.append(line(geometry.fold, top, geometry.fold, geometry.bottom, "line", "2 3"))
    size = trace.block_size
    if size is None or size * geometry.cell < 4:
        return "".join(out)
    begin, number = trace.block_offset, 1
    while begin < trace.length:
        left, right = geometry.x(max(begin, 0)), geometry.x(min(begin + size, trace.length))
        if number % 2:
            out.append(rect(left, top, right - left, height, "stripe"))
        if right < geometry.x(trace.length):
            out.append(line(right, top, right, geometry.bottom))
        if right - left >= 24 and left >= 40:
            name = f"block {number}" if right - left >= 56 else str(number)
            out.append(label((left + right) / 2, top - 7, name, size=10.5, anchor="middle"))
        begin, number = begin + size, number + 1
    return "".join(out)


def _settled(trace: Trace, geometry: Geometry) -> str:
    """Below each position the rows in which it is already decided."""
    first: dict[int, int] = {}
    for i, step in enumerate(trace.steps):
        for position in step.positions:
            first.setdefault(position, i)
    runs = []
    for position, i in first.items():
        y = geometry.y(i + 1)
        runs.append(f"M{geometry.x(position):g} {y:g}h{geometry.cell:g}V{geometry.bottom:g}h-{geometry.cell:g}z")
    return f'<path class="trail" d="{"".join(runs)}"/>' if runs else ""


def _forward(trace: Trace, geometry: Geometry, i: int, step: TraceStep) -> list[str]:
    y, row, cell = geometry.y(i), geometry.row, geometry.cell
    left, right = geometry.x(step.first), geometry.x(min(step.first + step.span, trace.length))
    air = 1.5 if row >= 10 else 0.5 if row >= 5 else 0.0
    style = f"w k-{step.kind}" if air else f"w thin k-{step.kind}"
    wide = right - left - 1
    parts = [
        rect(
            left + 0.5,
            y + air,
            wide,
            row - 2 * air,
            style,
            3 if air else 0,
            f"forward {i + 1}, {step.kind}: {about(step)}",
        )
    ]
    gap = 1.0 if cell >= 5 else 0.0
    inner = air * 2 if row >= 10 else 0.0
    for position, token, confidence in zip(step.positions, step.tokens, step.confidences):
        sure = "no confidence of its own" if confidence is None else f"confidence {confidence:.6g}"
        piece = token_label(trace.piece(position, token))
        title = f"{piece} (id {token}) at position {position}, fixed by forward {i + 1} ({step.kind}), {sure}"
        style = f"c {shade(confidence)}"
        corner = 2.5 if cell >= 9 and row >= 9 else 0
        x = geometry.x(position) + gap / 2
        parts.append(rect(x, y + inner, cell - gap, row - 2 * inner, style, corner, title))
    return parts


def _answer_end(trace: Trace, geometry: Geometry) -> str:
    """A line where the answer ends, if decoding went further."""
    if len(trace.ids) >= trace.length:
        return ""
    x = geometry.x(len(trace.ids))
    return line(x, geometry.top, x, geometry.bottom + 4, "edge", "3 3")


def _token_labels(trace: Trace, geometry: Geometry) -> str:
    """The tokens, written upwards above their columns."""
    if not geometry.labels:
        return ""
    out = []
    for position, token in sorted(trace.final.items()):
        x = geometry.x(position) + geometry.cell / 2 + LABEL * 0.36
        text = markup(cut(token_label(trace.piece(position, token)), 12))
        style = "i" if trace.is_text(position, token) else "m"
        turn = f'transform="translate({x:.6g} {geometry.labels - 2:g}) rotate(-90)"'
        out.append(f'<text class="{style}" {turn} font-size="{LABEL:g}">{text}</text>')
    return "".join(out)


def _ticks(geometry: Geometry) -> str:
    """Numbers of positions under the rows."""
    every = nice(34 / geometry.cell)
    out = [line(0, geometry.bottom, geometry.x(geometry.columns), geometry.bottom)]
    for position in range(0, geometry.columns, every):
        x = geometry.x(position) + geometry.cell / 2
        out.append(line(x, geometry.bottom, x, geometry.bottom + 4))
        out.append(label(x, geometry.bottom + 17, str(position), "m tn", 10.5, "middle"))
    out.append(label(geometry.gutter, geometry.bottom + 34, "position behind the prompt", size=11))
    return "".join(out)
