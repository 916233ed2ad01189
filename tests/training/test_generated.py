"""`unmask distil`: one file whatever the batch and however often it is stopped, and the states of Jacobi decoding."""

import json
import os
import signal
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import pytest
import stand_in_datasets
import torch

from unmask.errors import UnmaskError, UnmaskWarning
from unmask.lm import load
from unmask.tasks import get_task
from unmask.training.data import Format
from unmask.training.generated import Journal, Problems, Question, Rows, Writer, distil
from unmask.training.sources.files import Reading
from unmask.training.sources.trajectories import NoiseSchedule, noise_of

MODEL = Path(__file__).parents[1] / "golden" / "models" / "qwen2-tiny"


@pytest.fixture(scope="module")
def lm():
    return load(MODEL, device="cpu", eos_token_id=[41, 161])


class Asked:
    """Prompts of token ids; every third answer counts as wrong."""

    def take(self, start, count):
        last = min(start + count, 11)
        return [
            Question([7, 5 + n, 9][: 2 + n % 2], "even" if n % 2 else "odd", self.right(n)) for n in range(start, last)
        ]

    def right(self, n):
        return lambda text: n % 3 > 0


def make(lm, path, *, count=8, batch=4, settings=None, stop_after=None, **options):
    how = {"max_new_tokens": 12, **options.pop("how", {})}
    journal = Journal(path, settings or {"method": "x"}, {})

    def progress(done):
        if stop_after is not None and done >= stop_after:
            raise KeyboardInterrupt

    distil(Asked(), Writer(lm=lm, **how), journal, count=count, batch=batch, progress=progress, **options)
    return path.read_bytes(), journal


def test_rows_hold_what_generate_gives(lm, tmp_path):
    data, journal = make(lm, tmp_path / "a.jsonl")
    rows = [json.loads(line) for line in data.splitlines()]
    assert [row["index"] for row in rows] == list(range(8)) and (journal.tried, journal.written) == (8, 8)
    for row in rows:
        expected = lm.generate(row["prompt"], max_new_tokens=12)
        assert row["prompt_ids"] == row["prompt"] and row["response_ids"] == expected.ids
        assert row["finish_reason"] == expected.finish_reason and row["correct"] == (row["index"] % 3 > 0)
    assert {row["finish_reason"] for row in rows} == {"stop", "length"}


@pytest.mark.parametrize("kind", ["answers", "sampled", "trajectories"])
def test_the_file_is_the_same_in_any_batch_and_after_any_stop(lm, tmp_path, kind):
    options = {
        "answers": {"only_right": True},
        "sampled": {"how": {"sampling": {"temperature": 1.0}, "seed": 5}},
        "trajectories": {"trajectories": True, "how": {"options": {"block_size": 6}}},
    }[kind]
    whole, _ = make(lm, tmp_path / "whole.jsonl", batch=3, **options)
    stopped = tmp_path / "stopped.jsonl"
    for after in (2, 6):
        with pytest.raises(KeyboardInterrupt):
            make(lm, stopped, batch=2, stop_after=after, **options)
    make(lm, stopped, count=7, batch=5, **options)
    data, journal = make(lm, stopped, batch=4, **options)
    assert data == whole and len(whole.splitlines()) == journal.written == (5 if kind == "answers" else 8)


def test_a_run_killed_within_a_line_goes_on_as_if_it_had_not_been(lm, tmp_path):
    path = tmp_path / "killed.jsonl"

    def run():
        torch.set_num_threads(1)
        journal = Journal(path, {"method": "x"}, {})

        def kill(done):
            if done >= 4:
                with path.open("ab") as file:
                    file.write(b'{"index": 4, "prom')
                os.kill(os.getpid(), signal.SIGKILL)

        distil(Asked(), Writer(lm=lm, max_new_tokens=12), journal, count=8, batch=2, progress=kill)

    process = get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and path.read_bytes().endswith(b'"prom')
    with pytest.raises(UnmaskError, match=r"row 5 of killed\.jsonl holds no prompt_ids.*start the same"):
        Reading(None, form(), workers=1).load(str(path), 100)
    assert make(lm, path)[0] == make(lm, tmp_path / "whole.jsonl")[0]


def form(**changes):
    options = {"length": 64, "block": 6, "pad_id": 0, "end_id": None, "fill_end": False, "anchored": True}
    return Format(**{**options, **changes})


