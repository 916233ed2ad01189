"""`lists`: short lists of names to copy, turn around, sort, shuffle, or change at one place.

    from unmask.tasks import get_task
    for problem in get_task("lists").generate("test", 3):
        print(problem.question, problem.solution, sep="\\n")

In the spirit of ParallelBench (arXiv 2510.04767; github.com/furiosa-ai/ParallelBench), with wordings and checks of our
own: every problem is trivial token by token, and some break where tokens are decided without knowing of each other.
Where one answer is right ("copy", "reverse", "sort", and changes at a given place) all places may be filled at once.
Where many are ("shuffle", and changes at any place) each place alone has several good tokens, but only those that fit
together make an answer: filled at once they name somebody twice, or change two places or none. The solution is then
drawn uniformly from the right answers, and any right answer is accepted.

Splits are disjoint by the list itself: a list of names belongs to one split whatever is asked of it. The split
"unseen" asks in wordings that training never shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from random import Random

from unmask.tasks import base
from unmask.tasks.base import Split, Task, between, check_split, pick, shuffled, split_of
from unmask.tasks.wordmath.people import PEOPLE

NAMES = tuple(p.name for p in PEOPLE)
SIZES = (3, 8)
"""Fewest and most names of a list."""
ENDING = "Answer with the list alone, separated by commas."
List = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem(base.Problem):
    """A list and what is to be done with it.

    Args:
        items: the list, distinct names.
        place: 1 is the first; what the question names or, where any place is right, what the solution chose.
        word: the name to put in; it is not in the list.
    """

    answer: List
    items: List
    place: int
    word: str


@dataclass(frozen=True, slots=True)
class Kind:
    """A sort of problem.

    Args:
        wordings: of the question, with {items}, {place} and {word}; the last one is held out.
        solve: an answer from (list, place, word, random numbers).
        right: whether an answer is right; None: only the solution is.
    """

    wordings: tuple[str, ...]
    solve: Callable[[List, int, str, Random], List]
    right: Callable[[Problem, List], bool] | None = None


def inserted(items: List, place: int, word: str) -> List:
    return (*items[: place - 1], word, *items[place - 1 :])


def removed(items: List, place: int) -> List:
    return (*items[: place - 1], *items[place:])


def replaced(items: List, place: int, word: str) -> List:
    return (*items[: place - 1], word, *items[place:])


def _other_order(items: List, rng: Random) -> List:
    order = shuffled(rng, items)
    while order == items:
        order = shuffled(rng, items)
    return order


def _is_shuffled(problem: Problem, found: List) -> bool:
    return sorted(found) == sorted(problem.items) and found != problem.items


def _has_one_more(problem: Problem, found: List) -> bool:
    return found.count(problem.word) == 1 and tuple(n for n in found if n != problem.word) == problem.items


def _lacks_one(problem: Problem, found: List) -> bool:
    return any(found == removed(problem.items, place) for place in range(1, len(problem.items) + 1))


def _has_one_other(problem: Problem, found: List) -> bool:
    items, word = problem.items, problem.word
    return any(found == replaced(items, place, word) for place in range(1, len(items) + 1))


KINDS: dict[str, Kind] = {
    "copy": Kind(
        ("Copy this list: {items}.", "Write this list again: {items}.", "Repeat these names in order: {items}."),
        lambda items, place, word, rng: items,
    ),
    "reverse": Kind(
        ("Reverse this list: {items}.", "Turn this list around: {items}.", "Write these names backwards: {items}."),
        lambda items, place, word, rng: items[::-1],
    ),
    "sort": Kind(
        (
            "Sort this list: {items}.",
            "Put these names in the order of the alphabet: {items}.",
            "Sort from A to Z: {items}.",
        ),
        lambda items, place, word, rng: tuple(sorted(items)),
    ),
    "shuffle": Kind(
        ("Shuffle this list: {items}.", "Put these names in any other order: {items}.", "Mix these names up: {items}."),
        lambda items, place, word, rng: _other_order(items, rng),
        _is_shuffled,
    ),
    "insert": Kind(
        (
            "Insert {word} as name {place} into this list: {items}.",
            "Put {word} at place {place} of this list: {items}.",
            "Make {word} number {place} of this list: {items}.",
        ),
        lambda items, place, word, rng: inserted(items, place, word),
    ),
    "insert-any": Kind(
        (
            "Insert {word} anywhere into this list: {items}.",
            "Put {word} at any place of this list: {items}.",
            "Let {word} join this list wherever you like: {items}.",
        ),
        lambda items, place, word, rng: inserted(items, place, word),
        _has_one_more,
    ),
    "remove": Kind(
        (
            "Remove name {place} from this list: {items}.",
            "Take place {place} out of this list: {items}.",
            "Leave number {place} out of this list: {items}.",
        ),
        lambda items, place, word, rng: removed(items, place),
    ),
    "remove-any": Kind(
        (
            "Remove any one name from this list: {items}.",
            "Take one name of your choice out of this list: {items}.",
            "Leave out whom you like, but one alone: {items}.",
        ),
        lambda items, place, word, rng: removed(items, place),
        _lacks_one,
    ),
    "replace": Kind(
        (
            "Replace name {place} of this list by {word}: {items}.",
            "Put {word} instead of place {place} of this list: {items}.",
            "Swap number {place} of this list for {word}: {items}.",
        ),
        lambda items, place, word, rng: replaced(items, place, word),
    ),
    "replace-any": Kind(
        (
            "Replace any one name of this list by {word}: {items}.",
            "Put {word} instead of one name of your choice: {items}.",
            "Swap whom you like, but one alone, for {word}: {items}.",
        ),
        lambda items, place, word, rng: replaced(items, place, word),
        _has_one_other,
    ),
}


def task(name: str, kinds: tuple[str, ...] | dict[str, Kind]) -> Task:
    """The task that draws from these kinds, each equally likely."""
    return Task(name, partial(generate, tuple(kinds)), extract_answer, check)


def generate(kinds: tuple[str, ...], split: Split, count: int, seed: int = 0, start: int = 0) -> Iterator[Problem]:
    """Problems number start .. start + count - 1 of the endless list that (kinds, split, seed) names."""
    check_split(split)
    return (_problem(kinds, split, seed, index) for index in range(start, start + count))


def extract_answer(text: str) -> List | None:
    """The names on the last line that is not empty, or None where it is no list of names."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    names = [part.strip(" \"'`*.") for part in lines[-1].strip("[]() .").split(",")] if lines else []
    return tuple(names) if names and all(name.isalpha() for name in names) else None


