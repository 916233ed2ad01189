"""Where results go: a live view on a terminal, plain text in a pipe, or JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from unmask.cli.options import to_json
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.cli.view import View
    from unmask.decoding.counters import Counters
    from unmask.lm import LM, Generation


@dataclass
class Output:
    """console: stdout; notes: where lines about the run go (stdout on a terminal, else stderr)."""

    console: Console
    notes: Console
    live: bool
    json: bool = False
    quiet: bool = False

    @classmethod
    def make(cls, *, live: bool | None = None, json: bool = False, quiet: bool = False) -> Output:
        """For the streams as they are. `live`: None decides by the terminal."""
        console = Console(highlight=False, markup=False, emoji=False, soft_wrap=False)
        able = sys.stdout.isatty() and not console.is_dumb_terminal
        if live and json:
            raise UnmaskError("--live and --json exclude each other")
        if live and not able:
            raise UnmaskError("--live needs a terminal on stdout")
        own = able and not json
        notes = console if own else Console(stderr=True, highlight=False, markup=False, emoji=False)
        return cls(console, notes, own if live is None else live and own, json, quiet)

    def note(self, text: str) -> None:
        """A line about the run."""
        self.notes.print(text, style="dim", soft_wrap=not self.notes.is_terminal)

    def error(self, text: str) -> None:
        """A mistake, in one line, after which the program goes on."""
        self.notes.print(" ".join(text.split()), style="red", soft_wrap=not self.notes.is_terminal)

    def object(self, value: Any) -> None:
        """One JSON object on a line."""
        print(to_json(value), flush=True)

    def text(self, text: str) -> None:
        """Final text: as it is in a pipe, wrapped like the live view on a terminal."""
        from unmask.cli.view import clean

        if sys.stdout.isatty():
            self.console.print(Text(clean(text), overflow="fold"))
        else:
            print(text, flush=True)

    @contextmanager
    def loading(self, name: str) -> Iterator[None]:
        """A sign of life while a checkpoint is read; a hub download has progress bars of its own."""
        if Path(name).is_dir() or "/" not in name:
            with self.busy(f"loading {name}"):
                yield
        else:
            yield

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """A sign of life on a terminal."""
        if not self.live:
            yield
            return
        with self.console.status(what, spinner="line"):
            yield


def columns(rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """Lines with columns aligned, for a pipe: those of `left` at the left, others at the right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return [
        "  ".join(c.ljust(widths[k]) if k in left else c.rjust(widths[k]) for k, c in enumerate(row)).rstrip()
        for row in rows
    ]


def counter_line(result: Generation) -> str:
    """Tokens, forwards by kind, TPF and tokens a second of one answer."""
    c = result.counters
    return f"{result.method}: {c.tokens} tokens, {forwards(c)}, TPF {c.tpf:.2f}, {c.tokens_per_second:.1f} tok/s"


def forwards(counters: Counters) -> str:
    """Forwards by kind: "1 prefill + 12 denoise"."""
    used = [f"{count} {name}" for name, count in counters.forwards.items() if count]
    return " + ".join(used) or "no forwards"


def total_line(results: Sequence[Generation]) -> str:
    """Tokens and speed of a whole batch."""
    tokens = sum(r.counters.tokens for r in results)
    seconds = max(r.counters.seconds for r in results)
    speed = tokens / seconds if seconds else 0.0
    return f"batch of {len(results)}: {tokens} tokens in {seconds:.2f} s, {speed:.1f} tok/s"


def decode(lm: LM, prompts: Sequence[Any], **arguments: Any) -> list[Generation]:
    """LM.generate on a batch, with an error of one line when the memory does not suffice."""
    import torch

    try:
        return lm.generate(prompts, **arguments)
    except torch.OutOfMemoryError as error:
        raise UnmaskError(f"out of memory on {lm.model.device}: {str(error).splitlines()[0]}") from None


def answer(lm: LM, prompts: Sequence[Any], out: Output, arguments: dict[str, Any]) -> list[Generation]:
    """Decodes a batch and shows texts, counters or JSON."""
    results = _decoded(lm, prompts, out, arguments)
    if out.json:
        for result in results:
            out.object(result.as_dict())
        return results
    if not out.quiet:
        if len(results) > 1:
            out.note(total_line(results))
        else:
            out.note(counter_line(results[0]))
    return results


def _decoded(lm: LM, prompts: Sequence[Any], out: Output, arguments: dict[str, Any]) -> list[Generation]:
    """The results; their texts are on the screen, but for JSON."""
    from unmask.cli.view import Plain
    from unmask.detokenize import decoder

    text_of = decoder(lm)
    if out.live:
        titles = [""] if len(prompts) == 1 else [str(i + 1) for i in range(len(prompts))]
        results = watched(lm, out, titles, lambda view: decode(lm, prompts, streamer=view.panes, **arguments))
    elif len(prompts) == 1 and not out.json:
        return decode(lm, prompts, streamer=[Plain(text_of)], **arguments)
    else:
        results = decode(lm, prompts, **arguments)
    if not out.json:
        for i, result in enumerate(results):
            if len(results) > 1:
                out.note(f"{i + 1}. {counter_line(result)}" if not out.quiet else f"{i + 1}.")
            out.text(result.text or text_of(result.ids))
    return results


def watched(lm: LM, out: Output, titles: Sequence[str], work: Callable[[View], Any], side_by_side: bool = False) -> Any:
    """Runs `work` under a live view. When interrupted, the text that was final stays on the screen."""
    from unmask.cli.view import View
    from unmask.detokenize import decoder

    view = View(out.console, decoder(lm), lm.facts.mask_id, titles, side_by_side)
    try:
        with view:
            return work(view)
    except KeyboardInterrupt:
        for pane in view.panes:
            if pane.final():
                out.text(pane.final())
        raise
