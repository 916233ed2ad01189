"""The typer application: its commands, and what becomes of errors, Ctrl-C and closed pipes in all of them."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from unmask.cli.bench import app as bench
from unmask.cli.chat import chat
from unmask.cli.compare import compare
from unmask.cli.demo import demo
from unmask.cli.distil import distil
from unmask.cli.export import export
from unmask.cli.generate import generate
from unmask.cli.info import info
from unmask.cli.methods import methods
from unmask.cli.trace import trace
from unmask.cli.train import train
from unmask.cli.zoo import zoo
from unmask.errors import UnmaskError, UnmaskWarning

RESTORE = "\x1b[0m\x1b[?25h"  # colours off, cursor shown


class Guard(TyperGroup):
    """Turns what may go wrong in any command into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except UnmaskError as error:
            fail(str(error))
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
                sys.stdout.write(RESTORE)
                sys.stdout.flush()
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # Python flushes stdout once more while it exits; that must not complain either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from None


def fail(message: str) -> None:
    """One line on stderr."""
    print(f"unmask: {' '.join(message.split())}", file=sys.stderr)


app = typer.Typer(
    cls=Guard,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, generate, chat, trace, compare, methods, info, train, distil, export, zoo):
    app.command()(command)
app.add_typer(bench, name="bench")


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("unmask")
        except PackageNotFoundError:  # run from a source tree
            from unmask import __version__ as number
        print(f"unmask {number}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Fast decoding and training of diffusion language models."""


def run() -> None:
    """Runs the command line on sys.argv."""
    # What transformers says about files of checkpoints is nothing the user can act on.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module="transformers")
    ordinary = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if issubclass(category, UnmaskWarning):
            print(message, file=sys.stderr)
        else:
            ordinary(message, category, *where)

    warnings.showwarning = show
    for stream in (sys.stdout, sys.stderr):
        # Text that the terminal's encoding lacks must not end a run.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    app(prog_name="unmask")
