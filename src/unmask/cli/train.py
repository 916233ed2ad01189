"""`unmask train`: a training run from a YAML file, or from a recipe's name.

unmask train configs/nano/ar.yaml --set output=runs/nano-ar --set steps=100
unmask train fast_dllm_v2 --set init=Qwen/Qwen2.5-1.5B-Instruct --set output=runs/v2 --dry-run
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unmask.cli.options import JsonOpt
from unmask.cli.output import Output
from unmask.errors import UnmaskError, unknown

if TYPE_CHECKING:
    from unmask.training import TrainConfig

ChangesOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change an option of the file (recipe.name=value too); repeatable."
    ),
]
EXTRA = ("yaml", "accelerate", "datasets", "matplotlib", "peft")


def train(
    config: Annotated[
        str, typer.Argument(help="A YAML file of training options, or the name of a recipe.", show_default=False)
    ],
    set_: ChangesOpt = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest state in the run's output.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the run will take (parameters, rows, steps, memory), and stop.")
    ] = False,
    json: JsonOpt = False,
) -> None:
    """Train a model as a YAML file says, or by a recipe with everything else at its default.

    A recipe's name needs --set init=CHECKPOINT and --set output=FOLDER. Several GPUs: `torchrun --nproc-per-node 8 -m
    unmask.training CONFIG.yaml`, or `accelerate launch -m unmask.training CONFIG.yaml`.
    """
    out = Output.make(json=json)
    try:
        with redirect_stdout(sys.stderr if json else sys.stdout):
            result = _run(config, [*(set_ or []), *(["resume=true"] if resume else [])], dry_run)
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        raise UnmaskError(f"training needs {error.name}: pip install 'unmask[train]'") from None
    if json:
        out.object(result)
        return
    for key, value in result.items():
        out.console.print(f"{key}: {value}", soft_wrap=True)


def _run(source: str, changes: list[str], dry_run: bool) -> dict[str, Any]:
    from unmask.training import run

    config = _config(source, changes)
    if not dry_run:
        return run(config)
    from unmask.training.estimate import estimate

    return estimate(config)


def _config(source: str, changes: list[str]) -> TrainConfig:
    from unmask.training import load_config
    from unmask.training.config import recipe_config
    from unmask.training.recipes import RECIPES

    path = Path(source)
    if path.suffix or path.exists() or len(path.parts) > 1:
        return load_config(source, changes)
    if source not in RECIPES:
        raise unknown("recipe (nor is there a file of this name)", source, RECIPES)
    return recipe_config(source, changes)
