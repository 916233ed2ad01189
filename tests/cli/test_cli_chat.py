"""`unmask chat` with piped input: turns, commands, and mistakes that do not end it."""

from __future__ import annotations

import json

import pytest
from cli_parts import MODELS, run, talker


def objects(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_gives_one_object_per_turn() -> None:
    result = run("chat", talker(), "--json", "-n", "8", stdin="how many pens\n\nand apples\n")
    assert result.exit_code == 0
    assert [o["tokens"] for o in objects(result.stdout)] == [8, 8]


def test_the_conversation_is_remembered_until_clear() -> None:
    lines = "how many pens\nhow many pens\n/clear\nhow many pens\n"
    first, second, third = (o["ids"] for o in objects(run("chat", talker(), "--json", "-n", "8", stdin=lines).stdout))
    assert first == third != second


def test_the_oldest_turns_go_when_the_context_is_full() -> None:
    lines = "tom has three boxes of pens and apples\n" * 6
    result = run("chat", talker(), "-n", "16", stdin=lines)
    assert "dropped the oldest turn: the context holds 96 tokens" in result.stderr
    assert result.stderr.count("masked: ") == 6


def test_methods_and_options_can_be_changed() -> None:
    lines = "/method d2f\n/set block_size=4\n/set max_new_tokens=4\nhow many\n/unset block_size\n/set\n/method masked\n"
    result = run("chat", talker(), stdin=lines)
    assert "method: d2f" in result.stderr and "d2f: 4 tokens" in result.stderr
    assert "block_size=4, max_new_tokens=4" in result.stderr or "max_new_tokens=4, block_size=4" in result.stderr
    assert "method: masked" in result.stderr


def test_an_option_of_the_old_method_is_dropped_with_a_word() -> None:
    result = run("chat", talker(), stdin="/set steps=4\n/method d2f\n")
    assert "dropped steps: d2f has no such option" in result.stderr


def test_compare_runs_two_methods_and_remembers_nothing() -> None:
    lines = "how many\n/compare masked d2f\n/compare masked masked so green\n"
    result = run("chat", talker(), "--json", "-n", "8", stdin=lines)
    _, two, same = objects(result.stdout)
    assert [r["method"] for r in two["compare"]] == ["masked", "d2f"]  # type: ignore[union-attr, index]
    assert same["same_text"] is True
    plain = run("chat", talker(), "-n", "8", stdin=lines)
    assert "same text" in plain.stderr and "tok/s" in plain.stderr and "\x1b" not in plain.output


def test_retry_answers_again_with_another_seed() -> None:
    result = run("chat", talker(), "--json", "-n", "8", "--temperature", "2", stdin="how many\n/retry\n")
    first, second = objects(result.stdout)
    assert first["ids"] != second["ids"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/compar a b", "unknown command '/compar'; did you mean '/compare'?"),
        ("/method maskd", "unknown method 'maskd'; did you mean 'masked'?"),
        ("/set steps", "/set takes key=value, not 'steps'"),
        ("/set stps=3", "unknown option of masked 'stps'; did you mean 'steps'?"),
        ("/set temperature=-1", "temperature must be at least 0.0"),
        ("/unset steps", "nothing is set"),
        ("/compare masked", "/compare takes two methods"),
        ("/compare masked d2f", "nothing was asked yet"),
        ("/retry", "nothing was asked yet"),
        ("/model ./nowhere", "no folder ./nowhere"),
        ("green " * 200, "the context of this checkpoint is 96"),
    ],
)
def test_a_mistake_is_one_line_and_the_chat_goes_on(line: str, message: str) -> None:
    result = run("chat", talker(), "--json", stdin=f"{line}\n/set max_new_tokens=4\nhow many\n/quit\nnever read\n")
    assert result.exit_code == 0
    assert message in result.stderr and "Traceback" not in result.output
    assert [o["tokens"] for o in objects(result.stdout)] == [4]


def test_help_names_every_command() -> None:
    from unmask.cli.commands import COMMANDS

    shown = run("chat", talker(), stdin="/help\n").stderr
    assert all(f"/{name}" in shown for name in COMMANDS)


def test_a_checkpoint_without_tokenizer_cannot_chat() -> None:
    result = run("chat", str(MODELS / "llada-tiny"))
    assert result.exit_code == 2 and "has no tokenizer" in result.stderr
