"""`unmask generate`: text for one prompt or a batch.

unmask generate nano "Tom has 3 boxes of 12 pens. How many pens does he have?" -m block_diffusion --set threshold=0.8
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from unmask.cli.loading import load
from unmask.cli.options import (
    AdapterOpt,
    DeviceOpt,
    DtypeOpt,
    EngineOpt,
    JsonOpt,
    LiveOpt,
    MethodOpt,
    ModelArg,
    QuietOpt,
    SeedOpt,
    SetOpt,
    Settings,
    TemperatureOpt,
    TokensOpt,
    TopKOpt,
    TopPOpt,
    flags,
    parse_ids,
)
from unmask.cli.output import Output, answer
from unmask.errors import UnmaskError


def generate(
    model: ModelArg,
    prompt: Annotated[
        list[str] | None,
        typer.Argument(help="Several are decoded as a batch; `-` or nothing reads stdin.", show_default=False),
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
    ids: Annotated[bool, typer.Option("--ids", help="Prompts are token ids: '5 6 7' or 5,6,7.")] = False,
    engine: EngineOpt = False,
    json: JsonOpt = False,
    live: LiveOpt = None,
    quiet: QuietOpt = False,
) -> None:
    """Decode one prompt, or several as a batch.

    On a terminal the text is shown while it resolves; in a pipe stdout gets the text and stderr the counters.
    """
    out = Output.make(live=live, json=json, quiet=quiet)
    common = flags(max_new_tokens, temperature, top_p, top_k, seed)
    settings = Settings.given(method, set_ or [], **common)
    prompts = read_prompts(prompt or [], ids=ids)
    lm = load(model, out, adapter=adapter, device=device, dtype=dtype)
    answer(lm, prompts, out, settings.arguments(lm) | {"raw": raw, "engine": engine})


def read_prompts(given: list[str], *, ids: bool) -> list[Any]:
    """The prompts of the command line, "-" replaced by stdin; stdin alone if none is given and it is not a terminal."""
    if not given and sys.stdin.isatty():
        raise UnmaskError("no prompt: give one as an argument, or on stdin")
    if given.count("-") > 1:
        raise UnmaskError("stdin can be one prompt only; give '-' once")
    texts = [_stdin() if text == "-" else _utf8(text) for text in given or ["-"]]
    return [parse_ids(text) for text in texts] if ids else texts


def _stdin() -> str:
    try:
        return _utf8(sys.stdin.read().rstrip("\n"))
    except UnicodeDecodeError:
        raise UnmaskError("the prompt on stdin is not UTF-8 text") from None


def _utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes that are no UTF-8 arrive as lone surrogates
        raise UnmaskError(f"the prompt is not UTF-8 text: {text[:40]!r}") from None
    return text
