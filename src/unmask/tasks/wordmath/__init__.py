"""`wordmath`: grade-school word problems with step-by-step solutions and a whole-number answer, by program.

About 75 situations in hundreds of wordings each, two to five steps, all numbers between 1 and 9999. Made for
training small models and for measuring how answers suffer when tokens are decoded in parallel: every answer
can be checked.

    from unmask.tasks import get_task
    for problem in get_task("wordmath").generate("test", 3):
        print(problem.question, problem.solution, problem.answer, sep="\\n")

Splits are disjoint by construction: the checksum of the question text says to which split it belongs, and a
problem drawn for another split is drawn again. Besides, some wordings and whole situations (`HELD_OUT`) never
occur in training; about 2 % of the validation and test problems are of that kind, and all of the split
"unseen", which measures how far a model carries to new wordings. Draws depend on (split, seed, index) alone,
and are the same for every Python version.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

from unmask.tasks import base
from unmask.tasks.base import Split, check_split, pick, split_of
from unmask.tasks.wordmath import measures, money, plain, things, wordings_measures, wordings_money, wordings_things
from unmask.tasks.wordmath.template import Template

_MORE = wordings_money.MORE | wordings_things.MORE | wordings_measures.MORE

TEMPLATES: tuple[Template, ...] = (
    tuple(
        replace(t, wordings=t.wordings + _MORE[t.name]) for t in money.TEMPLATES + things.TEMPLATES + measures.TEMPLATES
    )
    + plain.TEMPLATES
)
HELD_OUT: tuple[Template, ...] = money.HELD_OUT + things.HELD_OUT + measures.HELD_OUT
HELD_OUT_SHARE = {"train": 0.0, "validation": 0.02, "test": 0.02, "unseen": 1.0}

_HELD_OUT_WORDINGS = tuple((t, w) for t in TEMPLATES for w in t.held) + tuple(
    (t, w) for t in HELD_OUT for w in t.wordings
)
_ANSWER = re.compile(r"####\s*(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem(base.Problem):
    """A word problem with its worked solution; the kind is the situation's name.

    `held_out` marks wordings and situations that training never shows.
    """

    answer: int
    """The final number."""
    steps: int
    """Lines of the solution before the last one."""


def generate(split: Split, count: int, seed: int = 0, start: int = 0) -> Iterator[Problem]:
    """Problems number start .. start + count - 1 of the endless list that (split, seed) names."""
    check_split(split)
    return (_problem(split, seed, index) for index in range(start, start + count))


def extract_answer(text: str) -> int | None:
    """The number behind the first "####", or None where the text has none."""
    match = _ANSWER.search(text)
    return int(match[1]) if match else None


def check(problem: Problem, text: str) -> bool:
    """Whether the text ends in the right answer."""
    return extract_answer(text) == problem.answer


def _problem(split: Split, seed: int, index: int) -> Problem:
    rng = Random(f"wordmath {split} {seed} {index}")
    while True:
        problem = _draw(rng, HELD_OUT_SHARE[split])
        if split == "unseen" or split_of(problem.question) == split:
            return problem


def _draw(rng: Random, held_out_share: float) -> Problem:
    held_out = held_out_share > 0 and rng.random() < held_out_share
    if held_out:
        template, wording = pick(rng, _HELD_OUT_WORDINGS)
    else:
        template = pick(rng, TEMPLATES)
        wording = pick(rng, template.wordings)
    context = template.context(rng)
    question = template.question(wording, context, rng)
    answer = template.answer(context)
    return Problem(
        question=question,
        solution=template.solution(context),
        answer=answer,
        kind=template.name,
        held_out=held_out,
        steps=len(template.steps),
    )
