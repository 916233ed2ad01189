"""`unmask bench step`, `throughput` and `memory`: how fast the engine is, and what it holds.

unmask bench step fast-dllm-v2-7b --shapes 1x1,8x32,32x32 --context 1024 --out bench/results/step.json
unmask bench throughput fast-dllm-v2-7b --methods autoregressive,fast_dllm_v2 --replay fast_dllm_v2=2.64 --batch 1,32
unmask bench memory fast-dllm-v2-7b --methods autoregressive,fast_dllm_v2 --batch 32
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from unmask.cli.bench_parts import (
    Subject,
    contenders,
    device_of,
    enough_memory,
    methods,
    numbers,
    replaying,
    replays,
    shapes,
)
from unmask.cli.bench_tables import (
    BYTE_HEADS,
    BYTES,
    FLOOR,
    GIB,
    RATE_HEADS,
    RATES,
    STEP_HEADS,
    Report,
    byte_row,
    rate_row,
    step_row,
)
from unmask.cli.options import DtypeOpt, JsonOpt
from unmask.cli.output import Output
from unmask.errors import UnmaskError, unknown

ShapeArg = Annotated[
    str,
    typer.Argument(
        help="A shape with random weights (fast-dllm-v2-7b, fast-dllm-v2-1.5b, qwen2.5-7b, qwen2.5-1.5b, dream-7b, a "
        "config.json, a folder without weights), or a checkpoint: nano, nano-ar, a folder, a hub id.",
        show_default=False,
    ),
]
MethodsOpt = Annotated[
    str, typer.Option("--methods", metavar="A,B:KEY=VALUE,...", help="Methods, each with options behind a colon.")
]
QuantiseOpt = Annotated[str | None, typer.Option(help="fp8: round the weights of layers and head to float8.")]
TuneOpt = Annotated[bool, typer.Option(help="Measure which way each product is fastest, before any step.")]
CompileOpt = Annotated[
    bool | None, typer.Option(help="Join the small operations of a step by torch.compile; default: on a GPU.")
]
SpeedDeviceOpt = Annotated[
    str | None, typer.Option("--device", help="cuda, cuda:1, or cpu for the engine's plain form; default: cuda.")
]
KernelsOpt = Annotated[
    bool, typer.Option("--kernels", help="Afterwards look at some more kernel by kernel, and say where time goes.")
]
OutOpt = Annotated[Path | None, typer.Option("--out", help="Where the raw results go (JSON).")]
BatchOpt = Annotated[str, typer.Option(metavar="N,N,...", help="Rows decoded together.")]


def _engine(
    out_file: Path | None, device: str, quantise: str | None, tune: bool, compile: bool | None
) -> dict[str, Any]:
    """The engine's arguments; refuses what would fail only after everything has been measured."""
    from unmask.trace import check_target

    if out_file is not None:
        check_target(out_file)
    if quantise not in (None, "fp8"):
        raise unknown("quantisation", quantise, ["fp8"])
    return {"quantise": quantise, "tune": tune, "compile": device != "cpu" if compile is None else compile}


def step(
    model: ShapeArg,
    shapes_: Annotated[
        str, typer.Option("--shapes", metavar="BxW,...", help="Batch x window; window 1 is autoregressive.")
    ] = "1x1,1x32,1x128,8x32,32x8,8x128,32x32,32x128",
    context: Annotated[int, typer.Option(min=1, help="Prompt tokens of each row, cached before the steps.")] = 1024,
    steps: Annotated[int, typer.Option(min=1, help="How many are timed for each shape.")] = 200,
    kernels: KernelsOpt = False,
    quantise: QuantiseOpt = None,
    tune: TuneOpt = True,
    compile: CompileOpt = None,
    out_file: OutOpt = None,
    device: SpeedDeviceOpt = None,
    dtype: DtypeOpt = "auto",
    json: JsonOpt = False,
) -> None:
    """Time of one step of the engine beside the time below which it cannot fall.

    A step is plan, forward, scores and commit of a full batch. A window of several tokens is a block of Fast-dLLM v2 of
    which each forward decides one token. The floor is the larger of two times: the weights read once at the bandwidth
    of a large copy, and all operations, attention's included, at the rate of a large matrix product, both measured in
    the same run. The last line of stdout is the result as JSON.
    """
    out = Output.make(live=False, json=json)
    pairs, on = shapes(shapes_), device_of(device)
    subject = Subject(model, out, on, dtype, _engine(out_file, on, quantise, tune, compile))

    from unmask.bench import results, roofline
    from unmask.bench.steps import measure
    from unmask.bench.throughput import free_memory

    lm = subject.lm()
    with enough_memory(on):
        can = roofline.ceilings(lm.model.device, lm.model.dtype, quantise is not None)
    asked = {"context": context, "steps": steps}
    data = results.head("step", lm, model, random=subject.random, engine=subject.engine, asked=asked)
    data["ceilings"] = can.as_dict()
    narrow = f", float8 {can.product8 / 1e12:.0f}" if can.product8 else ""
    speed = f"copy {can.copy / 1e12:.3f} TB/s, product {can.product / 1e12:.1f}{narrow} Tflop/s"
    report = Report(out, data, out_file, STEP_HEADS, f"context {context}, {steps} steps; {speed}")
    at = lm.model.device
    del lm  # where its weights are rounded, each engine gets a new one
    for batch, window in pairs:
        free_memory(at)
        with enough_memory(f"{on} for {batch}x{window}"):
            found = measure(subject.lm(), can, batch, window, **asked, kernels=kernels, **subject.engine)
        report.add(found.as_dict(), step_row(found))
    report.close((0, 4), FLOOR)


