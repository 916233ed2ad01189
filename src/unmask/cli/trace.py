"""`unmask trace`: how an answer comes about, forward by forward, on the terminal and as a picture.

unmask trace nano "Tom has 3 boxes of 12 pens. How many pens does he have?" --html run.html
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from unmask.cli.generate import read_prompts
from unmask.cli.loading import load
from unmask.cli.options import (
    AdapterOpt,
    DeviceOpt,
    DtypeOpt,
    JsonOpt,
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
from unmask.cli.output import Output, decode, forwards
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.trace import Trace


def trace(
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|FILE",
            help="nano, nano-ar, a checkpoint's folder, a hub id; or a trace saved with --save (*.json).",
            show_default=False,
        ),
    ],
    prompt: Annotated[
        list[str] | None, typer.Argument(help="One prompt; `-` or nothing reads stdin.", show_default=False)
    ] = None,
    method: MethodOpt = None,
    max_new_tokens: TokensOpt = None,
    temperature: TemperatureOpt = None,
    top_p: TopPOpt = None,
    top_k: TopKOpt = None,
    seed: SeedOpt = None,
    set_: SetOpt = None,
    adapter: AdapterOpt = None,
    device: DeviceOpt = None,
    dtype: DtypeOpt = "auto",
    raw: Annotated[bool, typer.Option("--raw", help="Take the prompt as it is, without the chat template.")] = False,
    ids: Annotated[bool, typer.Option("--ids", help="The prompt is token ids: '5 6 7' or 5,6,7.")] = False,
    save: Annotated[Path | None, typer.Option(help="Save the trace as JSON.", metavar="FILE.json")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with a player.", metavar="FILE.html")] = None,
    svg: Annotated[Path | None, typer.Option(help="Write a picture.", metavar="FILE.svg")] = None,
    speed: Annotated[
        float | None, typer.Option(help="Forwards shown a second; default: 4, or what makes it 20 seconds.")
    ] = None,
    play: Annotated[
        bool | None, typer.Option("--play/--no-play", help="Replay, or print a table; default: replay on a terminal.")
    ] = None,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Show what each forward of an answer fixed, over which window, and what it read of the cache.

    On a terminal the run is replayed; in a pipe stdout gets a table with one line a forward.
    """
    if speed is not None and not 0 < speed <= 1000:
        raise UnmaskError(f"--speed must be above 0 and at most 1000, not {speed:g}")
    if play and json:
        raise UnmaskError("--play and --json exclude each other")
    out = Output.make(live=False if play is False else None, json=json, quiet=quiet)
    if play and not out.live:
        raise UnmaskError("--play needs a terminal on stdout")
    common = flags(max_new_tokens, temperature, top_p, top_k, seed)
    targets = _targets(save, html, svg)
    if source.endswith(".json") or Path(source).is_file():
        given = {"method": method, "set": set_, "adapter": adapter, "device": device, "raw": raw, "ids": ids} | common
        found = _saved(source, prompt or [], given)
    else:
        settings = Settings.given(method, set_ or [], **common)
        where = {"adapter": adapter, "device": device, "dtype": dtype}
        found = _run(source, prompt or [], settings, out, where, raw=raw, ids=ids)
    _write(found, targets, out)
    _show(found, out, speed)


def _targets(save: Path | None, html: Path | None, svg: Path | None) -> dict[str, Path]:
    """The files to be written, checked before anything is decoded."""
    from unmask.trace import check_target

    targets = {name: path for name, path in (("save", save), ("html", html), ("svg", svg)) if path is not None}
    if len(set(targets.values())) < len(targets):
        raise UnmaskError(f"{' and '.join(f'--{name}' for name in targets)} name the same file")
    for path in targets.values():
        check_target(path)
    return targets


def _saved(source: str, prompts: list[str], given: dict[str, Any]) -> Trace:
    from unmask.trace import read

    if prompts:
        raise UnmaskError(f"{source} is a saved trace, which takes no prompt")
    for name, value in given.items():
        if value is not None and value is not False:
            raise UnmaskError(f"{source} is a saved trace: --{name.replace('_', '-')} cannot change it")
    return read(source)


def _run(
    model: str,
    prompts: list[str],
    settings: Settings,
    out: Output,
    where: dict[str, Any],
    *,
    raw: bool,
    ids: bool,
) -> Trace:
    asked = read_prompts(prompts, ids=ids)
    if len(asked) > 1:
        raise UnmaskError(f"trace takes one prompt, {len(asked)} are given")
    lm = load(model, out, **where)

    from unmask.trace import from_generation

    arguments = settings.arguments(lm) | {"raw": raw}
    with out.busy("decoding"):
        result = decode(lm, asked, trace=True, **arguments)[0]
    text = asked[0] if isinstance(asked[0], str) else None
    return from_generation(lm, result, model=model, prompt=text, options=settings.common | settings.options)


def _write(trace: Trace, targets: dict[str, Path], out: Output) -> None:
    from unmask import picture
    from unmask.trace import write_text

    for name, path in targets.items():
        if name == "save":
            trace.save(path)
        else:
            write_text(path, picture.html(trace) if name == "html" else picture.svg(trace))
        if not out.json and not out.quiet:
            out.note(f"wrote {path}")


def _show(trace: Trace, out: Output, speed: float | None) -> None:
    from unmask.cli.replay import Replay, table

    if out.json:
        out.object(trace.as_dict())
        return
    if out.live:
        Replay(trace, out.console).play(speed)
        out.text(trace.text)
    else:
        for line in table(trace):
            if out.console.is_terminal:
                out.console.print(Text(line), no_wrap=True, overflow="ellipsis")
            else:
                print(line)
    if not out.quiet:
        c = trace.counters  # no speed: tracing slows a run down
        out.note(f"{trace.method}: {c.tokens} tokens, {forwards(c)}, TPF {c.tpf:.2f}")
