"""/compare: two methods on one message, one after the other so that neither slows the other down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from unmask.cli.output import Output, decode, forwards, watched
from unmask.cli.view import clean
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.cli.session import Session
    from unmask.lm import Generation


def compare(session: Session, first: str, second: str, text: str) -> None:
    """Answers `text` (default: the last message) with two methods and shows what each needed."""
    messages = _messages(session, text)
    arguments = [_arguments(session, name) for name in (first, second)]
    out = session.out

    def work(panes: list[Any]) -> list[Generation]:
        return [decode(session.lm, [messages], streamer=s, **a)[0] for a, s in zip(arguments, panes)]

    if out.live:
        results = watched(
            session.lm, out, [first, second], lambda view: work([[p] for p in view.panes]), side_by_side=True
        )
    else:
        results = work([None, None])
    same = results[0].ids == results[1].ids
    if out.json:
        out.object({"compare": [r.as_dict() for r in results], "same_text": same})
        return
    _show(out, results, same)


def _messages(session: Session, text: str) -> list[dict[str, str]]:
    if text:
        return session.conversation(text)
    if not session.asked:
        raise UnmaskError("nothing was asked yet; give a text after the two methods")
    answered = session.messages[-2:-1] == [{"role": "user", "content": session.asked}]
    if not answered:
        return session.conversation(session.asked)
    before, session.messages = session.messages, session.messages[:-2]
    try:
        return session.conversation(session.asked)
    finally:
        session.messages = before


def _arguments(session: Session, name: str) -> dict[str, Any]:
    settings, lost = session.settings.for_method(name)
    if lost:
        session.out.note(f"{name} has no option {', '.join(lost)}; compared without")
    return session.arguments(settings)


def _show(out: Output, results: list[Generation], same: bool) -> None:
    texts = Table.grid(padding=(0, 2))
    wide = out.live and out.console.width >= 64
    if wide:
        for _ in results:
            texts.add_column(ratio=1, overflow="fold")
        texts.add_row(*(Text(r.method, style="bold") for r in results))
        texts.add_row(*(Text(clean(r.text)) for r in results))
        out.console.print(texts)
    else:
        for result in results:
            out.note(f"{result.method}:")
            out.text(result.text)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold" if out.live else "")
    for head in ("method", "tokens", "forwards", "TPF", "tok/s"):
        table.add_column(head, justify="right" if head in ("tokens", "TPF", "tok/s") else "left")
    for r in results:
        c = r.counters
        table.add_row(r.method, str(c.tokens), forwards(c), f"{c.tpf:.2f}", f"{c.tokens_per_second:.1f}")
    out.notes.print(table)
    out.note("same text" if same else "different texts")
