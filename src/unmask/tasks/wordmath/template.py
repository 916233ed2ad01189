"""One situation of `wordmath`: which numbers it needs, how it may be worded, and the steps that solve it.

Numbers are drawn in the order written, in a small language:

    a=2..9          a whole number from 2 to 9
    a=5*2..9        the same, times 5 (10, 15, ... 45)
    a=k*2..9        the same, times a number drawn before
    a=s+t, a=s-t    from numbers drawn before (used to make divisions exact)

A step is "result = left operator right | unit | label" and becomes the line "label: 3 * 4 = 12 units."
Draws whose numbers break a rule (an inexact division, a result outside 1..9999) are drawn again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from random import Random

from unmask.tasks.base import between, pick
from unmask.tasks.wordmath.grammar import Context, capitals, choose_wording, expand, fill, noun
from unmask.tasks.wordmath.nouns import POOLS
from unmask.tasks.wordmath.people import PEOPLE

LARGEST = 9999
_DRAW = re.compile(r"(?:(\w+)\*)?(\d+)\.\.(\d+)")
_SUM = re.compile(r"(\w+)([+-])(\w+)")
_PERSON = re.compile(r"\{([A-Z])[.}]")


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a solution: result = left operator right, in a unit, under a label."""

    result: str
    left: str
    operator: str
    right: str
    unit: str
    label: str

    @staticmethod
    def parse(text: str) -> Step:
        equation, unit, label = (part.strip() for part in text.split("|"))
        result, _, left, operator, right = equation.split()
        return Step(result, left, operator, right, unit, label)

    def line(self, context: Context) -> str:
        """The step in words and numbers."""
        result = value_of(self.result, context)
        left, right = value_of(self.left, context), value_of(self.right, context)
        unit = noun(self.unit, context).count(result)
        return f"{fill(self.label, context)}: {left} {self.operator} {right} = {result} {unit}."


@dataclass(frozen=True)
class Template:
    """A situation with its wordings.

    Args:
        name: unique, for statistics.
        numbers: the draws, in the language of the module docstring.
        wordings: questions used in every split.
        steps: the solution, 2 to 5 lines.
        nouns: drawn nouns, "item=fruit other=fruit" (distinct where the pool is the same).
        held: wordings that only validation and test use.
    """

    name: str
    numbers: str
    wordings: tuple[str, ...]
    steps: tuple[str, ...]
    nouns: str = ""
    held: tuple[str, ...] = ()
    parsed: tuple[Step, ...] = field(init=False, default=())
    draws: tuple[tuple[str, str], ...] = field(init=False, default=())
    pools: tuple[tuple[str, str], ...] = field(init=False, default=())
    people: tuple[str, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        assert 2 <= len(self.steps) <= 5, self.name
        object.__setattr__(self, "wordings", tuple(expand(w) for w in self.wordings))
        people = sorted({p for text in (*self.wordings, *self.held, *self.steps) for p in _PERSON.findall(text)})
        object.__setattr__(self, "parsed", tuple(Step.parse(s) for s in self.steps))
        object.__setattr__(self, "draws", _pairs(self.numbers))
        object.__setattr__(self, "pools", _pairs(self.nouns))
        object.__setattr__(self, "people", tuple(people))

    def context(self, rng: Random) -> Context:
        """Draws numbers until every step is exact and in range, then people and nouns."""
        numbers: dict[str, int] | None = None
        while numbers is None:
            numbers = self._numbers(rng)
        context: Context = dict(numbers)
        for name in self.people:
            person = pick(rng, PEOPLE)
            while person in context.values():
                person = pick(rng, PEOPLE)
            context[name] = person
        for name, pool in self.pools:
            taken = list(context.values())
            context[name] = pick(rng, tuple(n for n in POOLS[pool] if n not in taken))
        return context

    def _numbers(self, rng: Random) -> dict[str, int] | None:
        values: dict[str, int] = {}
        for name, how in self.draws:
            values[name] = _draw(how, values, rng)
        if any(v < 1 or v > LARGEST for v in values.values()):
            return None
        for step in self.parsed:
            result = _solve(step, values)
            if result is None:
                return None
            values[step.result] = result
        return values

    def question(self, wording: str, context: Context, rng: Random) -> str:
        """The wording with its choices made and its fields filled."""
        return capitals(fill(choose_wording(wording, rng), context))

    def solution(self, context: Context) -> str:
        lines = [step.line(context) for step in self.parsed]
        return "\n".join([*lines, f"#### {self.answer(context)}"])

    def answer(self, context: Context) -> int:
        return value_of(self.parsed[-1].result, context)


def value_of(name: str, context: Context) -> int:
    """The number under this name; digits stand for themselves."""
    if name.isdigit():
        return int(name)
    value = context[name]
    assert isinstance(value, int), name
    return value


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, how) for name, _, how in (part.partition("=") for part in text.split()))


def _draw(how: str, values: dict[str, int], rng: Random) -> int:
    if match := _DRAW.fullmatch(how):
        factor = match[1]
        times = 1 if factor is None else int(factor) if factor.isdigit() else values[factor]
        return times * between(rng, int(match[2]), int(match[3]))
    match = _SUM.fullmatch(how)
    assert match is not None, how
    left, right = values[match[1]], values[match[3]]
    return left + right if match[2] == "+" else left - right


def _solve(step: Step, values: dict[str, int]) -> int | None:
    left, right = (int(x) if x.isdigit() else values[x] for x in (step.left, step.right))
    if step.operator == "/" and left % right:
        return None
    result = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[step.operator]
    return result if 1 <= result <= LARGEST else None
