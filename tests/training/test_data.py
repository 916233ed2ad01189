"""Encoding and packing: labels on answers, whole blocks, nothing lost, nothing mixed."""

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from unmask.errors import UnmaskError
from unmask.layout import PAD
from unmask.tasks import get_task
from unmask.training.data import Format, Packed, Samples, build_batch, encode_problems, load_samples, pack
from unmask.training.recipes.base import IGNORE
from unmask.training.samples import fit
from unmask.training.tokenizer import train_tokenizer

TOKENIZER = Path(__file__).parents[2] / "configs" / "nano" / "tokenizer"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TOKENIZER)


@pytest.fixture(scope="module")
def problems():
    return list(get_task("wordmath").generate("train", 200))


@pytest.fixture(scope="module")
def samples(tokenizer, problems):
    return encode_problems(tokenizer, problems)


def form(**changes):
    options = {"length": 384, "block": 32, "pad_id": 3, "end_id": 2, "fill_end": False, **changes}
    return Format(**options)


def made(*sizes):
    """Samples of (prompt, answer) tokens; token ids say where they come from: 100 n + place."""
    return Samples.of(
        [
            (range(100 * n, 100 * n + prompt), range(100 * n + prompt, 100 * n + prompt + answer))
            for n, (prompt, answer) in enumerate(sizes, 1)
        ]
    )


def row(batch, name="tokens", n=0):
    return getattr(batch, name)[n].tolist()


def test_the_tokenizer_has_its_special_tokens_and_single_digits(tokenizer):
    assert len(tokenizer) == 2048
    assert tokenizer.eos_token == "<|im_end|>"
    assert (tokenizer.mask_token, tokenizer.pad_token) == ("<|mask|>", "<|pad|>")
    tokens = [tokenizer.decode([i]) for i in tokenizer("It is 1234 + 5.", add_special_tokens=False)["input_ids"]]
    assert [t for t in tokens if any(c.isdigit() for c in t)] == list("12345")


@pytest.mark.parametrize("text", ["12 * 3 = 36\n#### 36", "  Grüße, 你好 😀\t\n\n", "a  b <b> $5 'quoted'"])
def test_the_tokenizer_gives_every_text_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_chat_format_has_no_system_prompt(tokenizer):
    messages = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_tokenizer_can_be_trained_into_an_empty_folder(tmp_path):
    train_tokenizer(["one 12 two"] * 20, tmp_path / "new", vocabulary=280)
    trained = AutoTokenizer.from_pretrained(tmp_path / "new")
    assert trained.decode(trained("two 21 é")["input_ids"]) == "two 21 é"


