"""`unmask trace`: the table in a pipe, files, JSON, the replay on terminals of any size, and mistakes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from cli_parts import MODELS, run, talker
from rich.console import Console

import traces
from unmask.cli.replay import Replay, table
from unmask.trace import read

LLADA = str(MODELS / "llada-tiny")
RUN = ["trace", LLADA, "--ids", "5 6 7", "-n", "8"]


def replay(trace=None, width: int = 60, height: int = 12, **more) -> Replay:
    more = {"color_system": "standard", "force_terminal": True} | more
    return Replay(trace or traces.small(), Console(file=io.StringIO(), width=width, height=height, **more))


def drawn(shown: Replay, number: int) -> list[str]:
    console = Console(file=io.StringIO(), width=shown.console.width, height=shown.console.height)
    console.print(shown.frame(number))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_a_pipe_gets_a_line_a_forward_and_the_counters_on_stderr() -> None:
    result = run(*RUN, "--set", "steps=4")
    assert result.exit_code == 0
    head, *rows = result.stdout.splitlines()
    assert head.split() == ["forward", "kind", "window", "run", "read", "stored", "fixed", "text"]
    assert len(rows) == 4 and all(len(head) > row.index("denoise") > 0 for row in rows)
    assert rows[0].split()[:9] == ["1", "denoise", "-3", "to", "7", "11", "0", "0", "2"]
    assert result.stderr == "masked: 8 tokens, 4 denoise, TPF 2.00\n"
    assert "\x1b" not in result.output
    assert run(*RUN, "--quiet").stderr == ""


def test_a_saved_trace_shows_the_same_again(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    first = run(*RUN, "--method", "d2f", "--set", "block_size=4", "--save", str(file))
    assert f"wrote {file}" in first.stderr.replace("\n", "")
    again = run("trace", str(file))
    assert again.exit_code == 0 and again.stdout == first.stdout
    trace = read(file)
    assert (trace.model, trace.method, trace.options) == (LLADA, "d2f", {"max_new_tokens": 8, "block_size": 4})
    shown = run("trace", str(file), "--json")
    assert json.loads(shown.stdout) == json.loads(file.read_text()) and shown.stderr == ""


def test_the_prompt_is_kept_as_it_was_written(tmp_path: Path) -> None:
    asked = run("trace", talker(), "how many pens", "-n", "4", "--json")
    assert json.loads(asked.stdout)["prompt"] == "how many pens"
    piped = run("trace", talker(), "-n", "4", "--json", stdin="how many pens\n")
    assert json.loads(piped.stdout)["ids"] == json.loads(asked.stdout)["ids"]
    raw = run("trace", talker(), "how many pens", "-n", "4", "--raw", "--json")
    assert len(json.loads(raw.stdout)["prompt_ids"]) < len(json.loads(asked.stdout)["prompt_ids"])


def test_pictures_are_written(tmp_path: Path) -> None:
    page, picture = tmp_path / "new" / "run.html", tmp_path / "run.svg"
    result = run(*RUN, "--html", str(page), "--svg", str(picture), "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["method"] == "masked" and result.stderr == ""
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert picture.read_text(encoding="utf-8").startswith("<svg ")
    assert not list(tmp_path.rglob("*.tmp"))


def test_hostile_text_stays_on_its_line() -> None:
    lines = table(traces.large(80))
    assert len(lines) == 1 + len(traces.large(80).steps)
    assert not any(c in line for line in lines for c in "\n\x1b\x00\u202e\u2028")


@pytest.mark.parametrize("width", [1, 9, 40, 80, 200])
@pytest.mark.parametrize("height", [2, 5, 12, 24])
def test_every_frame_fits_the_terminal(width: int, height: int) -> None:
    for trace in (traces.small(), traces.large(150)):
        shown = replay(trace, width, height)
        for number in range(0, len(trace.steps), 7):
            lines = drawn(shown, number)
            assert len(lines) < height or height == 2
            assert all(Console(width=200).measure(line).maximum <= width for line in lines)


def test_a_frame_tells_fixed_tokens_open_ones_and_the_window_apart() -> None:
    shown = replay()
    assert drawn(shown, 0)[2:4] == ["░░░░░░░░░░", "░░░░░"]
    first = drawn(shown, 1)
    assert first[0].startswith("forward 2 of 3 denoise") and first[2:4] == ["the boxes░", "░░░░░"]
    assert drawn(shown, 2)[2:4] == ["the boxes⏎", " 12∎▒"]
    assert first[-2] == "window −2 to 1, 4 run, fixed 2, 2 of 5 in all"
    assert first[-1] == "cache █████░░░░░░░░░░░░░░░░░░░ 1 read, 4 stored"
    line = shown._line(shown._places(60)[0], 1)
    assert "".join(line.plain[s.start : s.end] for s in line.spans if "reverse" in str(s.style)) == "the boxes"
    trace = traces.trace([traces.step(0, "denoise", 1, 2, {1: 0})], ["ab"], [0, 0, 0])
    assert drawn(replay(trace), 0)[2] == "░░ab▒▒"


def test_frames_can_be_drawn_in_any_order() -> None:
    trace = traces.large(60)
    shown, last = replay(trace), len(trace.steps) - 1
    assert drawn(shown, last) == drawn(replay(trace), last)
    assert drawn(shown, 3) == drawn(replay(trace), 3)


def test_a_long_answer_is_shown_by_the_page_of_the_forward() -> None:
    words = [f" w{i}" for i in range(300)]
    steps = [traces.step(i, "denoise", i, 1, {i: i}) for i in range(300)]
    shown = replay(traces.trace(steps, words, list(range(300))), 40, 10)
    assert " w0 " in drawn(shown, 7)[2] and "w7" in "".join(drawn(shown, 7))
    late = "".join(drawn(shown, 290))
    assert "w290" in late and "w0 " not in late and "w7 " not in late


def test_without_colour_or_unicode_the_marks_remain() -> None:
    plain = replay(no_color=True, color_system=None)
    plain.play(speed=1000)
    assert "░" in plain.console.file.getvalue()  # type: ignore[attr-defined]
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    ascii_only = Replay(traces.small(), Console(file=stream, width=60, height=12))
    assert drawn(ascii_only, 1)[2:4] == ["the boxes.", "....."]


def test_the_replay_leaves_nothing_and_gives_the_cursor_back_when_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unmask.cli.replay.time.sleep", interrupted)
    shown = replay()
    with pytest.raises(KeyboardInterrupt):
        shown.play()
    written = shown.console.file.getvalue()  # type: ignore[attr-defined]
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


def test_the_speed_is_bounded_by_the_length_of_the_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("unmask.cli.replay.time.sleep", waits.append)
    replay().play()
    assert waits == [0.25] * 3
    waits.clear()
    replay(traces.large(700)).play()
    assert sum(waits) == pytest.approx(20, abs=0.1)
    waits.clear()
    replay().play(speed=10)
    assert waits == [0.1] * 3


MISTAKES = {
    "unknown method": ([*RUN, "-m", "maskd"], "did you mean 'masked'?"),
    "unknown option": ([*RUN, "--set", "stps=3"], "did you mean 'steps'?"),
    "unsound": ([*RUN, "-m", "autoregressive"], "predicts masked tokens in place"),
    "no model": (["trace", "./nowhere", "hi"], "no folder ./nowhere"),
    "no file": (["trace", "./nowhere.json"], "cannot read ./nowhere.json"),
    "empty prompt": (["trace", LLADA, "--ids", ""], "the prompt is empty"),
    "two prompts": (["trace", LLADA, "--ids", "5", "6"], "trace takes one prompt, 2 are given"),
    "speed": ([*RUN, "--speed", "0"], "--speed must be above 0 and at most 1000, not 0"),
    "speed nan": ([*RUN, "--speed", "nan"], "--speed must be above 0"),
    "play in a pipe": ([*RUN, "--play"], "--play needs a terminal"),
    "play and json": ([*RUN, "--play", "--json"], "--play and --json exclude each other"),
    "one file twice": ([*RUN, "--svg", "x", "--html", "x"], "--html and --svg name the same file"),
    "folder": ([*RUN, "--svg", "."], "cannot write .: it is a folder"),
    "below a file": ([*RUN, "--save", f"{LLADA}/config.json/x"], "cannot write"),
    "other json": (["trace", f"{LLADA}/config.json"], "is not a saved trace: its format is not 'unmask-trace'"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert message in result.stderr and result.stderr.startswith("unmask: ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a prompt"], "which takes no prompt"),
        (["-m", "masked"], "--method cannot change it"),
        (["--set", "steps=4"], "--set cannot change it"),
        (["--top-k", "4"], "--top-k cannot change it"),
        (["--raw"], "--raw cannot change it"),
    ],
)
def test_a_saved_trace_takes_no_other_request(arguments: list[str], message: str, tmp_path: Path) -> None:
    traces.small().save(tmp_path / "run.json")
    result = run("trace", str(tmp_path / "run.json"), *arguments)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1


def test_help_names_the_forms() -> None:
    result = run("trace", "--help")
    assert result.exit_code == 0 and "saved with --save" in result.stdout
