"""A page for a trace: text and chart with a player. Nothing is loaded, and no script but its own may run."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files

from unmask.decoding.loop import TraceStep
from unmask.picture.chart import about, axis, cache, label, plot, rect, span
from unmask.picture.geometry import AXIS, CACHE, Geometry, measure
from unmask.picture.palette import KINDS, chart_css, scale, shade, variables
from unmask.picture.svg import marks, options_line, sample, stats, summary, title, used_kinds
from unmask.picture.text import NEW_LINE, markup, visible
from unmask.trace import Trace


def html(trace: Trace) -> str:
    """The page as HTML text."""
    geometry = measure(trace)
    style = variables() + chart_css() + _file("page.css")
    script = _file("page.js")
    values = {
        "TITLE": markup(title(trace)),
        "OPTIONS": markup(options_line(trace)),
        "STATS": "".join(f"<div><dt>{markup(what)}</dt><dd>{number}</dd></div>" for number, what in stats(trace)),
        "PROMPT": markup(trace.prompt),
        "COUNT": str(len(trace.steps)),
        "TOKENS": "".join(_token(trace, position) for position in range(trace.length)),
        "SUMMARY": markup(summary(trace)).replace("\n", " "),
        "CHART": _chart(trace, geometry),
        "LEGEND": _legend(trace),
        "ROWS": "".join(_row(trace, step) for step in trace.steps),
        "DATA": _data(trace, geometry),
        "STYLE": style,
        "SCRIPT": script,
        "STYLE_HASH": _hash(style),
        "SCRIPT_HASH": _hash(script),
    }
    # One pass: what a value holds is never read as a place for another.
    return re.sub("@@([A-Z_]+)@@", lambda found: values[found[1]], _file("page.html"))


def _file(name: str) -> str:
    return (files("unmask.picture") / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return b64encode(sha256(content.encode()).digest()).decode()


def _shown(trace: Trace, position: int, token: int) -> str:
    """A token as it stands in the text: its new lines stay, what is no part of the text is a sign."""
    if not trace.is_text(position, token):
        return "·" if position >= len(trace.ids) else visible(trace.piece(position, token))
    return "\n".join(visible(part) for part in trace.piece(position, token).split("\n"))


def _final(trace: Trace, position: int) -> str:
    """What stands at a position in the end."""
    return _shown(trace, position, trace.final[position]) if position in trace.final else "·"


def _token(trace: Trace, position: int) -> str:
    behind = "" if position in trace.final and trace.is_text(position, trace.final[position]) else " behind"
    never = "" if position in trace.final else " open"
    sign = f'<span class="nl">{NEW_LINE}</span>\n'
    return f'<span class="t{behind}{never}">{markup(_final(trace, position)).replace(chr(10), sign)}</span>'


def _chart(trace: Trace, geometry: Geometry) -> str:
    """The three panels side by side, each with a veil over later forwards and a mark on the present one."""
    out = []
    for name, wide, part in (
        ("axis", AXIS, axis(trace, geometry)),
        ("plot", geometry.width, plot(trace, geometry)),
        ("cache", CACHE, cache(trace, geometry)),
    ):
        bar = geometry.gutter + geometry.columns * geometry.cell if name == "plot" else wide
        over = (
            f'<rect class="veil" x="0" y="{geometry.bottom:g}" width="{wide:g}" height="0"/>'
            f'<rect class="cursor" x="-4" y="{geometry.bottom:g}" width="{bar + 8:g}" height="{geometry.row:g}"/>'
        )
        out.append(
            f'<svg class="{name}" width="{wide:g}" height="{geometry.height:g}" viewBox="0 0 {wide:g} '
            f'{geometry.height:g}" aria-hidden="true">{part}{over}</svg>'
        )
    return "".join(out)


def _legend(trace: Trace) -> str:
    def entry(style: str, text: str) -> str:
        return f'<li><svg width="16" height="12" aria-hidden="true">{sample(0, 0, style)}</svg>{text}</li>'

    out = [entry(f"k-{kind}", f"{kind}: {KINDS[kind]}") for kind in used_kinds(trace)]
    ramp = "".join(
        rect(i * 34 + 4, 0, 34, 12, name) + label(i * 34 + 4, 26, least, "m tn", 10.5, "middle" if i else "start")
        for i, (name, least) in enumerate(scale())
    )
    wide = 34 * len(scale()) + 12
    end = label(wide - 8, 26, "1", "m tn", 10.5, "middle")
    out.append(f'<li class="ramp"><span>confidence</span><svg width="{wide}" height="30">{ramp}{end}</svg></li>')
    return "".join([*out, *(entry(style, text) for style, text in marks(trace))])


def _row(trace: Trace, step: TraceStep) -> str:
    numbers = (step.width, step.reads, step.stores, len(step.positions))
    cells = "".join(f'<td class="num">{n}</td>' for n in numbers)
    text = markup(trace.fixed_text(step).replace("\n", NEW_LINE))
    return (
        f'<tr><td class="num">{step.forward + 1}</td><td>{step.kind}</td><td>{span(step)}</td>{cells}'
        f'<td class="text" dir="auto">{text}</td></tr>'
    )


def _data(trace: Trace, geometry: Geometry) -> str:
    """What the player needs, as JSON that cannot end the element it stands in."""
    steps = [
        {
            "kind": step.kind,
            "first": step.first,
            "span": step.span,
            "about": about(step),
            "at": step.positions,
            "text": [_shown(trace, p, t) for p, t in zip(step.positions, step.tokens)],
            "shade": [shade(c) for c in step.confidences],
        }
        for step in trace.steps
    ]
    chart = {"top": geometry.top, "row": geometry.row, "bottom": geometry.bottom}
    chart |= {"axis": AXIS, "gutter": geometry.gutter, "cell": geometry.cell}
    final = [_final(trace, position) for position in range(trace.length)]
    text = json.dumps({"steps": steps, "final": final, "chart": chart}, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
