"""`unmask chat`: a conversation, with commands to change and compare methods on the way.

unmask chat nano --method block_diffusion
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from unmask.cli.loading import load
from unmask.cli.options import (
    AdapterOpt,
    DeviceOpt,
    DtypeOpt,
    JsonOpt,
    LiveOpt,
    MethodOpt,
    QuietOpt,
    SeedOpt,
    SetOpt,
    Settings,
    TemperatureOpt,
    TokensOpt,
    TopKOpt,
    TopPOpt,
    flags,
)
from unmask.cli.output import Output
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.cli.session import Session


def chat(
    model: Annotated[str, typer.Argument(help="nano, nano-ar, a checkpoint's folder, or a hub id.")] = "nano",
    method: MethodOpt = None,
    max_new_tokens: TokensOpt = None,
    temperature: TemperatureOpt = None,
    top_p: TopPOpt = None,
    top_k: TopKOpt = None,
    seed: SeedOpt = None,
    set_: SetOpt = None,
    system: Annotated[str, typer.Option(help="A system message.")] = "",
    adapter: AdapterOpt = None,
    device: DeviceOpt = None,
    dtype: DtypeOpt = "auto",
    json: JsonOpt = False,
    live: LiveOpt = None,
    quiet: QuietOpt = False,
) -> None:
    """Talk to a model; /help shows the commands. Piped input works too: one message a line."""
    out = Output.make(live=live, json=json, quiet=quiet)
    common = flags(max_new_tokens, temperature, top_p, top_k, seed)
    settings = Settings.given(method, set_ or [], **common)
    where = {"adapter": adapter, "device": device, "dtype": dtype}
    lm = load(model, out, **where)
    settings.check(lm.default_method)

    from unmask.cli.commands import describe
    from unmask.cli.session import Session, check_chat

    check_chat(lm)
    session = Session(lm, model, settings, out, where, system=system)
    asking = sys.stdin.isatty()
    if asking and not json:
        out.note(f"{describe(session)}; /help shows the commands, /example asks a problem, Ctrl-D leaves")
    converse(session, asking)


def converse(session: Session, asking: bool) -> None:
    """Turns until the end of input or /quit. Mistakes and Ctrl-C end a turn, not the chat."""
    from unmask.cli.commands import Quit

    for line in _lines(asking, session.out):
        try:
            turn(session, line)
        except UnmaskError as error:
            session.out.error(str(error))
        except KeyboardInterrupt:
            if not asking:
                raise
            session.out.note("stopped; /retry asks again")
        except Quit:
            return


def turn(session: Session, line: str) -> None:
    """One line of the user: a command or a message."""
    from unmask.cli.commands import dispatch

    if line.startswith("/"):
        dispatch(session, line)
        return
    session.retries = 0
    session.ask(line)


def _lines(asking: bool, out: Output) -> Iterator[str]:
    """Stripped lines that are not empty; Ctrl-C and Ctrl-D at the prompt end them."""
    if asking:
        with suppress(ImportError):  # Windows has none
            import readline  # noqa: F401 - gives input() editing and history
    while True:
        try:
            line = _prompted(out) if asking else sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            if not asking:
                raise
            out.note("")
            return
        except UnicodeDecodeError:
            raise UnmaskError("the input is not UTF-8 text") from None
        if not asking and not line:
            return
        if line.strip():
            yield line.strip()


def _prompted(out: Output) -> str:
    """A line typed by the user; the prompt stays out of a redirected stdout."""
    if out.notes is out.console:
        return input("> ")
    print("> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line
