"""What all tasks share: a problem, the task behind a name, the split a text belongs to, draws that never change."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, TypeVar, get_args

from unmask.errors import unknown

Split = Literal["train", "validation", "test", "unseen"]
SPLITS: tuple[Split, ...] = get_args(Split)
Answer = int | tuple[str, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Problem:
    """A question and one right solution.

    Args:
        question: the prompt.
        solution: a text that answers it; what training shows.
        answer: what `Task.extract_answer` finds in the solution.
        kind: the sort of problem, by which accuracies are told apart.
        held_out: training never shows this wording or sort.
    """

    question: str
    solution: str
    answer: Answer
    kind: str
    held_out: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """A generator of problems and the checker of their answers.

    Args:
        name: as it is asked for.
        generate: (split, count, seed=0, start=0) -> problems number start .. start + count - 1 of the endless list
            that (split, seed) names. Splits share no problem.
        extract_answer: the answer that a text gives, None if it gives none.
        check: whether a text answers a problem; every right answer passes, not the solution alone.
    """

    name: str
    generate: Callable[..., Iterator[Any]]
    extract_answer: Callable[[str], Answer | None]
    check: Callable[[Any, str], bool]


def split_of(text: str) -> Split:
    """The one split in which this text may appear: 90 % train, 5 % validation, 5 % test."""
    bucket = zlib.crc32(text.encode()) % 20
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def check_split(split: str) -> Split:
    """The split of this name; one that does not exist raises `UnmaskError` with the nearest."""
    for known in SPLITS:
        if known == split:
            return known
    raise unknown("split", split, SPLITS)


def pick(rng: Random, options: tuple[T, ...]) -> T:
    """One of the options. Uses `random()` alone, whose values never change between Python versions."""
    return options[int(rng.random() * len(options))]


def between(rng: Random, low: int, high: int) -> int:
    """A whole number from low to high, both included."""
    return low + int(rng.random() * (high - low + 1))


def shuffled(rng: Random, items: tuple[T, ...]) -> tuple[T, ...]:
    """The items in an order drawn uniformly from all orders."""
    order = list(items)
    for last in range(len(order) - 1, 0, -1):
        other = between(rng, 0, last)
        order[last], order[other] = order[other], order[last]
    return tuple(order)
