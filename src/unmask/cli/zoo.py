"""`unmask zoo`: base models, every variant of them, their curves and claims, from a folder of YAML files.

unmask zoo --out runs/zoo --parallel 3 --results bench/results
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unmask.cli.loading import check_device
from unmask.cli.options import JsonOpt
from unmask.cli.output import Output
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.bench.zoo.plan import Plan
    from unmask.bench.zoo.run import Asked
    from unmask.bench.zoo.store import Store

FAILED = 1
"""Exit code where a job gave nothing."""


def zoo(
    plan: Annotated[Path, typer.Argument(help="Folder of plan.yaml and a file for each stage.")] = Path("configs/zoo"),
    out_dir: Annotated[
        Path, typer.Option("--out", help="Checkpoints, points and tables; goes on where it stopped.")
    ] = Path("runs/zoo"),
    only: Annotated[str | None, typer.Option(help="Stages, separated by commas; what they need is made first.")] = None,
    budget: Annotated[float, typer.Option(min=0.001, help="What all minutes are multiplied by.")] = 1.0,
    parallel: Annotated[int, typer.Option(min=0, help="Jobs at a time on each device; 0: in this process.")] = 1,
    within: Annotated[
        float | None, typer.Option(min=0.1, help="Minutes; stops then, and begins nothing longer.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cuda, cpu, or cuda:0,cuda:1,...; default: cuda, if any.")] = None,
    from_: Annotated[
        list[str] | None, typer.Option("--from", metavar="STAGE=FOLDER", help="Take a stage's output from there.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Change a stage's file; repeatable.")
    ] = None,
    evaluate_only: Annotated[
        bool, typer.Option("--evaluate-only", help="Train nothing, measure what is there.")
    ] = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="Tiny models that learn nothing: a test on a CPU.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
    results: Annotated[Path | None, typer.Option(help="Write zoo.json, zoo.md and the figures here as well.")] = None,
    json: JsonOpt = False,
) -> None:
    """Train base models and every variant, measure all of them, and write one table, one result and the curves.

    A stage or a point that is there is not made again. Exit code 1: something failed, the rest was done.
    """
    out = Output.make(live=False, json=json)
    from unmask.bench.zoo.run import Asked
    from unmask.bench.zoo.store import Store

    made = _plan(plan, tiny, budget, set_ or [])
    store = Store(out_dir, dict(_pair(text) for text in from_ or []))
    asked = Asked(
        only=None if only is None else [name.strip() for name in only.split(",") if name.strip()],
        measure_only=evaluate_only,
        parallel=parallel,
        devices=_devices(device),
        within=within,
        say=out.note,
    )
    _do(made, store, asked, out, dry_run, results)


def _plan(folder: Path, tiny: bool, budget: float, changes: list[str]) -> Plan:
    from unmask.bench.zoo.plan import load_plan
    from unmask.bench.zoo.run import checked

    try:
        return checked(load_plan(folder, tiny=tiny, budget=budget, changes=changes))
    except ModuleNotFoundError as error:
        if error.name != "yaml":
            raise
        raise UnmaskError("the zoo needs yaml: pip install 'unmask[train]'") from None


def _do(plan: Plan, store: Store, asked: Asked, out: Output, dry_run: bool, results: Path | None) -> None:
    from unmask.bench.zoo import report
    from unmask.bench.zoo.run import overview, todo, write_all
    from unmask.bench.zoo.run import zoo as run

    for line in overview(plan, todo(plan, store, asked)):
        out.note(line)
    if dry_run:
        return
    result, outcome = run(plan, store, asked)
    if results is not None:
        write_all(result, results, out.note)
    failed = {name: why for name, why in outcome.items() if why}
    if out.json:
        out.object({"claims": result["claims"], "failed": failed, "file": str(store.out / "zoo.json")})
    else:
        print(report.markdown(result))
    for name, why in failed.items():
        out.error(f"{name}: {why}")
    if failed:
        raise typer.Exit(FAILED)


def _pair(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not (equals and name.strip() and folder.strip()):
        raise UnmaskError(f"--from takes STAGE=FOLDER, not {text!r}")
    return name.strip(), folder.strip()


def _devices(asked: str | None) -> list[str]:
    import torch

    names = [name.strip() for name in (asked or "").split(",") if name.strip()]
    for name in names:
        check_device(name)
    return names or ["cuda" if torch.cuda.is_available() else "cpu"]