def check(problem: Problem, text: str) -> bool:
    """Whether the text gives a right answer, the solution or another one."""
    found, kind = extract_answer(text), KINDS[problem.kind]
    if found is None or kind.right is None:
        return found == problem.answer
    return kind.right(problem, found)


def _problem(kinds: tuple[str, ...], split: Split, seed: int, index: int) -> Problem:
    rng = Random(f"lists {' '.join(kinds)} {split} {seed} {index}")
    while True:
        name = pick(rng, kinds)
        names = _distinct(rng, between(rng, *SIZES) + 1)
        *listed, word = names
        if split in ("unseen", split_of(", ".join(listed))):
            return _asked(name, tuple(listed), word, rng, unseen=split == "unseen")


def _distinct(rng: Random, count: int) -> List:
    names: list[str] = []
    while len(names) < count:
        name = pick(rng, NAMES)
        if name not in names:
            names.append(name)
    return tuple(names)


def _asked(name: str, items: List, word: str, rng: Random, *, unseen: bool) -> Problem:
    kind = KINDS[name]
    place = between(rng, 1, len(items) + name.startswith("insert"))
    wording = kind.wordings[-1] if unseen else pick(rng, kind.wordings[:-1])
    question = wording.format(items=", ".join(items), place=place, word=word)
    answer = kind.solve(items, place, word, rng)
    return Problem(
        question=f"{question} {ENDING}",
        solution=", ".join(answer),
        answer=answer,
        kind=name,
        held_out=unseen,
        items=items,
        place=place,
        word=word,
    )
