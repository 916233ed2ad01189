"""What a run tells: one JSON object a line in a file, and on the terminal a progress bar or plain lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from unmask.errors import UnmaskError

LOG = "log.jsonl"


class Log:
    """Writes the log; only the main process does (`active`).

    Args:
        path: of the file.
        keep: the number of updates that a resumed run goes on from: later entries are of the run that was stopped, and
            are removed. None: a new log.
        steps: of the whole run, for the bar.
    """

    def __init__(self, path: Path, active: bool, keep: int | None = None, steps: int = 0) -> None:
        self.path, self.active = path, active
        self.console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.bar: Progress | None = None
        if not active:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        entries = [] if keep is None else [e for e in read_log(path) if e.get("step", 0) <= keep]
        draft = path.with_suffix(".tmp")
        draft.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        draft.replace(path)
        if sys.stdout.isatty() and not self.console.is_dumb_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task("", total=steps)
            self.bar.start()

    def write(self, **entry: Any) -> None:
        """Adds an entry; those of a step are shown."""
        if not self.active:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        if "step" not in entry:
            return
        if self.bar is not None:
            self.bar.update(self.task, completed=entry["step"])
            if "loss" in entry:
                self.bar.update(self.task, description=shown({k: entry[k] for k in ("loss", "tokens_per_second")}))
                return
        self.console.print(shown(entry))

    def say(self, text: str) -> None:
        """A line for the reader, which goes into the log as well."""
        if self.active:
            self.console.print(text)
            with self.path.open("a") as file:
                file.write(json.dumps({"note": text}) + "\n")

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self.bar is not None:
            self.bar.stop()


def shown(entry: Mapping[str, Any]) -> str:
    """An entry in one line."""
    flat = {
        k: v for key, value in entry.items() for k, v in (value.items() if isinstance(value, dict) else [(key, value)])
    }
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in flat.items())


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log, one for each line; a last line that a killed run left unfinished is left out.

    Raises:
        UnmaskError: a line that is no JSON object.
    """
    if not path.is_file():
        return []
    lines = path.read_text().splitlines(keepends=True)
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(json.loads(line))
        except ValueError:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise UnmaskError(f"{path}, line {number}: not a JSON object") from None
    return entries