def test_a_sample_is_the_chat_prompt_then_the_solution_and_the_end_token(tokenizer, problems, samples):
    for n in (0, 57, 199):
        ids = samples.tokens[samples.starts[n] : samples.starts[n + 1]].tolist()
        prompt, answer = ids[: samples.prompts[n]], ids[samples.prompts[n] :]
        messages = [{"role": "user", "content": problems[n].question}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(prompt) == text
        assert tokenizer.decode(answer) == problems[n].solution + "<|im_end|>"


def test_samples_are_the_same_with_one_process_and_with_two(monkeypatch):
    monkeypatch.setattr("unmask.training.sources.problems._CHUNK", 20)
    one = load_samples("wordmath", "train", 50, 0, TOKENIZER, workers=1)
    two = load_samples("wordmath", "train", 50, 0, TOKENIZER, workers=2)
    assert len(one) == 50
    assert np.array_equal(one.tokens, two.tokens) and np.array_equal(one.prompts, two.prompts)


def test_packing_uses_every_sample_once_and_fills_rows_well():
    lengths = np.random.default_rng(0).integers(2, 5, 3000) * 32
    rows = pack(lengths, 384, seed=0, epoch=0)
    assert Counter(n for row in rows for n in row) == Counter(range(3000))
    assert all(sum(lengths[n] for n in row) <= 384 for row in rows)
    assert sum(lengths) / (384 * len(rows)) > 0.95
    assert rows != pack(lengths, 384, seed=0, epoch=1)
    assert rows == pack(lengths, 384, seed=0, epoch=0)


def test_steps_are_the_same_wherever_one_begins(samples):
    data = Packed(samples, form(), rows_per_step=8, seed=0)
    steps = list(islice(data.steps(), 40))
    assert {epoch for epoch, _ in steps} >= {0, 1, 2}
    for first in (1, 7, 23):
        assert list(islice(data.steps(first), 40 - first)) == steps[first:]


@pytest.mark.parametrize("fill_end", [False, True])
def test_rows_hold_each_sample_in_whole_blocks(samples, fill_end):
    batch = build_batch(samples, [[3, 5], [8], []], form(fill_end=fill_end))
    assert batch.tokens.shape == (3, 384)
    at = 0
    for number, n in enumerate((3, 5)):
        ids = torch.from_numpy(samples.tokens[samples.starts[n] : samples.starts[n + 1]]).long()
        size, padded = len(ids), -(-len(ids) // 32) * 32
        here = slice(at, at + padded)
        assert torch.equal(batch.tokens[0, at : at + size], ids)
        assert (batch.tokens[0, at + size : at + padded] == (2 if fill_end else 3)).all()
        assert (batch.labels[0, at : at + samples.prompts[n]] == IGNORE).all()
        assert torch.equal(batch.labels[0, at + samples.prompts[n] : at + size], ids[samples.prompts[n] :])
        assert (batch.labels[0, at + size : at + padded] == (2 if fill_end else IGNORE)).all()
        assert batch.segment[0, here].eq(number).all() and batch.sample[0, here].eq(n).all()
        assert torch.equal(batch.positions[0, here], torch.arange(padded))
        at += padded
    assert (batch.segment[0, at:] == PAD).all() and (batch.labels[0, at:] == IGNORE).all()
    assert (batch.segment[2] == PAD).all()


def test_aligned_samples_get_no_padding():
    samples = Samples(np.arange(64, dtype=np.int32), np.array([0, 32, 64]), np.array([4, 4]))
    batch = build_batch(samples, [[0, 1]], form(length=64))
    assert batch.tokens[0].tolist() == list(range(64))


def test_answers_of_anchored_recipes_are_padded_to_whole_blocks():
    """Prompts of 3 and 1 tokens, answers of 5 and 4, blocks of 4: by hand."""
    batch = build_batch(made((3, 5), (1, 4)), [[0, 1]], form(length=18, block=4, anchored=True))
    assert row(batch) == [*range(100, 108), 3, 3, 3, *range(200, 205), 3, 3]
    assert row(batch, "labels") == [*[IGNORE] * 3, *range(103, 108), *[IGNORE] * 4, *range(201, 205), *[IGNORE] * 2]
    assert row(batch, "segment") == [0] * 11 + [1] * 5 + [PAD] * 2
    assert row(batch, "positions") == [*range(11), *range(5), 0, 0]
    assert row(batch, "prompt") == [3] * 11 + [1] * 5 + [0] * 2
    assert row(batch, "answer") == [5] * 11 + [4] * 5 + [0] * 2


def test_fill_end_fills_the_last_block_of_an_anchored_answer():
    batch = build_batch(made((3, 5), (1, 4)), [[0, 1]], form(length=18, block=4, anchored=True, fill_end=True))
    assert row(batch)[8:11] == [2, 2, 2] == row(batch, "labels")[8:11]
    assert row(batch, "answer") == [8] * 11 + [4] * 5 + [0] * 2


@pytest.mark.parametrize("anchored", [False, True])
def test_answers_are_filled_to_the_tokens_asked_for(anchored):
    """To 6 tokens; what is left of the last block of 4 is padding, or end tokens under fill_end."""
    changes = {"length": 24, "block": 4, "anchored": anchored, "answer_tokens": 6}
    sample, end = made((3, 2)), 11 if anchored else 12
    batch = build_batch(sample, [[0]], form(**changes))
    assert row(batch)[:end] == [*range(100, 105), 2, 2, 2, 2, *[3] * (end - 9)]
    assert row(batch, "labels")[:end] == [*[IGNORE] * 3, 103, 104, 2, 2, 2, 2, *[IGNORE] * (end - 9)]
    assert set(row(batch, "answer")[:end]) == {6} and row(batch, "segment")[end - 1 : end + 1] == [0, PAD]
    filled = build_batch(sample, [[0]], form(**changes, fill_end=True))
    assert row(filled, "labels")[3:end] == [103, 104, *[2] * (end - 5)]


def test_extra_ends_follow_the_answers_own():
    batch = build_batch(made((3, 2)), [[0]], form(length=8, block=8, extra_ends=2))
    assert row(batch) == [*range(100, 105), 2, 2, 3]
    assert row(batch, "labels") == [*[IGNORE] * 3, 103, 104, 2, 2, IGNORE]
    assert set(row(batch, "answer")) == {4}


@pytest.mark.parametrize("anchored", [False, True])
def test_packed_rows_agree_with_the_room_a_format_says_there_is(anchored):
    """An answer as long as the room fits, one token more does not: over all prompts and both ways of padding."""
    for options in ({}, {"extra_ends": 2}, {"answer_tokens": 5}, {"context": 13}):
        shape = form(length=16, block=4, anchored=anchored, **options)
        for prompt in range(14):
            most = int(shape.room(np.array([prompt]))[0])
            if most >= 1:
                assert shape.padded(prompt, most) <= shape.limit[0]
            allowed = options.get("answer_tokens", 16)
            longer = max(most, 0) + 1
            assert longer > allowed or shape.padded(prompt, longer) > shape.limit[0]


def test_samples_that_are_too_long_are_refused_left_out_or_cut():
    samples, shape = made((3, 5), (2, 9), (12, 3), (1, 4)), form(length=12, block=4, answer_tokens=6)
    with pytest.raises(UnmaskError) as error:
        fit(samples, shape, "chats.jsonl")
    assert str(error.value) == (
        "row 2 of chats.jsonl has an answer of 9 tokens (the longest has 9), answer_tokens is 6; "
        "2 of 4 samples are too long: raise answer_tokens, or set too_long to drop or cut"
    )
    with pytest.raises(UnmaskError, match="row 1 of x takes 16 tokens with its padding, row_tokens is 12; 1 of 1"):
        fit(made((12, 3)), form(length=12, block=4), "x")
    with pytest.raises(UnmaskError, match="row 1 of x takes 16 tokens with its padding, the model's context is 14"):
        fit(made((12, 3)), form(length=32, block=4, context=14), "x")
    dropped = fit(samples, shape, "x", "drop")
    assert (len(dropped), dropped.dropped, dropped.cut) == (2, 2, 0)
    assert dropped.tokens.tolist() == [*range(100, 108), *range(400, 405)]
    cut = fit(samples, shape, "x", "cut")
    assert (len(cut), cut.dropped, cut.cut) == (3, 1, 1)
    assert cut.tokens.tolist() == [*range(100, 108), *range(200, 208), *range(400, 405)]
    assert len(fit(samples, form(length=12, block=4, answer_tokens=12), "x", "drop")) == 0


def test_samples_without_an_answer_are_refused():
    with pytest.raises(UnmaskError, match="row 2 of chats has no answer to learn"):
        fit(made((3, 5), (4, 0)), form(), "chats")


def test_formats_that_contradict_themselves_are_refused():
    with pytest.raises(UnmaskError, match="no multiple of the recipe's block"):
        form(length=100)
    assert form(length=100, anchored=True).length == 100
    with pytest.raises(UnmaskError, match="leave out extra_ends"):
        form(answer_tokens=8, extra_ends=1)
    with pytest.raises(UnmaskError, match="no end token to fill with"):
        form(end_id=None, fill_end=True)
    with pytest.raises(UnmaskError, match="answer_tokens must be at least 0, got -1"):
        form(answer_tokens=-1)


def test_samples_that_do_not_fit_are_refused(samples):
    with pytest.raises(UnmaskError, match="there are no samples"):
        pack(np.array([], np.int64), 64, 0, 0)
    with pytest.raises(UnmaskError, match="raise row_tokens"):
        pack(np.array([64, 96]), 64, 0, 0)
    with pytest.raises(UnmaskError, match="do not fill one step"):
        next(Packed(samples, form(), rows_per_step=1000, seed=0).steps())
