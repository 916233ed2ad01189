"""`unmask bench train`: how fast a recipe trains, and how much of the device it uses.

unmask bench train qwen2.5-1.5b --recipe fast_dllm_v2 --row-tokens 2048 --rows 16 --rows-per-forward 4 --out t.json
torchrun --nproc-per-node 8 -m unmask bench train qwen2.5-7b --recipe fast_dllm_v2 --rows 64 --shard --recompute
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from unmask.cli.bench_parts import enough_memory
from unmask.cli.bench_speed import KernelsOpt, OutOpt, ShapeArg
from unmask.cli.bench_tables import GIB, Report, shown
from unmask.cli.loading import load
from unmask.cli.options import JsonOpt
from unmask.cli.output import Output
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.lm import LM

HEADS = ("processes", "ms", "tok/s", "Tflop/s", "MFU %", "of product %", "peak GiB")
DEFINITIONS = (
    "ms: median of an update; tok/s: tokens of the data, padding left out; Tflop/s: what the model needs, of one "
    "process: parameters of the layers, head on supervised rows, attention on visible pairs, no recomputation; MFU: of "
    "the maker's dense bfloat16 peak; of product: of a large matrix product, measured in this run"
)


def train(
    model: ShapeArg,
    recipe: Annotated[str, typer.Option(help="A recipe's name.")] = "fast_dllm_v2",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the recipe; repeatable.")
    ] = None,
    row_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a row of data.")] = 2048,
    rows: Annotated[int, typer.Option(min=1, help="Rows of an update, over all processes.")] = 16,
    rows_per_forward: Annotated[
        int | None, typer.Option(min=1, help="Rows of a forward of one process; default: all of it.")
    ] = None,
    per_row: Annotated[int, typer.Option(min=1, help="Samples packed into a row.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Updates that are timed.")] = 20,
    kernels: KernelsOpt = False,
    precision: Annotated[str, typer.Option(help="bf16 or fp32.")] = "bf16",
    attention: Annotated[str | None, typer.Option(help="flex or dense; default: flex on a GPU.")] = None,
    compile: Annotated[bool | None, typer.Option(help="Compile the layers; default: on a GPU.")] = None,
    recompute: Annotated[bool, typer.Option("--recompute", help="Run layers again in the backward pass.")] = False,
    shard: Annotated[bool, typer.Option("--shard", help="Cut the weights over the processes (FSDP2).")] = False,
    device: Annotated[str | None, typer.Option(help="cuda, or cpu by name; default: cuda.")] = None,
    out_file: OutOpt = None,
    json: JsonOpt = False,
) -> None:
    """Time of an update of a recipe on packed rows of random tokens, and the share of the device's arithmetic it uses.

    The last line of stdout is the result as JSON.
    """
    out = Output.make(live=False, json=json)
    on_gpu = _on_gpu(device)
    if out_file is not None:
        from unmask.trace import check_target

        check_target(out_file)
    asked = {
        "recipe": recipe,
        "row_tokens": row_tokens,
        "rows": rows,
        "rows_per_forward": rows if rows_per_forward is None else rows_per_forward,
        "per_row": per_row,
        "steps": steps,
        "precision": precision,
        "attention": attention or ("flex" if on_gpu else "dense"),
        "compile": on_gpu if compile is None else compile,
        "recompute": recompute,
        "shard": shard,
    }
    data = _measured(model, out, asked, set_ or [], kernels)
    if data is None:
        return
    about = f"{recipe}, {rows} rows of {row_tokens} tokens, {precision}, {asked['attention']}"
    report = Report(out, data, out_file, HEADS, about)
    (entry,) = data.pop("results")
    data["results"] = []
    report.add(entry, _row(entry))
    report.close((), DEFINITIONS)


def _on_gpu(device: str | None) -> bool:
    """Whether to measure on a GPU; refuses what is not there."""
    import torch

    if device not in (None, "cuda", "cpu"):
        raise UnmaskError(f"training is measured on cuda or cpu, not on {device!r}")
    if device == "cpu":
        if torch.cuda.is_available():
            raise UnmaskError("--device cpu on a machine with a GPU: hide it (CUDA_VISIBLE_DEVICES=)")
        return False
    if not torch.cuda.is_available():
        raise UnmaskError("the speed of training needs a GPU, and there is none here; --device cpu measures on the CPU")
    return True


def _measured(
    model: str, out: Output, asked: dict[str, Any], options: list[str], kernels: bool
) -> dict[str, Any] | None:
    """The result, None in all processes but the first."""
    import torch

    from unmask.bench import results, roofline
    from unmask.bench.training import measure
    from unmask.training.config import recipe_config
    from unmask.training.ranks import Ranks

    names = ("row_tokens", "rows_per_forward", "precision", "attention", "compile", "recompute", "shard")
    given = {name: asked[name] for name in names} | {"rows_per_step": asked["rows"], "model": "none", "output": "none"}
    changes = [f"{key}={str(value).lower()}" for key, value in given.items()]
    config = recipe_config(asked["recipe"], [*changes, *(f"recipe.{option}" for option in options)])
    ranks = Ranks.start()
    lm, random = _model(model, out, str(ranks.device))
    if ranks.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    with enough_memory(str(ranks.device)):
        can = roofline.ceilings(ranks.device, torch.bfloat16 if config.precision == "bf16" else torch.float32)
        data = results.head("train", lm, model, random=random, engine={}, asked=asked)
        data["ceilings"] = can.as_dict()
        more = {"steps": asked["steps"], "per_row": asked["per_row"], "kernels": kernels}
        data["results"] = [measure(lm, config, ranks, can, **more)]
    return data if ranks.main else None


def _model(name: str, out: Output, device: str) -> tuple[LM, bool]:
    """The model in float32, and whether its weights are random."""
    import torch

    from unmask.bench.dummy import dummy, has_no_weights

    if has_no_weights(name):
        with out.busy(f"making {name}"):
            return dummy(name, device=device, dtype=torch.float32), True
    return load(name, out, adapter=None, device=device, dtype="float32"), False


def _row(entry: dict[str, Any]) -> list[str]:
    shares = [shown(entry[name], ".1f", 100) for name in ("mfu", "of_product")]
    rates = [
        shown(entry["ms"], ".1f"),
        shown(entry["tokens_per_second"], ".0f"),
        shown(entry["achieved"], ".1f", 1e-12),
    ]
    return [str(entry["processes"]), *rates, *shares, shown(entry["peak_bytes"], ".2f", 1 / GIB)]