def test_trajectories_begin_with_the_draft_and_end_with_the_text_of_greedy_decoding(lm, tmp_path):
    how = {"options": {"block_size": 6}}
    data, _ = make(lm, tmp_path / "t.jsonl", trajectories=True, how=how)
    rows = [json.loads(line) for line in data.splitlines()]
    assert {row["finish_reason"] for row in rows} == {"stop", "length"}
    counts = set()
    for row in rows:
        answer = row["response_ids"]
        assert answer == lm.generate(row["prompt"], method="autoregressive", max_new_tokens=12).ids
        assert row["block_size"] == 6 and len(row["blocks"]) == -(-len(answer) // 6)
        for number, states in enumerate(row["blocks"]):
            final, known = answer[number * 6 : number * 6 + 6], row["prompt"] + answer[: number * 6 + 1]
            assert states[-1][: len(final)] == final and states[0][0] == final[0]
            assert set(states[0]) <= set(known)
            noise = noise_of(torch.tensor(states).numpy(), torch.tensor(final).numpy())
            assert all(a > b or b == 0 for a, b in pairwise(noise))
            counts.add(len(states))
    assert max(counts) > 3


def test_a_file_of_trajectories_is_training_data(lm, tmp_path):
    path = tmp_path / "t.jsonl"
    data, _ = make(lm, path, trajectories=True, how={"options": {"block_size": 6}})
    reading = Reading(None, form(), schedule=NoiseSchedule(window=4), workers=1)
    samples = reading.load(str(path), 100)
    rows = [json.loads(line) for line in data.splitlines()]
    assert samples.tokens.tolist() == [t for row in rows for t in row["prompt_ids"] + row["response_ids"]]
    assert samples.prompts.tolist() == [len(row["prompt_ids"]) for row in rows]
    assert samples.drafts is not None and (samples.drafts != samples.tokens).mean() > 0.1


def test_a_file_of_other_settings_or_of_nobody_is_left_alone(lm, tmp_path):
    path = tmp_path / "a.jsonl"
    make(lm, path, count=4)
    before = path.read_bytes()
    with pytest.raises(UnmaskError, match=r"a\.jsonl was begun with method 'x', not 'y'"):
        make(lm, path, settings={"method": "y"})
    path.write_bytes(before[:-1])
    with pytest.raises(UnmaskError, match="lacks lines"):
        make(lm, path)
    other = tmp_path / "b.jsonl"
    other.write_text("mine\n")
    with pytest.raises(UnmaskError, match="give another --out"):
        make(lm, other)
    assert other.read_text() == "mine\n"


def test_without_a_gpu_the_engine_is_the_eager_loop(lm, tmp_path):
    with pytest.warns(UnmaskWarning, match="no engine"):
        lm.keeper.told.clear()
        data, _ = make(lm, tmp_path / "a.jsonl", batch=2, how={"engine": {"rows": 2}})
    assert data == make(lm, tmp_path / "b.jsonl")[0]


def test_prompts_that_leave_no_room_are_refused(lm, tmp_path):
    context = lm.model.config.max_positions
    how = {"options": {"block_size": 6}, "max_new_tokens": context}
    with pytest.raises(UnmaskError, match=f"exceed the context of {context}"):
        make(lm, tmp_path / "a.jsonl", trajectories=True, how=how)


def test_problems_of_a_task_are_asked_by_number():
    asked = Problems(get_task("lists:sort"), "test", seed=1)
    questions = asked.take(3, 4)
    problems = list(get_task("lists:sort").generate("test", 4, seed=1, start=3))
    assert [q.prompt for q in questions] == [p.question for p in problems]
    assert [q.right(p.solution) for q, p in zip(questions, problems)] == [True] * 4
    assert questions[0].right("Zoe") is False and questions[0].kind == "sort"


def test_prompts_of_files_are_asked_in_order(tmp_path):
    for name, first in (("a.jsonl", 0), ("b.jsonl", 3)):
        rows = [{"prompt": f"p{n}", "prompt_ids": [n], "response_ids": [n]} for n in range(first, first + 3)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = Rows(str(tmp_path), {})
    assert [q.prompt for q in asked.take(0, 10)] == [f"p{n}" for n in range(6)]
    assert [q.prompt for q in asked.take(2, 2)] == ["p2", "p3"] and asked.take(6, 2) == []


def test_of_a_chat_the_model_answers_the_last_message_of_the_user(tmp_path, monkeypatch):
    stand_in_datasets.put(monkeypatch)
    path = tmp_path / "chats.jsonl"
    asked, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}
    rows = [{"messages": [asked, answer]}, {"messages": [asked, answer, asked]}, {"messages": [answer]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = Rows(str(path), {}).take(0, 2)
    assert [q.prompt for q in questions] == [[asked], [asked, answer, asked]] and questions[0].right is None
    with pytest.raises(UnmaskError, match=r"row 3 of chats\.jsonl has no message of the user"):
        Rows(str(path), {}).take(2, 1)
