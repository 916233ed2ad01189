"""A trace on the terminal: an animation, one frame a forward, or a table, one line a forward.

Every token has its place from the start, so nothing moves while text appears: what is open is drawn as blocks, in the
window of the forward denser ones, and what the forward fixed stands out. Long answers are shown by the page.
"""

from __future__ import annotations

import time

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from unmask.cli.output import columns
from unmask.cli.view import clean
from unmask.decoding.loop import TraceStep
from unmask.picture.chart import span
from unmask.picture.text import NEW_LINE, visible
from unmask.trace import Trace

COLOURS = {
    "prefill": "bright_black",
    "denoise": "blue",
    "window": "cyan",
    "commit": "green",
    "refresh": "magenta",
    "draft": "red",
}
SECONDS = 20.0  # a replay takes no longer, unless a speed is given
Place = tuple[int, str]  # a position, and one character of its token


class Replay:
    """Draws the forwards of a trace."""

    def __init__(self, trace: Trace, console: Console) -> None:
        self.trace = trace
        self.console = console
        ascii_only = console.options.ascii_only
        self._open, self._inside = (".", "#") if ascii_only else ("░", "▒")
        self._end, self._new_line = ("|", "\\") if ascii_only else ("∎", "⏎")
        self._bar = "=" if ascii_only else "█"
        self._pages: tuple[int, list[list[Place]]] = (0, [])
        self._decided: tuple[int, dict[int, int]] = (-1, {})

    def play(self, speed: float | None = None) -> None:
        """Shows all forwards, `speed` a second; nothing of it stays."""
        pause = 1 / (speed or max(4.0, len(self.trace.steps) / SECONDS))
        live = Live(console=self.console, auto_refresh=False, transient=True, vertical_overflow="crop")
        with live:
            for number in range(len(self.trace.steps)):
                live.update(self.frame(number), refresh=True)
                time.sleep(pause)

    def frame(self, number: int) -> Group:
        """The terminal after forward `number`; fits it, whatever its size."""
        step = self.trace.steps[number]
        width, height = max(self.console.width, 1), max(self.console.height - 1, 1)
        head = Text(no_wrap=True, overflow="ellipsis")
        head.append(f"forward {number + 1} of {len(self.trace.steps)} ", "bold")
        head.append(step.kind, f"bold {COLOURS[step.kind]}")
        head.append(clean(f"  {self.trace.model} {self.trace.method}"), "dim")
        foot = [self._counts(number, width), self._cache(step, width)] if height >= 4 else []
        gap = [Text()] if height >= 7 else []
        room = max(height - 1 - len(foot) - 2 * len(gap), 1)
        lines = [head, *gap, *self._canvas(number, width, room), *gap, *foot]
        return Group(*lines[:height])

    def _since(self, number: int) -> dict[int, int]:
        """Which positions are decided after a forward, and since which."""
        last, since = self._decided
        if number < last:
            last, since = -1, {}
        for i in range(last + 1, number + 1):
            since.update(dict.fromkeys(self.trace.steps[i].positions, i))
        self._decided = (number, since)
        return since

    def _shown(self, position: int, token: int) -> str:
        """A token in its place; what is no text is one sign."""
        if not self.trace.is_text(position, token):
            return self._end
        return f"{self._new_line}\n".join(map(visible, self.trace.piece(position, token).split("\n")))

    def _places(self, width: int) -> list[list[Place]]:
        """The lines of the whole canvas, broken between words."""
        if self._pages[0] == width:
            return self._pages[1]
        lines: list[list[Place]] = [[]]
        used = 0
        for position in range(self.trace.length):
            token = self.trace.final.get(position)
            for char in self._open if token is None else self._shown(position, token):
                if char == "\n":
                    lines.append([])
                    used = 0
                    continue
                if used + cell_len(char) > width and lines[-1]:
                    lines.append(_carry(lines[-1]))
                    used = sum(cell_len(c) for _, c in lines[-1])
                lines[-1].append((position, char))
                used += cell_len(char)
        self._pages = (width, lines)
        return lines

    def _canvas(self, number: int, width: int, height: int) -> list[Text]:
        """The page on which the forward works."""
        lines, step = self._places(width), self.trace.steps[number]
        focus = min(step.positions) if step.positions else max(step.first, 0)
        at = next((i for i, line in enumerate(lines) if line and line[-1][0] >= focus), 0)
        first = max(min(at // height * height, len(lines) - height), 0)
        return [self._line(line, number) for line in lines[first : first + height]]

    def _line(self, places: list[Place], number: int) -> Text:
        step, since = self.trace.steps[number], self._since(number)
        out = Text(no_wrap=True, overflow="crop")
        for position, char in places:
            if position not in since:
                inside = step.first <= position < step.first + step.span
                style = f"{COLOURS[step.kind]} dim" if inside else "dim"
                out.append((self._inside if inside else self._open) * cell_len(char), style)
            elif since[position] == number:
                out.append(char, f"reverse {COLOURS[step.kind]}")
            else:
                out.append(char, "dim" if char in (self._new_line, self._end) else "")
        return out

    def _counts(self, number: int, width: int) -> Text:
        step, total = self.trace.steps[number], len(self.trace.final)
        text = f"fixed {len(step.positions)}, {len(self._since(number))} of {total} in all"
        window = f"window {span(step)}, {step.width} run, "
        return Text((window if width >= 60 else "") + text, style="dim", no_wrap=True, overflow="ellipsis")

    def _cache(self, step: TraceStep, width: int) -> Text:
        """Slots read and stored, the reads as a bar."""
        most = max(s.reads for s in self.trace.steps)
        room = min(max(width - 36, 0), 30)
        filled = round(room * step.reads / most) if most else 0
        out = Text("cache ", style="dim", no_wrap=True, overflow="ellipsis")
        if room >= 4:
            out.append(self._bar * filled, f"{COLOURS[step.kind]} not dim")
            out.append(self._open * (room - filled) + " ")
        return out.append(f"{step.reads} read, {step.stores} stored")


def _carry(line: list[Place]) -> list[Place]:
    """Takes the unfinished word off a line that is full, for the next one."""
    space = next((i for i in range(len(line) - 1, 0, -1) if line[i][1] == " "), None)
    if space is None or line[-1][1] == " ":
        return []
    word = line[space + 1 :]
    del line[space + 1 :]
    return word


def table(trace: Trace) -> list[str]:
    """One line a forward below a line of heads, columns aligned."""
    rows: list[tuple[str, ...]] = [("forward", "kind", "window", "run", "read", "stored", "fixed", "text")]
    for i, s in enumerate(trace.steps):
        text = visible(trace.fixed_text(s).replace("\n", NEW_LINE))
        numbers = (str(n) for n in (s.width, s.reads, s.stores, len(s.positions)))
        rows.append((str(i + 1), s.kind, span(s).replace("\u2212", "-"), *numbers, text))
    return columns(rows, left=(1, 2, 7))
