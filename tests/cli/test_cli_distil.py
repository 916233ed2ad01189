"""`unmask distil`: what it writes and says, going on, and the messages for mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_parts import MODELS, run, talker

CAUSAL = str(MODELS / "qwen2-tiny")


def test_rows_are_written_and_a_second_run_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "out" / "answers.jsonl"
    asked = ["distil", talker(), "--out", str(file), "--task", "lists", "-n", "6", "--batch", "2"]
    result = run(*asked, "--count", "3")
    assert result.exit_code == 0 and result.stdout == f"{file}: 3 rows of 3 prompts\n", result.output
    first = file.read_text()
    result = run(*asked, "--count", "5", "--json")
    assert json.loads(result.stdout) == {"file": str(file), "prompts": 5, "rows": 5} and result.stderr == ""
    assert file.read_text().startswith(first)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(5)) and all(len(row["response_ids"]) <= 6 for row in rows)
    assert rows[0].keys() == {
        *("index", "prompt", "response", "prompt_ids", "response_ids", "finish_reason", "kind", "correct")
    }
    state = json.loads(file.with_name("answers.jsonl.state").read_text())
    assert state["settings"]["method"] == "masked" and {"commit", "command", "device"} <= set(state["about"])


def test_trajectories_of_the_prompts_of_a_file(tmp_path: Path) -> None:
    prompts, paths = tmp_path / "prompts.jsonl", tmp_path / "paths.jsonl"
    asked = [{"prompt": ids, "prompt_ids": ids, "response_ids": [1]} for ids in ([5, 6, 7], [8, 9])]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in asked))
    how = ["--data", str(prompts), "--trajectories", "--set", "block_size=3", "-n", "6"]
    result = run("distil", CAUSAL, "--out", str(paths), "--count", "9", *how)
    assert result.stdout == f"{paths}: 2 rows of 2 prompts\n", result.output
    rows = [json.loads(line) for line in paths.read_text().splitlines()]
    greedy = json.loads(run("generate", CAUSAL, "--ids", "5 6 7", "-n", "6", "--json").stdout)
    assert rows[0]["block_size"] == 3 and len(rows[0]["blocks"]) == 2 and rows[0]["response_ids"] == greedy["ids"]


MISTAKES = {
    "task": (["--task", "list"], "unknown task 'list'; did you mean 'lists'?"),
    "split": (["--split", "trian"], "unknown split 'trian'; did you mean 'train'?"),
    "method": (["-m", "d2g"], "unknown method 'd2g'; did you mean 'd2f'?"),
    "option": (["--set", "stps=3"], "unknown option of masked 'stps'"),
    "length": (["--set", "gen_length=3"], "give --max-new-tokens and --seed, not --set"),
    "two sources": (["--data", "x.jsonl", "--task", "lists"], "--data and --task exclude each other"),
    "no check": (["--data", "x.jsonl", "--only-right"], "--data and --only-right exclude each other"),
    "column": (["--column", "prompt=q"], "--column is of --data"),
    "missing file": (["--data", "no/x.jsonl"], "there is no no/x.jsonl"),
    "no room": (["-n", "5000"], "exceed the context of 96 tokens"),
    "trajectories of": (["--trajectories", "-m", "d2f"], "trajectories are those of jacobi, not of d2f"),
    "trajectories with": (["--trajectories", "--set", "schedule=window"], "--trajectories need schedule as it is"),
    "trajectories sampled": (["--trajectories", "--temperature", "1"], "leave out temperature"),
    "trajectories by": (["--trajectories", "--engine"], "leave out --engine"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_line_and_leave_no_file(case: str, tmp_path: Path) -> None:
    arguments, message = MISTAKES[case]
    result = run("distil", talker(), "--out", str(tmp_path / "a.jsonl"), "--count", "1", *arguments)
    assert result.exit_code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1, result.output
    assert list(tmp_path.iterdir()) == []
