"""Tokenizers: transformers' classes on the checkpoint's files, never code from the checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import unmask
from checkpoints import tiny
from unmask.errors import UnmaskError
from unmask.models.tokenizer import load_tokenizer

NANO = Path(unmask.__path__[0]) / "nano" / "nano"


@pytest.fixture
def dream_folder(tmp_path):
    """A folder as Dream publishes it: vocabulary and merges, and a tokenizer class that only its own code defines."""
    model = json.loads((NANO / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    config = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "eos_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
        "chat_template": "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenization_dream.py").write_text("raise SystemExit('remote code ran')")
    return tmp_path


def test_dreams_tokenizer_is_read_without_its_code(dream_folder):
    tokenizer = load_tokenizer(dream_folder, tiny("dream-tiny").family)
    assert tokenizer is not None
    text = "Tom has 3 boxes of 12 pens."
    ids = tokenizer.encode_prompt(text, raw=True)
    assert tokenizer.decode(ids) == text
    assert len(tokenizer.encode_prompt(text)) > len(ids)


def test_remote_code_of_any_other_family_is_refused_in_one_line(dream_folder):
    with pytest.raises(UnmaskError) as error:
        load_tokenizer(dream_folder, replace(tiny("dream-tiny").family, name="sdar"))
    assert "\n" not in str(error.value)


def test_a_folder_without_tokenizer_files_has_none(tmp_path):
    assert load_tokenizer(tmp_path, tiny("dream-tiny").family) is None


def test_strings_and_messages_meet_in_the_chat_template():
    tokenizer = load_tokenizer(NANO, tiny("fast-dllm-v2-tiny").family)
    assert tokenizer is not None
    text = "How many?"
    message = [{"role": "user", "content": text}]
    assert tokenizer.encode_prompt(text) == tokenizer.encode_prompt(message)
    assert tokenizer.encode_prompt(text, raw=True) != tokenizer.encode_prompt(text)
    with pytest.raises(UnmaskError, match="the prompt is empty"):
        tokenizer.encode_prompt("  ")
    tokenizer.inner.chat_template = None
    with pytest.raises(UnmaskError, match="no chat template"):
        tokenizer.encode_prompt(message)


def test_a_template_that_refuses_the_messages_is_one_line():
    tokenizer = load_tokenizer(NANO, tiny("fast-dllm-v2-tiny").family)
    assert tokenizer is not None
    tokenizer.inner.chat_template = "{{ raise_exception('no system message here') }}"
    with pytest.raises(UnmaskError, match="the chat template refuses these messages: no system message here"):
        tokenizer.encode_prompt("Hello")
