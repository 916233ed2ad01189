"""`unmask demo`: the shipped diffusion model solves a word problem, several tokens at a time.

unmask demo --problem 3
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from unmask.cli.loading import load
from unmask.cli.options import MethodOpt, SetOpt, Settings
from unmask.cli.output import Output, counter_line, decode, watched

if TYPE_CHECKING:
    from torch import Tensor

    from unmask.cli.view import Pane
    from unmask.lm import LM, Generation

FRAMES = 6


def demo(
    problem: Annotated[int, typer.Option(min=0, help="Which problem of the test split.")] = 0,
    pause: Annotated[float, typer.Option(min=0.0, help="Seconds to wait after each forward, for the eye.")] = 0.3,
    method: MethodOpt = None,
    set_: SetOpt = None,
    svg: Annotated[Path | None, typer.Option(help="Also draw what is printed into this SVG file.")] = None,
) -> None:
    """Let nano solve a word problem it has not seen, and count its forwards beside nano-ar's."""
    from unmask.cli.view import clean
    from unmask.tasks import get_task

    out = Output.make()
    out.console.record = svg is not None
    settings = Settings.given(method, set_ or [])
    task = get_task("wordmath")
    asked = next(task.generate("test", 1, start=problem))
    out.console.print(Text(asked.question, style="bold", overflow="fold"))
    lm = load("nano", out, adapter=None, device=None, dtype="auto")
    result = _solve(lm, out, asked.question, settings.arguments(lm), pause)
    out.console.print()
    for number in _chosen(len(result.trace)):
        out.console.print(_frame(lm, result, number))
    out.console.print()
    out.console.print(Text(clean(result.text), overflow="fold"))
    verdict = "right" if task.check(asked, result.text) else "wrong"
    out.console.print(Text(f"expected {asked.answer}: {verdict}", style="green" if verdict == "right" else "red"))
    out.console.print(Text("nano     " + counter_line(result), style="dim"))
    baseline = load("nano-ar", out, adapter=None, device=None, dtype="auto")
    plain = decode(baseline, [asked.question], method="autoregressive")[0]
    out.console.print(Text("nano-ar  " + counter_line(plain), style="dim"))
    if svg is not None:
        svg.write_text(out.console.export_svg(title="unmask demo"))


class Slow:
    """A pane that waits after each forward. Time in streamers is no decoding time, so the counters do not see it."""

    def __init__(self, pane: Pane, pause: float) -> None:
        self.pane, self.pause = pane, pause
        self._shown = 0

    def put(self, value: Tensor) -> None:
        """Final tokens; the first call is the prompt."""
        self.pane.put(value)
        self._wait(0.0 if self._shown == 0 else self.pause)

    def put_draft(self, value: Tensor) -> None:
        """Tokens behind the final ones, after `put` where there were any of those."""
        self.pane.put_draft(value)
        self._wait(self.pause / 2)

    def end(self) -> None:
        """No more will come."""
        self.pane.end()

    def _wait(self, seconds: float) -> None:
        self._shown += 1
        time.sleep(seconds)


def _solve(lm: LM, out: Output, question: str, arguments: dict[str, Any], pause: float) -> Generation:
    """The answer with its trace; shown live on a terminal."""
    arguments = arguments | {"trace": True}
    decode(lm, [question], **(arguments | {"max_new_tokens": 2}))  # the first call of a process is slow
    if not out.live:
        return decode(lm, [question], **arguments)[0]
    return watched(
        lm, out, [""], lambda view: decode(lm, [question], streamer=[Slow(p, pause) for p in view.panes], **arguments)
    )[0]


def _chosen(count: int) -> list[int]:
    """Up to FRAMES forwards, evenly spread, the last one included."""
    if count <= FRAMES:
        return list(range(count))
    return sorted({round(i * (count - 1) / (FRAMES - 1)) for i in range(FRAMES)})


def _frame(lm: LM, result: Generation, number: int) -> Text:
    """The text after forward `number`: what this forward fixed is coloured, open positions are blocks."""
    from unmask.cli.view import DRAFT, OPEN, clean

    tokens: dict[int, int] = {}
    for step in result.trace[: number + 1]:
        tokens |= zip(step.positions, step.tokens)
    step = result.trace[number]
    out = Text(f"forward {number + 1:2d} {step.kind:8s} ", style="dim", overflow="fold")
    for position in range(len(result.ids)):
        if position not in tokens:
            out.append("░", OPEN)
            continue
        assert lm.tokenizer is not None
        piece = clean(lm.tokenizer.decode([tokens[position]])).replace("\n", " ")
        out.append(piece, DRAFT if position in step.positions else "default not dim")
    return out
