"""The small language of the `wordmath` templates.

In a template `{a}` is a number, `{a:pen}` a number with its noun ("1 pen", "3 pens"), `{a:item}` the same
with a noun drawn for this problem, `{a:$}` money ("$12"), `{A}` a person, `{A.he}` a pronoun ({A.He} at the
start of a sentence), `{item}` the plural of a drawn noun, `{item:one}` its singular, `{item:an}` the singular
with its article, `{item:Many}` the plural with a capital.
A longer word that names nothing stands for itself, so that phrases take "{item}" and "{bags}" alike.
`[x|y]` is one of several wordings; choices may stand inside choices, and a side may be empty.
`facts // question` mostly puts the facts first and sometimes the question, which then names the people.
`<name argument ...>` is a phrase of `phrases.PHRASES`. Every sentence begins with a capital by itself.
"""

from __future__ import annotations

import re
from functools import cache
from random import Random

from unmask.tasks.wordmath.nouns import Noun, plural
from unmask.tasks.wordmath.people import Person
from unmask.tasks.wordmath.phrases import PHRASES

QUESTION_FIRST = 0.15


Context = dict[str, "int | Person | Noun"]

# A text with choices: plain text, or alternatives that are such texts again.
Pattern = tuple["str | tuple[Pattern, ...]", ...]

_PHRASE = re.compile(r"<([^<>]*)>")
_TOKEN = re.compile(r"[\[\]|]|[^\[\]|]+")
_PRONOUN = re.compile(r"\{([A-Z])(?:\.(\w+))?\}")
_SENTENCE = re.compile(r"[.?!] [a-z]")
_FIELD = re.compile(r"\{(\w+)(?:([.:])([^{}]+))?\}")


def expand(text: str) -> str:
    """Replaces every `<name argument ...>` by its phrase, until none is left."""
    while "<" in text:
        text = _PHRASE.sub(_phrase, text)
    return text


def _phrase(match: re.Match[str]) -> str:
    name, _, rest = match[1].partition(" ")
    text = PHRASES[name].replace("%*", rest)
    for number, argument in enumerate(rest.split(), 1):
        text = text.replace(f"%{number}", argument)
    assert "%" not in text, match[0]
    return text


@cache
def _parts(text: str) -> tuple[Pattern, ...]:
    return tuple(_compile(part) for part in text.split(" // "))


def _compile(text: str) -> Pattern:
    open_choices: list[list[list[str | tuple[Pattern, ...]]]] = [[[]]]
    for token in _TOKEN.findall(text):
        if token == "[":
            open_choices.append([[]])
        elif token == "|" and len(open_choices) > 1:
            open_choices[-1].append([])
        elif token == "]":
            choice = tuple(tuple(alternative) for alternative in open_choices.pop())
            open_choices[-1][-1].append(choice)
        else:
            open_choices[-1][-1].append(token)
    assert len(open_choices) == 1, text
    return tuple(open_choices[0][0])


def choose_wording(text: str, rng: Random) -> str:
    """Replaces every `[x|y]` by one of its wordings and puts facts and question in order."""
    parts = _parts(text)
    chosen: list[str] = []
    _choose(parts[0], rng, chosen)
    if len(parts) == 1:
        return "".join(chosen)
    facts, chosen = "".join(chosen), []
    _choose(parts[1], rng, chosen)
    question = "".join(chosen)
    if rng.random() < QUESTION_FIRST:
        return f"{_with_names(question)} {facts}"
    return f"{facts} {question}"


def _choose(pattern: Pattern, rng: Random, chosen: list[str]) -> None:
    for part in pattern:
        if isinstance(part, str):
            chosen.append(part)
        else:
            _choose(part[int(rng.random() * len(part))], rng, chosen)


def _with_names(text: str) -> str:
    seen: set[str] = set()

    def name(match: re.Match[str]) -> str:
        if match[1] in seen:
            return match[0]
        seen.add(match[1])
        return f"{{{match[1]}}}'s" if match[2] in ("his", "His") else f"{{{match[1]}}}"

    return _PRONOUN.sub(name, text)


def capitals(text: str) -> str:
    """The text with a capital at the start of every sentence."""
    return _SENTENCE.sub(lambda match: match[0].upper(), text[0].upper() + text[1:])


def fill(text: str, context: Context) -> str:
    """Replaces every `{...}` field (see the module docstring)."""
    return _FIELD.sub(lambda match: _field(_value(match[1], context), match[3] or "", context), text)


def _value(name: str, context: Context) -> int | Person | Noun | str:
    return name if len(name) > 1 and name not in context else context[name]


def _field(value: int | Person | Noun | str, spec: str, context: Context) -> str:
    if isinstance(value, int):
        return _number(value, spec, context)
    if isinstance(value, Person):
        return value.form(spec)
    if isinstance(value, str):
        return value
    if spec == "an":
        return f"{'an' if value.one[0] in 'aeiou' else 'a'} {value.one}"
    if spec == "one":
        return value.one
    return plural(value.one).capitalize() if spec == "Many" else plural(value.one)


def _number(value: int, spec: str, context: Context) -> str:
    if spec == "$":
        return f"${value}"
    return f"{value} {noun(spec, context).count(value)}" if spec else str(value)


def noun(word: str, context: Context) -> Noun:
    """The noun drawn under this name, else the word itself."""
    drawn = context.get(word)
    return drawn if isinstance(drawn, Noun) else Noun(word)
