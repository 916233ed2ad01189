"""Encoded samples, and what becomes of those that do not fit: the step between sources and packing.

Legend: N samples, T tokens of all of them together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.training.config import TooLong
    from unmask.training.packing import Format

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples end to end: sample n is tokens[starts[n] : starts[n + 1]], its prompt the first prompts[n] of them.

    Args:
        tokens: [T] int32. All behind a prompt is to be learnt.
        starts: [N + 1].
        prompts: [N].
        drafts: [T] int32, of data made of trajectories: the noisy token of each place, in prompts the clean one.
        rows: [N], number of the row of the data that each sample was made of, from 1.
        dropped, cut: how many samples were left out, or shortened, because they did not fit.
    """

    tokens: NDArray[np.int32]
    starts: Ints
    prompts: Ints
    drafts: NDArray[np.int32] | None = None
    rows: Ints | None = None
    dropped: int = 0
    cut: int = 0

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def lengths(self) -> Ints:
        return np.diff(self.starts)

    @property
    def answers(self) -> Ints:
        """Tokens behind each prompt, [N]."""
        return self.lengths - self.prompts

    @staticmethod
    def of(pairs: Iterable[tuple[Sequence[int], Sequence[int]]], rows: Sequence[int] | None = None) -> Samples:
        """From (prompt, answer) token ids of each sample."""
        listed = list(pairs)
        flat = [token for prompt, answer in listed for token in (*prompt, *answer)]
        starts = np.cumsum([0, *(len(prompt) + len(answer) for prompt, answer in listed)], dtype=np.int64)
        prompts = np.array([len(prompt) for prompt, _ in listed], np.int64)
        numbers = None if rows is None else np.array(rows, np.int64)
        return Samples(np.array(flat, np.int32), starts, prompts, rows=numbers)

    @staticmethod
    def join(parts: Sequence[Samples]) -> Samples:
        """All samples of the parts, in order; either all parts have drafts and row numbers, or none is kept."""
        starts = np.concatenate([[0], np.cumsum(np.concatenate([p.lengths for p in parts]))]).astype(np.int64)
        drafts = [p.drafts for p in parts if p.drafts is not None]
        rows = [p.rows for p in parts if p.rows is not None]
        return Samples(
            np.concatenate([p.tokens for p in parts]),
            starts,
            np.concatenate([p.prompts for p in parts]),
            np.concatenate(drafts) if len(drafts) == len(parts) else None,
            np.concatenate(rows) if len(rows) == len(parts) else None,
            sum(p.dropped for p in parts),
            sum(p.cut for p in parts),
        )

    def shortened(self, lengths: Ints) -> Samples:
        """The first tokens of each sample, as many as `lengths` [N] says; those of 0 tokens are left out."""
        kept = lengths > 0
        place = np.arange(len(self.tokens)) - np.repeat(self.starts[:-1], self.lengths)
        inside = place < np.repeat(lengths, self.lengths)
        return replace(
            self,
            tokens=self.tokens[inside],
            starts=np.concatenate([[0], np.cumsum(lengths[kept])]).astype(np.int64),
            prompts=self.prompts[kept],
            drafts=None if self.drafts is None else self.drafts[inside],
            rows=None if self.rows is None else self.rows[kept],
        )


def fit(samples: Samples, form: Format, source: str, too_long: TooLong = "refuse") -> Samples:
    """The samples that a format can hold.

    Args:
        source: what the samples come from, for the message.
        too_long: what becomes of a sample that is too long: an error, left out, or the end of its answer cut off (one
            whose prompt leaves no room for an answer is left out then).

    Raises:
        UnmaskError: a sample without an answer, or one that is too long under "refuse".
    """
    empty = np.flatnonzero(samples.answers < 1)
    if len(empty):
        raise UnmaskError(f"{_row(samples, source, int(empty[0]))} has no answer to learn")
    room = form.room(samples.prompts)
    long = np.flatnonzero(samples.answers > room)
    if not len(long):
        return samples
    if too_long == "refuse":
        raise _too_long(samples, form, source, long)
    kept = room >= 1 if too_long == "cut" else samples.answers <= room
    lengths = np.where(kept, samples.prompts + np.minimum(samples.answers, room), 0)
    lost = int((~kept).sum())
    fitting = samples.shortened(lengths)
    return replace(fitting, dropped=samples.dropped + lost, cut=samples.cut + len(long) - lost)


def _too_long(samples: Samples, form: Format, source: str, long: Ints) -> UnmaskError:
    """Names the first sample that is too long, and how many are."""
    worst = int(long[0])
    prompt, answer = int(samples.prompts[worst]), int(samples.answers[worst])
    if form.answer_tokens and answer > form.answer_tokens:
        name, longest = "answer_tokens", int(samples.answers.max())
        what = f"has an answer of {answer} tokens (the longest has {longest}), answer_tokens is {form.answer_tokens}"
    else:
        limit, name = form.limit
        what = f"takes {form.padded(prompt, answer)} tokens with its padding, {name} is {limit}"
    share = f"{len(long)} of {len(samples)} samples are too long"
    return UnmaskError(f"{_row(samples, source, worst)} {what}; {share}: raise {name}, or set too_long to drop or cut")


def _row(samples: Samples, source: str, n: int) -> str:
    number = n + 1 if samples.rows is None else int(samples.rows[n])
    return f"row {number} of {source}"
