"""`unmask bench`: measurements, with a raw result file beside every number.

unmask bench quality nano --set threshold=0.9 --against nano-ar --out bench/results/nano-quality.json

The commands that measure speed are in `bench_speed`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from unmask.cli.bench_speed import memory, step, throughput
from unmask.cli.bench_train import train
from unmask.cli.loading import load
from unmask.cli.options import DeviceOpt, DtypeOpt, EngineOpt, JsonOpt, MethodOpt, SetOpt, Settings
from unmask.cli.output import Output
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.bench.quality import Contender

app = typer.Typer(no_args_is_help=True)
for command in (step, throughput, memory, train):
    app.command()(command)


@app.callback()
def root() -> None:
    """Measure accuracy and speed."""


@app.command()
def quality(
    model: Annotated[str, typer.Argument(help="nano, nano-ar, a checkpoint's folder, or a hub id.")] = "nano",
    method: MethodOpt = None,
    set_: SetOpt = None,
    against: Annotated[
        str | None, typer.Option(help="A second model, decoded autoregressively on the same problems, in turns.")
    ] = None,
    task: Annotated[str, typer.Option(help="Which problems: wordmath, lists, lists:shuffle, ...")] = "wordmath",
    split: Annotated[str, typer.Option(help="train, validation, test, or unseen: untrained wordings alone.")] = "test",
    count: Annotated[int, typer.Option(min=1, help="How many problems.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Which problems of the split.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Problems decoded together.")] = 1,
    engine: EngineOpt = False,
    quantise: Annotated[str | None, typer.Option(help="fp8: round the engine's weights to float8.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: PyTorch's choice.")] = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="Where the raw results go (JSON).")] = None,
    device: DeviceOpt = None,
    dtype: DtypeOpt = "auto",
    json: JsonOpt = False,
) -> None:
    """Accuracy, tokens per forward and tokens per second on program-made problems with checkable answers."""
    out = Output.make(live=False, json=json)
    settings = Settings.given(method, set_ or [])
    lm = load(model, out, adapter=None, device=device, dtype=dtype)
    settings.check(lm.default_method)
    length = settings.common.pop("max_new_tokens", 256)

    import torch

    from unmask.bench import record
    from unmask.bench.quality import Contender
    from unmask.bench.quality import quality as measure

    if threads is not None:
        torch.set_num_threads(threads)
    contenders = [Contender(model, lm, settings.method or lm.default_method, settings.common | settings.options)]
    if against is not None:
        other = load(against, out, adapter=None, device=device, dtype=dtype)
        contenders.append(Contender(against, other, "autoregressive"))
    if quantise is not None and not engine:
        raise UnmaskError("--quantise is of the engine: give --engine too")
    asked = {"task": task, "split": split, "count": count, "seed": seed, "batch": batch, "max_new_tokens": length}
    with Progress(console=out.notes, transient=True, disable=not out.notes.is_terminal) as bar:
        work = bar.add_task("problems", total=count)
        made = ({} if quantise is None else {"quantise": quantise}) if engine else None
        summaries = measure(contenders, **asked, engine=made, progress=lambda done: bar.update(work, completed=done))
    result = record.environment(str(lm.model.device)) | asked | {"engine": made, "results": summaries}
    if out_file is not None:
        record.write(out_file, result | {"answers": {_title(c): c.answers for c in contenders}})
    if json:
        out.object(result)
    else:
        out.console.print(_table(contenders, summaries))


def _title(contender: Contender) -> str:
    return f"{contender.name} {contender.method}"


def _table(contenders: list[Contender], summaries: list[dict[str, Any]]) -> Table:
    """One row a contender; the last column is the speed beside the last one's."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("model", "method", "correct", "unseen", "tokens", "forwards", "TPF", "tok/s", "x"):
        table.add_column(column, no_wrap=True)
    base = summaries[-1]["tokens_per_second"] or 1.0
    for c, s in zip(contenders, summaries):
        unseen = "" if s["accuracy_unseen_wordings"] is None else f"{s['accuracy_unseen_wordings']:.1f} %"
        table.add_row(
            c.name,
            c.method,
            f"{s['accuracy']:.1f} %",
            unseen,
            str(s["tokens"]),
            str(sum(s["forwards"].values())),
            f"{s['tpf']:.2f}",
            f"{s['tokens_per_second']:.0f}",
            f"{s['tokens_per_second'] / base:.2f}",
        )
    return table
