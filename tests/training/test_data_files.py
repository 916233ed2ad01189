"""Data from files: exact answer spans under any chat template, rows held out, and each mistake named with its row."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import stand_in_datasets
from transformers import AutoTokenizer

from unmask.errors import UnmaskError
from unmask.models.tokenizer import Tokenizer
from unmask.tasks import get_task
from unmask.training.packing import Format
from unmask.training.sources.files import Reading
from unmask.training.sources.problems import encode_problems

TOKENIZER = Path(__file__).parents[2] / "configs" / "nano" / "tokenizer"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Thoughts of earlier turns are not shown, as by Qwen3.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ASKS = "{% if add_generation_prompt %}assistant: {% endif %}"
UNCLOSED = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}" + ASKS
ODD = "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}" + ASKS
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "<think>hm</think>Hello."},
    {"role": "user", "content": "How many?"},
    {"role": "assistant", "content": "Two, I think."},
]


@pytest.fixture(autouse=True)
def datasets(monkeypatch):
    stand_in_datasets.put(monkeypatch)


@pytest.fixture
def folder(tmp_path):
    """Makes a tokenizer's folder with another chat template."""

    def make(template):
        target = tmp_path / f"tokenizer{len(list(tmp_path.iterdir()))}"
        shutil.copytree(TOKENIZER, target)
        config = json.loads((target / "tokenizer_config.json").read_text())
        config = {k: v for k, v in (config | {"chat_template": template}).items() if v is not None}
        (target / "tokenizer_config.json").write_text(json.dumps(config))
        return target

    return make


