"""Tasks made by program, with answers that can be checked: training data, and a measure of quality.

get_task("wordmath").generate("test", 100) gives problems; .check(problem, text) says whether a text answers
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from unmask.errors import unknown
from unmask.tasks import wordmath
from unmask.tasks.wordmath import Problem

__all__ = ["TASKS", "Problem", "Task", "get_task"]


@dataclass(frozen=True, slots=True)
class Task:
    """A generator of problems and the checker of their answers.

    The calls are `generate(split, count, seed=0, start=0)`, `extract_answer(text)`, `check(problem, text)`:
    see `unmask.tasks.wordmath`.
    """

    name: str
    generate: Callable[..., Iterator[Problem]]
    extract_answer: Callable[[str], int | None]
    check: Callable[[Problem, str], bool]


TASKS = {"wordmath": Task("wordmath", wordmath.generate, wordmath.extract_answer, wordmath.check)}


def get_task(name: str) -> Task:
    """The task of this name; an unknown one raises `UnmaskError` with the nearest name."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]
