"""Samples into rows: filled up and padded to whole blocks, then packed with little waste.

A block-diffusion model must also learn what stands behind the end token: when decoding, the rest of the last block is
masks. `fill_end` therefore fills that rest with the end token and supervises it, so that training sees what decoding
will see; `answer_tokens` fills every answer up to one length (D2F, dParallel, LLaDA), `extra_ends` adds a few end
tokens to each (WeDLM). Without them the rest is padding that is neither noised nor learnt (the published way of
Fast-dLLM v2), whose visible tokens tell the model where the answer will end.

Legend: N samples, B rows of L tokens.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from unmask.errors import UnmaskError
from unmask.layout import PAD
from unmask.training.recipes.base import IGNORE, Batch
from unmask.training.samples import Ints, Samples

_OPEN_ROWS = 64


@dataclass(frozen=True, slots=True)
class Format:
    """How samples lie in rows.

    Args:
        length: tokens of a row (L).
        block: samples, or answers where `anchored`, are padded to a multiple of it.
        pad_id: token of the padding.
        end_id: token that fills; None where there is none.
        fill_end: fill the last block with supervised end tokens.
        anchored: blocks are counted from the end of the prompt.
        answer_tokens: above 0, every answer is filled to this many tokens with supervised end tokens.
        extra_ends: supervised end tokens put behind each answer's own.
        context: above 0, the most tokens of a sample, its padding included.
    """

    length: int
    block: int
    pad_id: int
    end_id: int | None
    fill_end: bool
    anchored: bool = False
    answer_tokens: int = 0
    extra_ends: int = 0
    context: int = 0

    def __post_init__(self) -> None:
        if not self.anchored and self.length % self.block:
            raise UnmaskError(f"row_tokens {self.length} is no multiple of the recipe's block {self.block}")
        for name, value in (("answer_tokens", self.answer_tokens), ("extra_ends", self.extra_ends)):
            if value < 0:
                raise UnmaskError(f"{name} must be at least 0, got {value}")
        if self.answer_tokens and self.extra_ends:
            raise UnmaskError("answer_tokens already ends answers with end tokens; leave out extra_ends")
        if self.end_id is None and (self.fill_end or self.answer_tokens or self.extra_ends):
            raise UnmaskError("there is no end token to fill with; leave out fill_end, answer_tokens and extra_ends")

    @property
    def limit(self) -> tuple[int, str]:
        """The most tokens of a sample with its padding, and what sets that limit."""
        if 0 < self.context < self.length:
            return self.context, "the model's context"
        return self.length, "row_tokens"

    def filled(self, answer: Any) -> Any:
        """Labels of an answer of so many tokens (a number or an array): its own and end tokens, before padding."""
        return np.maximum(answer + self.extra_ends, self.answer_tokens)

    def padded(self, prompt: Any, answer: Any) -> Any:
        """Tokens that a sample takes in a row, from those of its prompt and answer (numbers or arrays)."""
        if self.anchored:
            return prompt + -(-self.filled(answer) // self.block) * self.block
        return -(-(prompt + self.filled(answer)) // self.block) * self.block

    def room(self, prompts: Ints) -> Ints:
        """The most tokens of an answer behind prompts of so many tokens, [N]; below 1: none fits."""
        limit = self.limit[0]
        if self.anchored:
            whole: Ints = (limit - prompts) // self.block * self.block
        else:
            whole = limit // self.block * self.block - prompts
        if not self.answer_tokens:
            return whole - self.extra_ends
        return np.where(whole >= self.answer_tokens, self.answer_tokens, 0)


def pack(lengths: Ints, row: int, seed: int, epoch: int) -> list[list[int]]:
    """Sample numbers of each row, in an order drawn for this epoch: best fit into a few open rows.

    Args:
        lengths: tokens each sample takes, padding included.
        row: tokens of a row.
    """
    if not len(lengths):
        raise UnmaskError("there are no samples")
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
        self.padded: Ints = form.padded(samples.prompts, samples.answers)

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
    drafts = None if samples.drafts is None else np.full(shape, form.pad_id, np.int64)
    filler = form.pad_id if form.end_id is None else form.end_id
    for r, row in enumerate(rows):
        at = 0
        for number, n in enumerate(row):
            source = slice(int(samples.starts[n]), int(samples.starts[n + 1]))
            ids, first = samples.tokens[source], int(samples.prompts[n])
            end = at + int(form.padded(first, len(ids) - first))
            if end > form.length:
                raise UnmaskError(f"samples of {end} tokens do not fit into rows of {form.length}")
            text = at + len(ids)
            last = end if form.fill_end else at + first + int(form.filled(len(ids) - first))
            tokens[r, at:text] = ids
            tokens[r, text:last] = filler
            labels[r, at + first : last] = tokens[r, at + first : last]
            if drafts is not None and samples.drafts is not None:
                drafts[r, at:end] = tokens[r, at:end]
                drafts[r, at:text] = samples.drafts[source]
            segment[r, at:end], sample[r, at:end] = number, n
            positions[r, at:end] = np.arange(end - at)
            prompt[r, at:end], answer[r, at:end] = first, last - at - first
            at = end
    arrays = (tokens, labels, segment, positions, sample, prompt, answer)
    return Batch(*(torch.from_numpy(x) for x in arrays), drafts=None if drafts is None else torch.from_numpy(drafts))