@pytest.fixture
def write(tmp_path):
    """Writes rows as JSON lines."""

    def make(rows, name="chats.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return make


def reading(tokenizer=TOKENIZER, length=96, **options):
    form = Format(length=length, block=1, pad_id=3, end_id=2, fill_end=False)
    return Reading(tokenizer=tokenizer, form=form, workers=1, **options)


def texts(samples, folder=TOKENIZER):
    """(prompt, answer) of each sample as text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for start, end, prompt in zip(samples.starts, samples.starts[1:], samples.prompts):
        ids = samples.tokens[start:end].tolist()
        found.append((tokenizer.decode(ids[:prompt]), tokenizer.decode(ids[prompt:])))
    return found


def test_each_turn_of_a_chat_is_one_sample_with_all_before_it_as_prompt(folder, write):
    tokens = folder(CHATML)
    samples = reading(tokens).load(write([{"messages": TALK}]), 10)
    first = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    turn = "<think>hm</think>Hello.<|im_end|>"
    second = f"{first}{turn}\n<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n"
    assert texts(samples, tokens) == [(first, turn), (second, "Two, I think.<|im_end|>")]
    assert samples.rows is not None and samples.rows.tolist() == [1, 1]
    assert texts(reading(tokens, turns="last").load(write([{"messages": TALK}]), 10), tokens) == [
        texts(samples, tokens)[1]
    ]


def test_a_template_that_hides_earlier_thoughts_is_followed(folder, write):
    tokens = folder(THINKING)
    (_, first), (prompt, second) = texts(reading(tokens).load(write([{"messages": TALK}]), 10), tokens)
    assert first == "<think>hm</think>Hello.<|im_end|>" and "hm" not in prompt
    assert "Hello.<|im_end|>\n<|im_start|>user\nHow many?" in prompt and second == "Two, I think.<|im_end|>"


def test_the_prompt_is_what_decoding_gives_the_model(folder, write):
    for template in (None, CHATML):
        tokens = TOKENIZER if template is None else folder(template)
        samples = reading(tokens).load(write([{"prompt": "1 + 1?", "response": "It is 2."}]), 10)
        decoding = Tokenizer(AutoTokenizer.from_pretrained(tokens)).encode_prompt("1 + 1?")
        assert samples.tokens[: samples.prompts[0]].tolist() == decoding
        assert texts(samples, tokens)[0][1] == "It is 2.<|im_end|>"


def test_a_template_that_closes_no_turn_gets_the_end_token(folder, write):
    tokens = folder(UNCLOSED)
    samples = reading(tokens).load(write([{"messages": TALK[:2]}]), 10)
    assert texts(samples, tokens) == [("user: Hi\nassistant: ", "<think>hm</think>Hello.\n<|im_end|>")]


def test_a_tokenizer_without_a_template_takes_texts_and_plain_prompts(folder, write):
    tokens = folder(None)
    samples = reading(tokens).load(write([{"prompt": "1 + 1 = ", "response": "2"}]), 10)
    assert texts(samples, tokens) == [("1 + 1 = ", "2<|im_end|>")]
    samples = reading(tokens).load(write([{"text": "Once upon a time."}]), 10)
    assert texts(samples, tokens) == [("", "Once upon a time.<|im_end|>")] and samples.prompts.tolist() == [0]
    with pytest.raises(UnmaskError, match=r"row 1 of chats\.jsonl holds chat messages, and the tokenizer has no chat"):
        reading(tokens).load(write([{"messages": TALK}]), 10)


def test_problems_of_a_task_stand_in_the_same_format_as_rows_of_a_file(folder, write):
    problems = list(get_task("lists").generate("train", 3))
    rows = [{"prompt": p.question, "response": p.solution} for p in problems]
    for template in (CHATML, UNCLOSED, None):
        tokens = folder(template)
        samples = reading(tokens, length=256).load(write(rows), 10)
        encoded = encode_problems(AutoTokenizer.from_pretrained(tokens), problems)
        assert np.array_equal(samples.tokens, encoded.tokens) and np.array_equal(samples.prompts, encoded.prompts)


def test_columns_may_have_other_names(write):
    rows = [{"id": i, "question": f"{i} + 1?", "qwen7b_answer": str(i + 1)} for i in range(3)]
    samples = reading(columns={"prompt": "question", "response": "qwen7b_answer"}).load(write(rows), 10)
    assert [answer for _, answer in texts(samples)] == ["1<|im_end|>", "2<|im_end|>", "3<|im_end|>"]
    with pytest.raises(UnmaskError, match=r"unknown column 'promt'; did you mean 'prompt'"):
        reading(columns={"promt": "question"}).load(write(rows), 10)
    with pytest.raises(UnmaskError, match=r"unknown column of chats.jsonl 'questions'; did you mean 'question'"):
        reading(columns={"prompt": "questions"}).load(write(rows), 10)


def test_a_folder_holds_several_files_and_kinds(tmp_path, write):
    write([{"text": "c"}], "b.parquet")
    write([{"text": "a"}, {"text": "b"}], "a.jsonl")
    (tmp_path / "c.json").write_text(json.dumps([{"text": "d"}]))
    write([{"text": "ignored"}], "a.jsonl.state")
    samples = reading().load(str(tmp_path), 10)
    assert [answer for _, answer in texts(samples)] == [f"{c}<|im_end|>" for c in "abcd"]
    kinds = [(kind, Path(path).name, split) for kind, path, split in stand_in_datasets.LOADED]
    assert kinds == [("json", "a.jsonl", "train"), ("parquet", "b.parquet", "train"), ("json", "c.json", "train")]


def test_rows_held_out_are_not_trained_on_and_the_draw_is_the_seeds(write):
    path = write([{"text": str(n)} for n in range(40)])
    train, held = reading().split(path, 100, 8)
    numbers = [set(x.rows.tolist()) for x in (train, held)]
    assert len(held) == 4 and len(train) == 36 and not numbers[0] & numbers[1]
    again = reading().split(path, 100, 8)[1]
    assert np.array_equal(held.tokens, again.tokens)
    assert not np.array_equal(held.rows, reading(seed=1).split(path, 100, 8)[1].rows)
    assert len(reading().split(path, 10, 8)[0]) == 10
    with pytest.raises(UnmaskError, match="holds 1 rows"):
        reading().split(write([{"text": "a"}]), 10, 1)


def test_samples_are_the_same_with_one_process_and_with_two(monkeypatch, write):
    monkeypatch.setattr("unmask.training.sources.files._CHUNK", 4)
    path = write([{"prompt": f"{n} + {n}?", "response": "8" * (n % 5 + 1)} for n in range(15)])
    one = reading().load(path, 100)
    two = Reading(TOKENIZER, reading().form, workers=2).load(path, 100)
    assert len(one) == 15 and np.array_equal(one.tokens, two.tokens) and np.array_equal(one.rows, two.rows)


GOOD = {"prompt": "Hi", "response": "Hello."}
ROWS = {
    "empty response": (
        [GOOD, {"prompt": "Hi", "response": " "}],
        "row 2 of chats.jsonl has no answer: response is empty",
    ),
    "no response": ([GOOD, {"prompt": "Hi"}], "row 2 of chats.jsonl has no answer: response is None"),
    "no assistant": ([{"messages": TALK[:1]}], "row 1 of chats.jsonl has no answer: no message of the assistant"),
    "empty turn": (
        [{"messages": TALK}, {"messages": [TALK[0], {"role": "assistant", "content": ""}]}],
        "row 2 of chats.jsonl has no answer: message 2 of the assistant is empty",
    ),
    "no messages": ([{"messages": TALK}, {"messages": "Hi"}], "row 2 of chats.jsonl holds no list of messages: 'Hi'"),
    "no role": ([{"messages": [{"content": "a"}]}], "row 1 of chats.jsonl has a message without a role"),
    "columns": (
        [{"question": "a", "answer": "b"}],
        "chats.jsonl has the columns answer, question; wanted are messages,",
    ),
    "too long": (
        [GOOD, GOOD | {"response": "a b c " * 40}],
        "row 2 of chats.jsonl takes 132 tokens with its padding, row_tokens is 64; 1 of 2 samples are too long",
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_rows_that_cannot_be_learnt_are_named(case, folder, write):
    rows, message = ROWS[case]
    with pytest.raises(UnmaskError) as error:
        reading(folder(CHATML), length=64).load(write(rows), 10)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_an_answer_that_a_template_does_not_show_behind_its_prompt_is_refused(folder, write):
    with pytest.raises(UnmaskError, match=r"row 1 of chats\.jsonl has no exact answer"):
        reading(folder(ODD)).load(write([{"messages": TALK}]), 10)
    with pytest.raises(UnmaskError, match=r"row 1 of chats\.jsonl is refused by the chat template: no"):
        reading(folder("{{ raise_exception('no') }}")).load(write([GOOD]), 10)


def test_long_samples_may_be_left_out_or_cut(write):
    rows = [GOOD, GOOD | {"response": "a b c " * 40}]
    dropped = reading(length=64, too_long="drop").load(write(rows), 10)
    assert (len(dropped), dropped.dropped) == (1, 1)
    cut = reading(length=64, too_long="cut").load(write(rows), 10)
    assert (len(cut), cut.cut, cut.lengths.tolist()[1]) == (2, 1, 64)
    assert not texts(cut)[1][1].endswith("<|im_end|>")


def test_files_that_cannot_be_read_are_named(tmp_path, write):
    write([GOOD], "answers.jsonl")
    with pytest.raises(UnmaskError, match=r"unknown file of data '.*answer\.jsonl'; did you mean '.*answers\.jsonl'"):
        reading().load(str(tmp_path / "answer.jsonl"), 10)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UnmaskError, match=r"notes.txt is no file of data \(.jsonl, .json, .parquet\)"):
        reading().load(str(tmp_path / "notes.txt"), 10)
    (tmp_path / "none").mkdir()
    with pytest.raises(UnmaskError, match="there is no file of data in"):
        reading().load(str(tmp_path / "none"), 10)
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(UnmaskError, match=r"bad\.jsonl cannot be read: Expecting"):
        reading().load(str(tmp_path / "bad.jsonl"), 10)


def test_without_the_library_the_message_says_what_to_install(monkeypatch, write):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UnmaskError, match=r"reading chats.jsonl needs datasets: pip install 'unmask\[train\]'"):
        reading().load(write([GOOD]), 10)


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="datasets is not installed")
def test_the_library_itself_reads_json_lines_and_parquet(monkeypatch, tmp_path, write):
    monkeypatch.undo()
    from datasets import Dataset  # pyright: ignore[reportMissingImports]

    rows = [{"messages": TALK}, {"messages": [{"role": "user", "content": "Hi", "name": "x"}, TALK[1]]}]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "chats.parquet"))
    expected = reading().load(write(rows), 10)
    found = reading().load(str(tmp_path / "chats.parquet"), 10)
    assert len(found) == 3 and np.array_equal(found.tokens, expected.tokens)
