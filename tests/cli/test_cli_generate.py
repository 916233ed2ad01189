"""`unmask generate`: output in a pipe, JSON, prompts, and the messages for mistakes."""

from __future__ import annotations

import json

import pytest
from cli_parts import MODELS, run, talker

SDAR, LLADA = str(MODELS / "sdar-tiny"), str(MODELS / "llada-tiny")


def test_a_pipe_gets_the_text_on_stdout_and_the_counters_on_stderr() -> None:
    result = run("generate", SDAR, "--ids", "5 6 7", "-n", "6")
    assert result.exit_code == 0
    assert len(result.stdout.split()) == 6
    assert "TPF" not in result.stdout
    assert "6 tokens" in result.stderr and "TPF" in result.stderr and "commit" in result.stderr
    assert "\x1b" not in result.output


def test_the_streamed_text_is_the_text_of_the_result() -> None:
    arguments = ["generate", talker(), "how many pens", "-n", "24"]
    streamed = run(*arguments, "--quiet")
    assert streamed.stdout == json.loads(run(*arguments, "--json").stdout)["text"] + "\n"
    assert streamed.stderr == ""


def test_json_is_one_object_per_prompt_and_nothing_else() -> None:
    result = run("generate", LLADA, "--ids", "5,6", "7 8 9", "-n", "4", "--json")
    objects = [json.loads(line) for line in result.stdout.splitlines()]
    assert [len(o["ids"]) for o in objects] == [4, 4]
    assert objects[0].keys() >= {"text", "ids", "finish_reason", "method", "tokens", "forwards", "tpf"}
    assert result.stderr == ""


def test_stdin_is_the_prompt_when_none_is_given_or_a_dash() -> None:
    expected = run("generate", LLADA, "--ids", "5 6 7", "-n", "4").stdout
    assert run("generate", LLADA, "--ids", "-n", "4", stdin="5 6 7\n").stdout == expected
    assert run("generate", LLADA, "--ids", "-", "-n", "4", stdin="5 6 7\n").stdout == expected


def test_options_act_under_both_names() -> None:
    def forwards(*more: str) -> dict[str, int]:
        result = run("generate", LLADA, "--ids", "5", "--json", "-m", "masked", *more)
        return json.loads(result.stdout)["forwards"]

    assert forwards("-n", "8", "--set", "steps=2") == {"denoise": 2}
    assert forwards("--set", "gen_length=8", "--set", "block_length=4", "--set", "steps=4") == {"denoise": 4}


MISTAKES = {
    "unknown method": (["-m", "maskd"], "unknown method 'maskd'; did you mean 'masked'?"),
    "unknown option": (["-m", "masked", "--set", "stps=3"], "unknown option of masked 'stps'; did you mean 'steps'?"),
    "unknown option, default method": (["--set", "stps=3"], "did you mean 'steps'?"),
    "option out of range": (["--set", "steps=0"], "steps must be a whole number"),
    "no equals sign": (["--set", "steps"], "--set takes key=value, not 'steps'"),
    "no value": (["--set", "steps="], "--set takes key=value, not 'steps='"),
    "no key": (["--set", "=3"], "--set takes key=value, not '=3'"),
    "reserved": (["--set", "streamer=1"], "streamer is not an option of a method"),
    "given twice": (["-n", "8", "--set", "gen_length=8"], "max_new_tokens is given twice"),
    "length": (["-n", "0"], "max_new_tokens must be a whole number"),
    "temperature": (["--temperature", "-1"], "temperature must be at least 0"),
    "not a number": (["--temperature", "nan"], "temperature must be at least 0"),
    "top-p": (["--top-p", "1.5"], "top_p must be between 0.0 and 1.0"),
    "wrong type": (["--set", "temperature=hot"], "temperature must be at least 0.0, not 'hot'"),
    "device": (["--device", "foo"], "unknown device 'foo'"),
    "dtype": (["--dtype", "int8"], "unknown dtype 'int8'"),
    "live and json": (["--live", "--json"], "--live and --json exclude each other"),
    "live in a pipe": (["--live"], "--live needs a terminal"),
    "unsound method": (["-m", "autoregressive"], "predicts masked tokens in place"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(arguments: list[str], message: str) -> None:
    result = run("generate", LLADA, "--ids", "5 6", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr and result.stderr.startswith("unmask: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./nowhere", "--ids", "5"], "no folder ./nowhere"),
        ([LLADA, "--ids", "5 x"], "--ids takes token ids separated by spaces or commas, not '5 x'"),
        ([LLADA, "--ids", "5000"], "5000 is not a token id (0 to 191)"),
        ([LLADA, "--ids", ""], "the prompt is empty"),
        ([LLADA, "hello"], "has no tokenizer"),
        ([LLADA, "--ids", "-", "-"], "stdin can be one prompt only"),
        ([LLADA, "caf\udce9"], "the prompt is not UTF-8 text"),
    ],
)
def test_bad_models_and_prompts_are_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    result = run("generate", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr and result.stderr.count("\n") == 1
