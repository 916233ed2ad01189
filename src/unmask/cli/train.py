"""`unmask train`: a training run from a YAML file.

unmask train configs/nano/ar.yaml --set output=runs/nano-ar --set steps=100
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Annotated, Any

import typer

from unmask.cli.options import JsonOpt
from unmask.cli.output import Output
from unmask.errors import UnmaskError

ChangesOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change an option of the file (recipe.name=value too); repeatable."
    ),
]
EXTRA = ("yaml", "accelerate", "matplotlib")


def train(
    config: Annotated[str, typer.Argument(help="A YAML file of training options.", show_default=False)],
    set_: ChangesOpt = None,
    json: JsonOpt = False,
) -> None:
    """Train a model as a YAML file says. Several GPUs: `accelerate launch -m unmask.training CONFIG.yaml`."""
    out = Output.make(json=json)
    try:
        with redirect_stdout(sys.stderr if json else sys.stdout):
            result = _run(config, set_ or [])
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        raise UnmaskError(f"training needs {error.name}: pip install 'unmask[train]'") from None
    if json:
        out.object(result)
        return
    for key, value in result.items():
        out.console.print(f"{key}: {value}", soft_wrap=True)


def _run(path: str, changes: list[str]) -> dict[str, Any]:
    from unmask.training import load_config, run

    return run(load_config(path, changes))
