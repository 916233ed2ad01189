"""The commands of the chat: one function each, its docstring is what /help shows."""

from __future__ import annotations

from collections.abc import Callable

from rich.table import Table
from rich.text import Text

from unmask.cli.chat_compare import compare as run_compare
from unmask.cli.loading import load
from unmask.cli.options import parse_pair, readable
from unmask.cli.session import Session, check_chat
from unmask.errors import UnmaskError, unknown

Command = Callable[[Session, str], None]
COMMANDS: dict[str, tuple[str, Command]] = {}


class Quit(Exception):  # noqa: N818 - not an error
    """The chat is over."""


def command(name: str, arguments: str = "") -> Callable[[Command], Command]:
    """Makes a function known as /name."""

    def add(function: Command) -> Command:
        COMMANDS[name] = (arguments, function)
        return function

    return add


def dispatch(session: Session, line: str) -> None:
    """Runs "/name rest"."""
    name, _, rest = line[1:].partition(" ")
    if name not in COMMANDS:
        raise _unknown(name)
    COMMANDS[name][1](session, rest.strip())


def _unknown(name: str) -> UnmaskError:
    return unknown("command", f"/{name}", [f"/{n}" for n in COMMANDS])


def _needs(text: str, what: str) -> str:
    if not text:
        raise UnmaskError(what)
    return text


@command("method", "[NAME]")
def method(session: Session, rest: str) -> None:
    """decode with another method; without a name: list them"""
    from unmask.decoding import METHODS

    if rest:
        session.switch(rest)
    else:
        session.out.note("methods: " + ", ".join(sorted(METHODS)))
    session.out.note(f"method: {session.method}")


@command("set", "KEY=VALUE")
def set_(session: Session, rest: str) -> None:
    """set an option of the method, or temperature, max_new_tokens ...; without one: show what is set"""
    if rest:
        key, value = parse_pair(rest, "/set")
        before = dict(session.settings.options)
        session.settings.set(key, value)
        try:
            session.settings.check(session.lm.default_method)
        except UnmaskError:
            session.settings.options = before
            raise
    given = session.settings.common | session.settings.options
    session.out.note(", ".join(f"{k}={readable(v)}" for k, v in given.items()) or "nothing is set")


@command("unset", "KEY")
def unset(session: Session, rest: str) -> None:
    """forget an option"""
    session.settings.unset(_needs(rest, "/unset takes the name of an option"))


@command("compare", "A B [TEXT]")
def compare(session: Session, rest: str) -> None:
    """answer the last message (or TEXT) with two methods, side by side; nothing is remembered"""
    words = rest.split(maxsplit=2)
    if len(words) < 2:
        raise UnmaskError("/compare takes two methods, and a text if it is not for the last message")
    run_compare(session, words[0], words[1], words[2] if len(words) > 2 else "")


@command("example")
def example(session: Session, rest: str) -> None:
    """ask a word problem of the kind that nano was trained on"""
    from unmask.tasks import get_task

    question = next(get_task("wordmath").generate("test", 1, start=session.examples)).question
    session.examples += 1
    session.out.note(question)
    session.ask(question)


@command("retry")
def retry(session: Session, rest: str) -> None:
    """answer the last message again (with another seed)"""
    text = _needs(session.asked, "nothing was asked yet")
    if session.messages and session.messages[-2]["content"] == text:
        del session.messages[-2:]
    session.retries += 1
    session.ask(text)


@command("clear")
def clear(session: Session, rest: str) -> None:
    """forget the conversation"""
    session.messages, session.asked, session.retries = [], "", 0
    session.out.note("the conversation is empty")


@command("system", "[TEXT]")
def system(session: Session, rest: str) -> None:
    """what the model is told before everything else; without TEXT: nothing"""
    session.system = rest
    session.out.note(f"system: {rest or 'nothing'}")


@command("model", "[NAME]")
def model(session: Session, rest: str) -> None:
    """show the model, or load another one and start anew"""
    if rest:
        lm = load(rest, session.out, **session.where)
        check_chat(lm)
        session.lm, session.name = lm, rest
        session.messages, session.asked, session.retries = [], "", 0
    session.out.note(describe(session))


@command("help")
def help_(session: Session, rest: str) -> None:
    """show this"""
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, (arguments, function) in COMMANDS.items():
        table.add_row(Text(f"/{name} {arguments}"), Text(function.__doc__ or "", style="dim"))
    session.out.notes.print(table)


@command("quit")
def quit_(session: Session, rest: str) -> None:
    """leave (also Ctrl-D)"""
    raise Quit


def describe(session: Session) -> str:
    """One line on what answers."""
    config, family = session.lm.model.config, session.lm.family
    size = sum(p.numel() for p in session.lm.model.parameters())
    return (
        f"{session.name}: {family.name}, {size / 1e6:.1f} M parameters, context {config.max_positions}, "
        f"{session.lm.model.device}, method {session.method}"
    )
