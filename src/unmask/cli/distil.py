"""`unmask distil`: a model's own answers, or the states its blocks went through, as training data.

unmask distil nano-ar --task wordmath --count 20000 --out runs/answers.jsonl --only-right
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from unmask.cli.loading import load
from unmask.cli.options import (
    AdapterOpt,
    DeviceOpt,
    DtypeOpt,
    EngineOpt,
    JsonOpt,
    MethodOpt,
    ModelArg,
    SetOpt,
    Settings,
    TemperatureOpt,
    TopKOpt,
    TopPOpt,
    flags,
    parse_pair,
)
from unmask.cli.output import Output
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.training.generated import Asked


def distil(
    model: ModelArg,
    out_file: Annotated[Path, typer.Option("--out", help="The file of JSON lines; goes on where it stopped.")],
    count: Annotated[int, typer.Option(min=1, help="How many prompts in all.")],
    task: Annotated[str | None, typer.Option(help="Problems of this task as prompts; default: wordmath.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Prompts of this file or folder instead: a column prompt, or messages.")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(metavar="OURS=THEIRS", help="What the file calls a column; repeatable.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of the task: train, validation, test, or unseen.")] = "train",
    seed: Annotated[int, typer.Option(min=0, help="Which problems of the split, and which draws.")] = 0,
    method: MethodOpt = None,
    set_: SetOpt = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=1, help="Longest answer.")] = 256,
    temperature: TemperatureOpt = None,
    top_p: TopPOpt = None,
    top_k: TopKOpt = None,
    only_right: Annotated[bool, typer.Option("--only-right", help="Keep answers that the task accepts.")] = False,
    trajectories: Annotated[
        bool, typer.Option("--trajectories", help="Jacobi decoding with all states of its blocks (Jacobi Forcing).")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Prompts decoded together.")] = 8,
    engine: EngineOpt = False,
    adapter: AdapterOpt = None,
    device: DeviceOpt = None,
    dtype: DtypeOpt = "auto",
    json: JsonOpt = False,
) -> None:
    """Let a model write training data: its answers to a task's problems or to the prompts of a file.

    A run that was stopped goes on where it stopped when it is started again.
    """
    out = Output.make(live=False, json=json)
    settings = Settings.given(method, set_ or [], **flags(None, temperature, top_p, top_k, None))
    if "max_new_tokens" in settings.common or "seed" in settings.common:
        raise UnmaskError("give --max-new-tokens and --seed, not --set")
    if trajectories:
        _check_trajectories(settings, engine)
    asked, about = _asked(task, data, column or [], split, seed, only_right)
    lm = load(model, out, adapter=adapter, device=device, dtype=dtype)
    name = "jacobi" if trajectories else settings.method or lm.default_method
    settings.check(name)

    from unmask.bench import record
    from unmask.training.generated import Journal, Writer
    from unmask.training.generated import distil as write

    how = {"method": name, "options": settings.options, "sampling": settings.common, "max_new_tokens": max_new_tokens}
    kept = {"seed": seed, "only_right": only_right, "trajectories": trajectories}
    journal = Journal(
        out_file, {"model": model, "adapter": adapter, **about, **how, **kept}, record.environment(str(lm.model.device))
    )
    writer = Writer(lm=lm, seed=seed, engine={"rows": batch} if engine else None, **how)
    with Progress(console=out.notes, transient=True, disable=not out.notes.is_terminal) as bar:
        work = bar.add_task("prompts", total=count, completed=journal.tried)
        write(
            asked,
            writer,
            journal,
            count=count,
            batch=batch,
            only_right=only_right,
            trajectories=trajectories,
            progress=lambda done: bar.update(work, completed=done),
        )
    if json:
        out.object({"file": str(out_file), "prompts": journal.tried, "rows": journal.written})
    else:
        out.console.print(f"{out_file}: {journal.written} rows of {journal.tried} prompts", soft_wrap=True)


def _check_trajectories(settings: Settings, engine: bool) -> None:
    if settings.method not in (None, "jacobi"):
        raise UnmaskError(f"trajectories are those of jacobi, not of {settings.method}")
    if engine:
        raise UnmaskError("--trajectories are recorded by the eager loop; leave out --engine")
    if settings.common:
        raise UnmaskError(f"--trajectories are those of greedy decoding; leave out {', '.join(settings.common)}")
    for option in ("schedule", "prefill_draft", "early_exit"):
        if option in settings.options:
            raise UnmaskError(f"--trajectories need {option} as it is; leave it out")


def _asked(
    task: str | None, data: str | None, column: list[str], split: str, seed: int, only_right: bool
) -> tuple[Asked, dict[str, Any]]:
    """The prompts, and what the state says of them."""
    from unmask.tasks import get_task
    from unmask.tasks.base import check_split
    from unmask.training.generated import Problems, Rows

    if data is None:
        if column:
            raise UnmaskError("--column is of --data")
        name = task or "wordmath"
        return Problems(get_task(name), check_split(split), seed), {"task": name, "split": split}
    if task is not None or only_right:
        raise UnmaskError(f"--data and {'--task' if task is not None else '--only-right'} exclude each other")
    columns = {ours: str(theirs) for ours, theirs in (parse_pair(text, "--column") for text in column)}
    return Rows(data, columns), {"data": data, "columns": columns}
