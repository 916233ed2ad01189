"""The live view of text that resolves: streamers that draw on the terminal.

Final text stands as it is, drafts are coloured, open positions are blocks, one a token. Only the end that fits the
terminal is drawn. Drawing happens between forwards, at most 15 times a second and never more than a
tenth of the time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text
from torch import Tensor

from unmask.detokenize import Decode, Detokenizer

DRAFT = "cyan"
OPEN = "dim"
COLUMN = 30  # narrower panes are stacked rather than put side by side
# Control characters would move the cursor or worse; new lines and tabs stay.
_CONTROL = {c: None for c in (*range(32), *range(127, 160)) if chr(c) not in "\n\t"}


def clean(text: str) -> str:
    """Text that is safe to write to a terminal."""
    return text.translate(_CONTROL).replace("\t", "    ")


class Pane:
    """One row of a batch: a streamer that remembers what is to be drawn. Ids are turned into text only when drawn."""

    def __init__(self, decode: Decode, mask_id: int, view: View, title: str = "") -> None:
        self.title = title
        self.text = ""
        self.ended = False
        self._detokenizer = Detokenizer(decode)
        self._mask_id = mask_id
        self._view = view
        self._prompt_seen = False
        self._waiting: list[int] = []
        self._draft: list[int] = []
        self._tokens = 0

    def put(self, value: Tensor) -> None:
        """The prompt [1, P] first, then final tokens [T]."""
        if not self._prompt_seen:
            self._prompt_seen = True
        else:
            new = value.flatten().tolist()
            self._waiting += new
            self._tokens += len(new)
            # The next draft follows at once if there is one; keep the rest of the old for a drawing in between.
            self._draft = self._draft[len(new) :]
        self._view.changed()

    def put_draft(self, value: Tensor) -> None:
        """Tokens [T] behind the final ones; open positions hold the mask id."""
        self._draft = value.flatten().tolist()
        self._view.changed()

    def end(self) -> None:
        """No more will come."""
        self._draft, self.ended = [], True
        self._view.changed()

    @property
    def decided(self) -> int:
        """Tokens final or drafted."""
        return self._tokens + sum(i != self._mask_id for i in self._draft)

    def final(self) -> str:
        """The final text so far."""
        if self._waiting:
            self.text += clean(self._detokenizer.push(self._waiting))
            self._waiting = []
        return self.text

    def lines(self, console: Console, width: int, height: int) -> list[Text]:
        """The last `height` lines of the pane, `width` cells wide."""
        # Where the drawn part begins moves by whole screenfuls, so that line breaks stay put in between.
        screen = width * height
        text = self.final()
        out = Text(text[max(0, len(text) // screen - 1) * screen :], overflow="fold")
        block = "." if console.options.ascii_only else "░"
        run: list[int] = []
        for token in [*self._draft, None]:
            if token is not None and token != self._mask_id:
                run.append(token)
                continue
            if run:
                out.append(clean(self._detokenizer.follow(run)), DRAFT)
                run = []
            if token is not None:
                out.append(block, OPEN)
        return list(out.wrap(console, width))[-height:]


class View:
    """The panes of a batch or a comparison on the terminal, as a context manager; nothing of it stays when it ends."""

    def __init__(
        self, console: Console, decode: Decode, mask_id: int, titles: Sequence[str], side_by_side: bool = False
    ) -> None:
        self.console = console
        self.panes = [Pane(decode, mask_id, self, title) for title in titles]
        self._side_by_side = side_by_side
        self._begun = self._drawn = time.perf_counter()
        self._pause = 0.0
        self._live = Live(
            console=console, get_renderable=self._render, auto_refresh=False, transient=True, vertical_overflow="crop"
        )

    def __enter__(self) -> View:
        self._begun = time.perf_counter()
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def changed(self) -> None:
        """Draws, unless it was done a moment ago."""
        now = time.perf_counter()
        if now - self._drawn < self._pause:
            return
        self._live.refresh()
        self._drawn = time.perf_counter()
        self._pause = max(1 / 15, 9 * (self._drawn - now))

    def _render(self) -> RenderableType:
        width, height = max(self.console.width, 1), max(self.console.height - 2, 1)
        count = len(self.panes)
        status = Text(self._status(), style="dim", no_wrap=True, overflow="ellipsis")
        if self._side_by_side and width // count - 2 >= COLUMN:
            return Group(self._columns(width // count - 2, height), status)
        shown = self.panes[: max(height // 2, 1)] if count > 1 else self.panes
        share = max(height // len(shown), 1)
        lines = [line for pane in shown for line in self._titled(pane, width, share)]
        return Group(*lines, status)

    def _titled(self, pane: Pane, width: int, height: int) -> list[Text]:
        if not pane.title:
            return pane.lines(self.console, width, height)
        head = Text(pane.title, style="bold", no_wrap=True, overflow="ellipsis")
        return [head, *pane.lines(self.console, width, max(height - 1, 1))]

    def _columns(self, width: int, height: int) -> Table:
        grid = Table.grid(padding=(0, 2))
        for _ in self.panes:
            grid.add_column(width=width, no_wrap=True)
        grid.add_row(*(Group(*self._titled(pane, width, max(height, 2))) for pane in self.panes))
        return grid

    def _status(self) -> str:
        seconds = time.perf_counter() - self._begun
        decided = sum(pane.decided for pane in self.panes)
        more = "" if len(self.panes) == 1 else f" in {len(self.panes)} texts"
        return f"{decided} tokens{more}, {seconds:.1f} s"


class Plain:
    """A streamer that writes text to stdout as it becomes final."""

    def __init__(self, decode: Decode) -> None:
        self._detokenizer = Detokenizer(decode)
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        """The prompt [1, P] first, then final tokens [T]."""
        if self._prompt_seen:
            print(self._detokenizer.push(value.flatten().tolist()), end="", flush=True)
        self._prompt_seen = True

    def end(self) -> None:
        """Writes what was held back, and a new line."""
        print(self._detokenizer.flush(), flush=True)
