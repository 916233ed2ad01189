"""`unmask export`: a state of a training run as a checkpoint.

unmask export runs/v2 checkpoints/v2 --which best
"""

from __future__ import annotations

from typing import Annotated

import typer

from unmask.cli.options import JsonOpt
from unmask.cli.output import Output


def export(
    run: Annotated[str, typer.Argument(help="The output folder of a training run.", show_default=False)],
    target: Annotated[str, typer.Argument(metavar="OUT", help="A new folder.", show_default=False)],
    which: Annotated[str, typer.Option(help="last: the newest state. best: the best that was measured.")] = "last",
    merge: Annotated[
        bool | None,
        typer.Option(
            "--merge/--adapter",
            help="Of a LoRA run: the adapter merged into its base, or alone. Default: what the run itself would leave.",
            show_default=False,
        ),
    ] = None,
    json: JsonOpt = False,
) -> None:
    """Write a saved state of a training run as a checkpoint in the layout and names of its family."""
    out = Output.make(live=False, json=json)
    from unmask.training.export import export as write

    form = None if merge is None else "merged" if merge else "adapter"
    with out.busy(f"exporting {run}"):
        result = write(run, target, which, form)
    if json:
        out.object(result)
    else:
        out.console.print(f"step {result['step']} ({result['form']}): {result['folder']}", soft_wrap=True)
