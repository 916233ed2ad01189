"""`unmask bench`: measurements."""

from __future__ import annotations

from typing import Annotated

import typer

from unmask.cli.loading import load
from unmask.cli.options import DeviceOpt, DtypeOpt, JsonOpt, MethodOpt, SetOpt, Settings
from unmask.cli.output import Output

app = typer.Typer(no_args_is_help=True)


@app.callback()
def root() -> None:
    """Measure accuracy and speed."""


@app.command()
def quality(
    model: Annotated[str, typer.Argument(help="nano, nano-ar, a checkpoint's folder, or a hub id.")] = "nano",
    method: MethodOpt = None,
    set_: SetOpt = None,
    count: Annotated[int, typer.Option(min=1, help="How many problems.")] = 500,
    device: DeviceOpt = None,
    dtype: DtypeOpt = "auto",
    json: JsonOpt = False,
) -> None:
    """Accuracy and tokens per forward on program-made problems with checkable answers."""
    out = Output.make(live=False, json=json)
    settings = Settings.given(method, set_ or [])
    lm = load(model, out, adapter=None, device=device, dtype=dtype)
    settings.check(lm.default_method)

    from unmask.bench.quality import Contender
    from unmask.bench.quality import quality as measure

    name = settings.method or lm.default_method
    for summary in measure([Contender(model, lm, name, settings.common | settings.options)], count=count):
        if json:
            out.object(summary)
        else:
            out.console.print(", ".join(f"{k} {v}" for k, v in summary.items()), soft_wrap=True)
