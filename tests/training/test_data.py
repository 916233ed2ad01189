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
from unmask.training.data import Format, Packed, build_batch, encode_problems, load_samples, pack
from unmask.training.recipes.base import IGNORE
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
    monkeypatch.setattr("unmask.training.data._CHUNK", 20)
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
    from unmask.training.data import Samples

    samples = Samples(np.arange(64, dtype=np.int32), np.array([0, 32, 64]), np.array([4, 4]))
    batch = build_batch(samples, [[0, 1]], form(length=64))
    assert batch.tokens[0].tolist() == list(range(64))


def test_samples_that_do_not_fit_are_refused(samples):
    with pytest.raises(UnmaskError, match="no multiple of the recipe's block"):
        form(length=100)
    with pytest.raises(UnmaskError, match="raise row_tokens"):
        pack(np.array([64, 96]), 64, 0, 0)
    with pytest.raises(UnmaskError, match="do not fill one step"):
        next(Packed(samples, form(), rows_per_step=1000, seed=0).steps())
