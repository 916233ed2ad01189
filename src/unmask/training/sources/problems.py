"""Samples from tasks: word problems and lists in the chat format, and the grammar's sequences as they are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unmask.errors import UnmaskError
from unmask.tasks import SPLITS, Problem, Split, get_task
from unmask.tasks.grammar import Grammar
from unmask.training.samples import Samples
from unmask.training.sources.chat import Chat
from unmask.training.sources.workers import spread

_QUESTION, _SOLUTION = "THE-QUESTION", "THE-SOLUTION"
_CHUNK = 5_000


def load_samples(task: str, split: Split, count: int, seed: int, tokenizer: Path, workers: int = 0) -> Samples:
    """Generates and encodes problems in several processes (see `spread`)."""
    get_task(task)
    encode = partial(_encode_range, task, split, seed, tokenizer, count)
    return Samples.join(spread(encode, range(0, count, _CHUNK), workers))


def _encode_range(task: str, split: Split, seed: int, tokenizer: Path, count: int, start: int) -> Samples:
    from transformers import AutoTokenizer

    inner = AutoTokenizer.from_pretrained(tokenizer)
    problems = get_task(task).generate(split, min(_CHUNK, count - start), seed=seed, start=start)
    return encode_problems(inner, list(problems))


def encode_problems(tokenizer: Any, problems: Sequence[Problem]) -> Samples:
    """Prompt in the chat format, then the solution and what closes it; encoded apart, as when decoding."""
    # Rendering the chat template once is 100 times faster than for each problem.
    (pair,) = Chat(tokenizer).pairs({"prompt": _QUESTION, "response": _SOLUTION})
    if (pair.prompt.count(_QUESTION), pair.answer.count(_SOLUTION)) != (1, 1):
        raise UnmaskError("the tokenizer's chat template does not hold question and answer exactly once")
    prompts = [pair.prompt.replace(_QUESTION, p.question) for p in problems]
    answers = [pair.answer.replace(_SOLUTION, p.solution) for p in problems]
    return Samples.of(zip(token_ids(tokenizer, prompts, raw=pair.raw), token_ids(tokenizer, answers)))


def grammar_samples(source: Grammar, length: int, split: Split, count: int, seed: int) -> Samples:
    """Samples of a grammar, without prompts: every token is to be learnt. Each split has draws of its own."""
    ids = source.sample(count, length, seed=seed * len(SPLITS) + SPLITS.index(split)).numpy()
    starts = np.arange(0, (count + 1) * length, length, dtype=np.int64)
    return Samples(ids.astype(np.int32).ravel(), starts, np.zeros(count, np.int64))


def token_ids(tokenizer: Any, texts: list[str], raw: bool = False) -> list[list[int]]:
    """The texts as they stand, nothing put around them; `raw`: what the tokenizer puts around a text, too."""
    return tokenizer(texts, add_special_tokens=raw)["input_ids"] if texts else []
