"""`unmask compare`: the table, JSON, methods with options, tasks, and mistakes."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from cli_parts import MODELS, run, talker
from rich.console import Console

from unmask.cli.options import parse_method

LLADA = str(MODELS / "llada-tiny")
FAST = str(MODELS / "sdar-tiny")
RUN = ["compare", LLADA, "--ids", "5 6 7", "-n", "8"]


def test_a_row_a_method_and_the_baselines_behind() -> None:
    result = run(*RUN, "--methods", "d2f,masked", "-m", "masked:steps=2")
    assert result.exit_code == 0 and "\x1b" not in result.output
    head, *rows = result.stdout.splitlines()
    assert head.split() == ["method", "tokens", "forwards", "TPF", "tok/s", "=", "seq.", "%"]
    assert [row.split()[0] for row in rows] == ["d2f", "masked", "masked:steps=2"]
    assert "2 denoise" in rows[2] and " 4.00 " in rows[2]
    assert not rows[1].rstrip().endswith("100.0")  # the baseline itself
    assert "one token a forward" in result.stderr and "first difference" in result.stderr


def test_a_method_that_is_not_sound_is_listed_with_its_reason() -> None:
    result = run(*RUN, "--methods", "masked,autoregressive")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("autoregressive: this llada model predicts masked tokens in place")


def test_json_gives_everything() -> None:
    result = run(*RUN, "9 9", "-m", "masked:steps=4", "-m", "autoregressive", "--json")
    assert result.stderr == ""
    facts = json.loads(result.stdout)
    assert {"commit", "device", "threads", "torch", "agreement", "common", "batch"} <= facts.keys()
    assert facts["prompts"] == [[5, 6, 7], [9, 9]] and facts["common"] == {"max_new_tokens": 8}
    masked, plain = facts["methods"]
    assert masked["options"] == {"steps": 4} and len(masked["answers"]) == 2 and masked["forwards"] == {"denoise": 8}
    assert masked["agreement"]["sequential"].keys() == {"up_to_first_difference", "in_all", "same_answers"}
    assert plain["reason"].startswith("autoregressive: ") and "answers" not in plain
    assert facts["baselines"]["sequential"]["options"] == {"schedule": "even"}
    assert facts["baselines"]["autoregressive"]["reason"]


def test_without_methods_all_that_are_sound_run() -> None:
    facts = json.loads(run("compare", FAST, "--ids", "5 6 7", "-n", "4", "--json").stdout)
    names = [m["method"] for m in facts["methods"]]
    assert "block_diffusion" in names and "masked" not in names and names == sorted(names)


def test_a_task_adds_the_share_of_right_answers() -> None:
    asked = ["compare", "nano", "--task", "wordmath", "--count", "1", "-n", "8", "--methods", "fast_dllm_v2"]
    result = run(*asked, "--against", "nano-ar")
    head, *rows = result.stdout.splitlines()
    assert result.exit_code == 0 and head.split()[-2:] == ["right", "%"] and "= AR %" in head
    names = ["fast_dllm_v2 ", "baseline nano-ar autoregressive ", "baseline fast_dllm_v2:threshold=1.0 "]
    assert len(rows) == 3 and all(row.startswith(name) for row, name in zip(rows, names))
    assert all(row.split()[-1] in ("0.0", "100.0") for row in rows)


def test_prompts_may_come_from_stdin_and_be_texts() -> None:
    piped = run("compare", talker(), "-n", "4", "--methods", "masked", "--json", stdin="how many pens\n")
    assert json.loads(piped.stdout)["prompts"] == ["how many pens"]


@pytest.mark.parametrize("width", [30, 60, 200])
def test_a_terminal_of_any_width_gets_whole_rows(width: int) -> None:
    import io

    from unmask.bench.compare import compare
    from unmask.cli.compare import _show
    from unmask.lm import load

    comparison = compare(load(LLADA, device="cpu"), [[5, 6, 7]], ["masked", "d2f"], max_new_tokens=4)
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width)
    _show(SimpleNamespace(console=console, note=console.print), comparison, None)  # type: ignore[arg-type]
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert all(len(line.rstrip()) <= width for line in lines)
    text = " ".join(" ".join(lines).split())
    assert "…" not in text and "masked" in text and ("4 tokens, " in text) == (width < 70)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("d2f", {}),
        ("d2f:", {}),
        ("d2f:max_active_blocks=none", {"max_active_blocks": None}),
        ("d2f:threshold=0.8,block-size=16", {"threshold": 0.8, "block_size": 16}),
        (" d2f : select = factor:factor=1.5 , early_exit=false", {"select": "factor:factor=1.5", "early_exit": False}),
        ("d2f:select=(factor:factor=1.5),max_active_blocks=2", {"select": "factor:factor=1.5", "max_active_blocks": 2}),
        ("d2f:skip_threshold=1", {"skip_threshold": 1}),
    ],
)  # fmt: skip
def test_methods_with_options_are_read(text: str, options: dict[str, object]) -> None:
    assert parse_method(text) == ("d2f", options)


def test_commas_in_parentheses_belong_to_the_value() -> None:
    from unmask.cli.options import _parts

    assert _parts("a=(x:b=1,c=2),d=3", "m") == ["a=(x:b=1,c=2)", "d=3"]


MISTAKES = {
    "unknown method": (["-m", "maskd"], "did you mean 'masked'?"),
    "unknown among names": (["--methods", "masked,d2g"], "did you mean 'd2f'?"),
    "unknown option": (["-m", "masked:stps=3"], "unknown option of masked 'stps'; did you mean 'steps'?"),
    "bad value": (["-m", "d2f:add_threshold=7"], "between 0.0 and 1.0, not 7"),
    "no value": (["-m", "masked:steps"], "method masked: 'steps' is not of the form key=value"),
    "empty value": (["-m", "masked:steps="], "method masked: 'steps=' is not of the form key=value"),
    "twice": (["-m", "masked:steps=4,steps=2"], "method masked: steps is given twice"),
    "both names": (["-m", "d2f:threshold=1,skip_threshold=1"], "are the same option"),
    "common": (["-m", "masked:gen_length=4"], "method masked: gen_length is no option of a method"),
    "reserved": (["-m", "masked:trace=true"], "method masked: trace is no option of a method"),
    "parentheses": (["-m", "masked:select=(factor"], "the parentheses in 'select=(factor' do not match"),
    "options among names": (["--methods", "masked:steps=4"], "options go with -m name:key=value,..."),
    "no names": (["--methods", ","], "--methods takes names separated by commas"),
    "same method twice": (["--methods", "masked,masked"], "masked is given twice"),
    "prompts and task": (["--task", "wordmath"], "prompts and --task or --count exclude each other"),
    "temperature": (["--temperature", "-1"], "temperature must be at least 0"),
    "device": (["--device", "foo"], "unknown device 'foo'"),
    "against": (["--against", "./nowhere"], "no folder ./nowhere"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(arguments: list[str], message: str) -> None:
    result = run(*RUN, *arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert message in result.stderr and result.stderr.startswith("unmask: ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./nowhere", "hi"], "no folder ./nowhere"),
        ([LLADA, "--task", "wordmaths"], "did you mean 'wordmath'"),
        ([LLADA, "--count", "2", "--split", "tset"], "did you mean 'test'"),
        ([LLADA, "--ids", ""], "the prompt is empty"),
        ([LLADA, "hello"], "has no tokenizer"),
        ([LLADA, "--ids", " ".join(["5"] * 600)], "the context of this checkpoint is 512"),
        ([LLADA, "--ids", "5", "--against", str(MODELS / "sdar-tiny"), "-n", "9000"], "exceed the context"),
    ],
)
def test_bad_models_prompts_and_tasks_are_one_line(arguments: list[str], message: str) -> None:
    result = run("compare", *arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_help_defines_agreement() -> None:
    text = " ".join(run("compare", "--help").stdout.replace("│", " ").split())
    assert "tokens before the first difference" in text and "longer answer" in text and "sequential" in text
