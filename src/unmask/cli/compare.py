"""`unmask compare`: several methods on the same prompts, one after the other, and how far they agree.

unmask compare nano "Tom has 3 boxes of 12 pens. How many pens does he have?" --methods autoregressive,d2f
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.padding import Padding
from rich.progress import Progress
from rich.text import Text

from unmask.cli.generate import read_prompts
from unmask.cli.loading import load
from unmask.cli.options import (
    AdapterOpt,
    DeviceOpt,
    DtypeOpt,
    JsonOpt,
    ModelArg,
    SeedOpt,
    Settings,
    TemperatureOpt,
    TokensOpt,
    TopKOpt,
    TopPOpt,
    flags,
    parse_method,
)
from unmask.cli.output import Output, columns, forwards
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.bench.compare import Comparison, Outcome, Way
    from unmask.lm import LM

AGREEMENT = (
    "= AR, = seq.: tokens before the first difference / equal tokens in all, in percent of the longer answer, the end "
    "token included; AR: autoregressive decoding, seq.: the form of the family that decides one token a forward"
)


def compare(
    model: ModelArg,
    prompt: Annotated[
        list[str] | None,
        typer.Argument(help="One or several; `-` or nothing reads stdin, unless --task.", show_default=False),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Methods by name; default: all that are sound.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            metavar="NAME[:KEY=VALUE,...]",
            help="One method with options, such as fast_dllm_v2:threshold=0.8,sub_block_size=32; repeatable.",
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Another model for the autoregressive baseline.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Problems of this task as prompts (wordmath); adds the share of right answers.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="How many problems of the task; default 20.")] = None,
    split: Annotated[str, typer.Option(help="Of the task: train, validation, test, or unseen.")] = "test",
    batch: Annotated[int, typer.Option(min=1, help="Prompts decoded together.")] = 1,
    max_new_tokens: TokensOpt = None,
    temperature: TemperatureOpt = None,
    top_p: TopPOpt = None,
    top_k: TopKOpt = None,
    seed: SeedOpt = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: PyTorch's choice.")] = None,
    adapter: AdapterOpt = None,
    device: DeviceOpt = None,
    dtype: DtypeOpt = "auto",
    raw: Annotated[bool, typer.Option("--raw", help="Take prompts as they are, without the chat template.")] = False,
    ids: Annotated[bool, typer.Option("--ids", help="Prompts are token ids: '5 6 7' or 5,6,7.")] = False,
    json: JsonOpt = False,
) -> None:
    """Compare decoding methods on the same prompts: forwards, speed, and how far their tokens agree.

    Agreement with autoregressive decoding and with sequential decoding (the family's form that decides one token a
    forward) is given as two shares: tokens before the first difference, and equal positions in all, each of the tokens
    of the longer answer, up to and including the end token, summed over the prompts. Both are 100 % where all answers
    are the same. A method that is not sound on the checkpoint is listed with the reason.
    """
    out = Output.make(json=json)
    ways = _ways(methods, method or [])
    settings = Settings.given(None, [], **flags(max_new_tokens, temperature, top_p, top_k, seed))
    problems, prompts, check = _asked(prompt or [], task, count, split, ids=ids)
    where = {"device": device, "dtype": dtype}
    lm = load(model, out, adapter=adapter, **where)
    other = None if against is None else load(against, out, adapter=None, **where)

    import torch

    from unmask.bench import record

    if threads is not None:
        torch.set_num_threads(threads)
    how = {"against": other, "check": check, "batch": batch, "raw": raw} | settings.common
    comparison = _measured(out, lm, prompts, ways, how)
    if json:
        asked = {"model": model, "against": against, "prompts": prompts, "common": settings.common, "batch": batch}
        asked |= {"task": problems, "agreement": AGREEMENT}
        out.object(record.environment(str(lm.model.device)) | asked | comparison.as_dict())
        return
    _show(out, comparison, against)


def _measured(out: Output, lm: LM, prompts: list[Any], ways: list[Way] | None, how: dict[str, Any]) -> Comparison:
    """What `bench.compare.compare` finds with the arguments `how`, under a progress bar on a terminal."""
    from unmask.bench.compare import compare as measure

    with Progress(console=out.notes, transient=True, disable=not out.notes.is_terminal) as bar:
        work = bar.add_task("decoding", total=None)
        return measure(
            lm, prompts, ways, progress=lambda done, total: bar.update(work, completed=done, total=total), **how
        )


def _ways(methods: str | None, given: list[str]) -> list[Way] | None:
    """The methods asked for, None if none was named."""
    from unmask.bench.compare import Way

    if methods is None and not given:
        return None
    names = [name.strip() for name in (methods or "").split(",") if name.strip()]
    if methods is not None and not names:
        raise UnmaskError("--methods takes names separated by commas")
    if methods is not None and (":" in methods or "=" in methods):
        raise UnmaskError(f"--methods takes names alone, not {methods!r}; options go with -m name:key=value,...")
    ways = [Way(*parse_method(text)) for text in [*names, *given]]
    for i, way in enumerate(ways):
        if way in ways[:i]:
            raise UnmaskError(f"{way.name} is given twice")
    return ways


def _asked(
    given: list[str], task: str | None, count: int | None, split: str, *, ids: bool
) -> tuple[dict[str, Any] | None, list[Any], Callable[[int, str], bool] | None]:
    """What the problems are, the prompts, and the check of an answer; no problems where prompts are given."""
    if task is None and count is None:
        return None, read_prompts(given, ids=ids), None
    if given:
        raise UnmaskError("prompts and --task or --count exclude each other")

    from unmask.tasks import get_task

    name, number = task or "wordmath", count or 20
    bench = get_task(name)
    problems = list(bench.generate(split, number))
    about = {"name": name, "split": split, "count": number, "answers": [p.answer for p in problems]}
    return about, [p.question for p in problems], lambda i, text: bool(bench.check(problems[i], text))


def _show(out: Output, comparison: Comparison, against: str | None) -> None:
    """A row a method, then the baselines that were not asked for, and the reasons of those that gave nothing."""
    rows = _rows(comparison, against)
    lines = columns(rows, left=(0, 2))
    if not out.console.is_terminal:
        print("\n".join(lines))
    elif max(map(len, lines)) <= out.console.width:
        out.console.print(Text(lines[0], style="bold"), *map(Text, lines[1:]), sep="\n")
    else:
        for row in rows[1:]:
            _entry(out, rows[0], row)
    for outcome in comparison.outcomes:
        if outcome.reason is not None:
            reason = outcome.reason.removeprefix(f"{outcome.way.method}: ")
            out.console.print(Text(f"{outcome.way.name}: {reason}", style="dim"), soft_wrap=not out.console.is_terminal)
    out.note(AGREEMENT)


def _entry(out: Output, heads: list[str], row: list[str]) -> None:
    """A row for a terminal that is too narrow for the table."""
    name, tokens, kinds, tpf, speed, *shares = row
    more = [f"{head.removesuffix(' %')} {share} %" for head, share in zip(heads[5:], shares) if share]
    out.console.print(Text(name, style="bold", overflow="fold"))
    for text in (f"{tokens} tokens, {kinds}, TPF {tpf}, {speed} tok/s", ", ".join(more)):
        if text:
            out.console.print(Padding(Text(text), (0, 0, 0, 2)))


def _rows(comparison: Comparison, against: str | None) -> list[list[str]]:
    """Heads, and a row for each method and baseline that gave something."""
    bases = {name: o for name, o in comparison.baselines.items() if o.reason is None}
    if len({id(o) for o in bases.values()}) < len(bases):  # one and the same
        del bases["sequential"]
    shown = {id(o): (o, o.way.name) for o in comparison.outcomes if o.reason is None}
    for name, base in bases.items():
        owner = f"{against} " if against is not None and name == "autoregressive" else ""
        shown.setdefault(id(base), (base, f"baseline {owner}{base.way.name}"))
    checked = any(o.right is not None for o, _ in shown.values())
    heads = {"autoregressive": "= AR %", "sequential": "= seq. %"}
    rows = [["method", "tokens", "forwards", "TPF", "tok/s", *(heads[n] for n in bases), *(["right %"] * checked)]]
    for outcome, name in shown.values():
        c = outcome.counters
        numbers = [str(c.tokens), forwards(c), f"{c.tpf:.2f}", f"{c.tokens_per_second:.1f}"]
        right = [f"{100 * sum(outcome.right) / len(outcome.right):.1f}"] if outcome.right else []
        rows.append([name, *numbers, *(_shares(comparison, outcome, n) for n in bases), *right])
    return rows


def _shares(comparison: Comparison, outcome: Outcome, baseline: str) -> str:
    found = comparison.agreement(outcome, baseline)
    if found is None or outcome is comparison.baselines[baseline]:
        return ""
    return f"{100 * found.first:.1f} / {100 * found.total:.1f}"
