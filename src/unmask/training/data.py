"""From task problems to packed rows: chat format, labels on the answer only, samples padded to whole blocks.

A block-diffusion model must also learn what stands behind the end token: when decoding, the rest of the last
block is masks. `fill_end` therefore fills that rest with the end token and supervises it, so that training sees
what decoding will see. Without it the rest is padding that is neither noised nor learnt (the published way),
whose visible tokens tell the model where the answer will end.

Legend: N samples, B rows of L tokens.
"""

from __future__ import annotations

import os
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unmask.errors import UnmaskError
from unmask.layout import PAD
from unmask.tasks import Problem, get_task
from unmask.training.recipes.base import IGNORE, Batch

Ints = NDArray[np.int64]
_SENTINEL = "QUESTION"
_OPEN_ROWS = 64
_CHUNK = 5_000


@dataclass(frozen=True, slots=True)
class Samples:
    """Encoded samples, end to end: sample n is tokens[starts[n] : starts[n + 1]], its prompt the first prompts[n]."""

    tokens: NDArray[np.int32]
    starts: Ints
    prompts: Ints

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def lengths(self) -> Ints:
        return np.diff(self.starts)

    @staticmethod
    def join(parts: Sequence[Samples]) -> Samples:
        tokens = np.concatenate([p.tokens for p in parts])
        lengths = np.concatenate([p.lengths for p in parts])
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Samples(tokens, starts, np.concatenate([p.prompts for p in parts]))


@dataclass(frozen=True, slots=True)
class Format:
    """How samples lie in rows.

    Args:
        length: tokens of a row (L).
        block: samples are padded to a multiple of it.
        pad_id: token of the padding.
        end_id: token that fills the last block where `fill_end`.
        fill_end: see the module docstring.
    """

    length: int
    block: int
    pad_id: int
    end_id: int
    fill_end: bool

    def __post_init__(self) -> None:
        if self.length % self.block:
            raise UnmaskError(f"row_tokens {self.length} is no multiple of the recipe's block {self.block}")


def load_samples(task: str, split: str, count: int, seed: int, tokenizer: Path, workers: int = 0) -> Samples:
    """Generates and encodes problems in several processes (0: one for each core, at most 16).

    Call it before anything touches a GPU: the processes are forked.
    """
    workers = workers or min(os.cpu_count() or 1, 16)
    encode = partial(_encode_range, task, split, seed, tokenizer, count)
    starts = range(0, count, _CHUNK)
    if workers == 1 or len(starts) == 1:
        return Samples.join([encode(start) for start in starts])
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        return Samples.join(list(pool.map(encode, starts)))


def _encode_range(task: str, split: str, seed: int, tokenizer: Path, count: int, start: int) -> Samples:
    from transformers import AutoTokenizer

    inner = AutoTokenizer.from_pretrained(tokenizer)
    problems = get_task(task).generate(split, min(_CHUNK, count - start), seed=seed, start=start)
    return encode_problems(inner, list(problems))


def encode_problems(tokenizer: Any, problems: Sequence[Problem]) -> Samples:
    """Prompt in the chat format, then the solution and the end token; encoded apart, as when decoding."""
    before, after = _chat_frame(tokenizer)
    prompts = _ids(tokenizer, [f"{before}{p.question}{after}" for p in problems])
    answers = _ids(tokenizer, [f"{p.solution}{tokenizer.eos_token}" for p in problems])
    flat = [token for prompt, answer in zip(prompts, answers) for token in (*prompt, *answer)]
    lengths = [len(prompt) + len(answer) for prompt, answer in zip(prompts, answers)]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Samples(np.array(flat, np.int32), starts, np.array([len(p) for p in prompts], np.int64))