def throughput(
    model: ShapeArg,
    methods_: MethodsOpt = "autoregressive",
    batch: BatchOpt = "1,8,32",
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of each prompt, random ids.")] = 512,
    new: Annotated[int, typer.Option(min=1, help="Tokens decoded for each prompt.")] = 256,
    task: Annotated[str | None, typer.Option(help="Problems of this task as prompts (wordmath).")] = None,
    replay: Annotated[
        str | None,
        typer.Option(metavar="METHOD=TPF,...", help="Tokens a forward that a method is to decide, whatever it finds."),
    ] = None,
    prefill_tokens: Annotated[int, typer.Option(min=1, help="Prompt tokens run between two steps at most.")] = 2048,
    by_load: Annotated[
        bool,
        typer.Option("--by-load", help="Let rows look less far where that is faster, down to one token a forward."),
    ] = False,
    quantise: QuantiseOpt = None,
    tune: TuneOpt = True,
    compile: CompileOpt = None,
    out_file: OutOpt = None,
    device: SpeedDeviceOpt = None,
    dtype: DtypeOpt = "auto",
    json: JsonOpt = False,
) -> None:
    """Tokens per second of decoding methods side by side, at several batch sizes.

    Where the weights are not at hand, random ones of the same shape do the same work, but accept nothing: --replay says
    how many tokens per forward (TPF, commit forwards counted) each method is to have, which every table and file then
    says too. The last line of stdout is the result as JSON.
    """
    out = Output.make(live=False, json=json)
    wanted, batches, on = methods(methods_), numbers(batch, "--batch"), device_of(device)
    rates = replays(replay, [name for name, _ in wanted])
    if task is not None and rates:
        raise UnmaskError("--task and --replay exclude each other: replayed texts answer nothing")
    engine = _engine(out_file, on, quantise, tune, compile) | {"prefill_tokens": prefill_tokens, "by_load": by_load}
    subject = Subject(model, out, on, dtype, engine, endings=task is not None)

    from unmask.bench import results
    from unmask.bench.throughput import beside, measure, prompts_of, reaches
    from unmask.decoding import METHODS, Method

    lm = subject.lm()
    with out.busy("checking"):
        found = replaying(contenders(wanted, lm, new), rates, lm, subject.random, prompt, new)
    if by_load and not any(reaches(lm, one.method, new) for one in found):
        able = ", ".join(name for name, kind in sorted(METHODS.items()) if kind.reaches is not Method.reaches)
        raise UnmaskError(f"--by-load: {methods_} takes no notice of the load; {able} do")
    asked = {"prompt": None if task else prompt, "new_tokens": new, "task": task}
    data = results.head("throughput", lm, model, random=subject.random, engine=engine, asked=asked)
    about = f"problems of {task}" if task else f"prompts of {prompt} tokens"
    report = Report(out, data, out_file, RATE_HEADS, f"{about}, {new} new")
    texts = {size: prompts_of(lm, size, prompt, task) for size in batches}
    del lm  # as above
    for size in batches:
        for one in found:
            entry = measure(subject.lm(), one, texts[size], new, **engine)
            beside([*data["results"], entry])
            report.add(entry, rate_row(entry))
    report.rows[1:] = [rate_row(entry) for entry in data["results"]]  # some know of autoregressive decoding only now
    report.save()
    report.close((0, 2), RATES)


def memory(
    model: ShapeArg,
    methods_: MethodsOpt = "autoregressive",
    batch: BatchOpt = "32",
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of a prompt at most.")] = 1024,
    new: Annotated[int, typer.Option(min=1, help="Tokens decoded for a prompt at most.")] = 256,
    gib: Annotated[
        float | None, typer.Option(min=0, help="GiB that rows are to fit in; default: the device's memory.")
    ] = None,
    quantise: QuantiseOpt = None,
    tune: TuneOpt = True,
    compile: CompileOpt = None,
    out_file: OutOpt = None,
    device: SpeedDeviceOpt = None,
    dtype: DtypeOpt = "auto",
    json: JsonOpt = False,
) -> None:
    """Memory of the engine: weights, K/V pages, state and graphs, and how many rows fit.

    An engine of the given rows is filled and makes a few steps. The last line of stdout is the result as JSON, in
    bytes.
    """
    out = Output.make(live=False, json=json)
    wanted, batches, on = methods(methods_), numbers(batch, "--batch"), device_of(device)
    subject = Subject(model, out, on, dtype, _engine(out_file, on, quantise, tune, compile))

    from unmask.bench import results
    from unmask.bench.memory import measure

    lm = subject.lm()
    found = contenders(wanted, lm, new)
    within = None if gib is None else round(gib * GIB)
    asked = {"prompt": prompt, "new_tokens": new, "device_bytes": within}
    data = results.head("memory", lm, model, random=subject.random, engine=subject.engine, asked=asked)
    report = Report(out, data, out_file, BYTE_HEADS, f"prompts of {prompt} tokens, {new} new")
    del lm
    for size in batches:
        for one in found:
            entry = measure(subject.lm(), one, size, prompt, new, device_bytes=within, **subject.engine)
            report.add(entry, byte_row(entry))
    report.close((0,), BYTES)
