"""`unmask methods`: what can be decoded with, from which paper, and under which options."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from unmask.cli.options import COMMON, JsonOpt, readable
from unmask.cli.output import Output


def methods(
    name: Annotated[str | None, typer.Argument(help="One method; default: all.", show_default=False)] = None,
    json: JsonOpt = False,
) -> None:
    """List the decoding methods: paper, options, ranges, and the official codes' names of the options."""
    from unmask.decoding import METHODS, Method, describe, method_class

    out = Output.make(json=json)
    names = sorted(METHODS) if name is None else [method_class(name).name]
    found = [facts(n) for n in names]
    common = [asdict(c) | {"alias": list(c.alias), "choices": []} for c in COMMON.values()]
    if json:
        out.object({"methods": found, "common": common})
        return
    shared = {o["name"]: o for o in describe(Method)}
    for method in found:
        paper = f"arXiv {method['arxiv']}" if method["arxiv"] else ""
        title = method["title"] + ("" if method["arxiv"] in method["title"] else f" ({paper})")
        out.console.print(Text.assemble((method["name"], "bold"), "  ", title))
        out.console.print(Padding(method["description"], (0, 0, 0, 2)))
        show_options(out, [o for o in method["options"] if o["name"] not in shared])
    out.console.print(Text.assemble(("options of all methods", "bold")))
    show_options(out, [*common, *shared.values()])


def facts(name: str) -> dict[str, Any]:
    """Paper, description and options of a method."""
    from unmask.decoding import describe, method_class

    cls = method_class(name)
    description = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
    return {
        "name": name,
        "title": cls.title,
        "arxiv": cls.arxiv,
        "description": description,
        "options": describe(cls),
    }


def show_options(out: Output, options: list[dict[str, Any]]) -> None:
    """A table of options: name=default, range or choices, help, aliases."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=out.console.width >= 60, overflow="fold")
    table.add_column(overflow="fold")
    for option in options:
        extra = [text for text in (allowed(option), also(option)) if text]
        row = Text(option["help"])
        for text in extra:
            row.append(f"; {text}", style="dim")
        table.add_row(Text(f"  {option['name']}={readable(option['default'])}"), row)
    out.console.print(table)
    out.console.print()


def allowed(option: dict[str, Any]) -> str:
    """Range or choices in words."""
    if option["choices"]:
        return " | ".join(option["choices"])
    low, high = option["low"], option["high"]
    if low is None:
        return ""
    return f"at least {low}" if high is None else f"{low} to {high}"


def also(option: dict[str, Any]) -> str:
    """Official names in words."""
    return f"also {', '.join(option['alias'])}" if option["alias"] else ""