def _chat_frame(tokenizer: Any) -> tuple[str, str]:
    """What the chat template puts before and behind a question. Rendering it once is 100 times faster."""
    messages = [{"role": "user", "content": _SENTINEL}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if text.count(_SENTINEL) != 1:
        raise UnmaskError("the tokenizer's chat template does not hold the question exactly once")
    before, after = text.split(_SENTINEL)
    return before, after


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def pack(lengths: Ints, row: int, seed: int, epoch: int) -> list[list[int]]:
    """Sample numbers of each row, in an order drawn for this epoch: best fit into a few open rows.

    Args:
        lengths: tokens each sample takes, padding included.
        row: tokens of a row.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (tokens left, row number), sorted
    smallest = int(lengths.min())
    for sample in order.tolist():
        length = int(lengths[sample])
        if length > row:
            raise UnmaskError(f"a sample of {length} tokens does not fit into rows of {row}; raise row_tokens")
        place = bisect_left(open_rows, (length, -1))
        if place == len(open_rows):
            if len(open_rows) == _OPEN_ROWS:
                open_rows.pop(0)
            rows.append([])
            left, number = row, len(rows) - 1
        else:
            left, number = open_rows.pop(place)
        rows[number].append(sample)
        if left - length >= smallest:
            insort(open_rows, (left - length, number))
    return rows


class Packed:
    """Endless steps of packed rows; step s holds the same rows however it is reached."""

    def __init__(self, samples: Samples, form: Format, rows_per_step: int, seed: int) -> None:
        self.samples, self.form, self.rows_per_step, self.seed = samples, form, rows_per_step, seed
        self.padded = -(-samples.lengths // form.block) * form.block

    def steps(self, first: int = 0) -> Iterator[tuple[int, list[list[int]]]]:
        """(epoch, rows) of step `first`, `first` + 1, ..., where a row is a list of sample numbers.

        Rows that do not fill a step at the end of an epoch are left out.
        """
        epoch, skipped = 0, 0
        while True:
            rows = pack(self.padded, self.form.length, self.seed, epoch)
            count = len(rows) // self.rows_per_step
            if not count:
                raise UnmaskError(f"{len(rows)} rows of data do not fill one step of {self.rows_per_step} rows")
            for index in range(max(first - skipped, 0), count):
                yield epoch, rows[index * self.rows_per_step : (index + 1) * self.rows_per_step]
            skipped += count
            epoch += 1

    def batch(self, rows: Sequence[Sequence[int]]) -> Batch:
        """The rows as tensors [B, L]."""
        return build_batch(self.samples, rows, self.form)


def build_batch(samples: Samples, rows: Sequence[Sequence[int]], form: Format) -> Batch:
    """Rows of samples as tensors [B, L]; places behind the last sample are padding (segment PAD, sample -1)."""
    shape = (len(rows), form.length)
    tokens = np.full(shape, form.pad_id, np.int64)
    labels = np.full(shape, IGNORE, np.int64)
    segment = np.full(shape, PAD, np.int64)
    positions = np.zeros(shape, np.int64)
    sample = np.full(shape, -1, np.int64)
    prompt, answer = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for r, row in enumerate(rows):
        at = 0
        for number, n in enumerate(row):
            ids = samples.tokens[samples.starts[n] : samples.starts[n + 1]]
            end = at + -(-len(ids) // form.block) * form.block
            if end > form.length:
                raise UnmaskError(f"samples of {end} tokens do not fit into rows of {form.length}")
            tokens[r, at : at + len(ids)] = ids
            labels[r, at + samples.prompts[n] : at + len(ids)] = ids[samples.prompts[n] :]
            if form.fill_end:
                tokens[r, at + len(ids) : end] = labels[r, at + len(ids) : end] = form.end_id
            segment[r, at:end], sample[r, at:end] = number, n
            positions[r, at:end] = np.arange(end - at)
            prompt[r, at:end] = samples.prompts[n]
            answer[r, at:end] = (labels[r, at:end] != IGNORE).sum()
            at = end
    return Batch(*(torch.from_numpy(x) for x in (tokens, labels, segment, positions, sample, prompt, answer)))
