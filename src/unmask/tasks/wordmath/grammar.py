"""Words of the `wordmath` problems: names with pronouns, nouns with plurals, a small template language.

In a template `{a}` is a number, `{a:pen}` a number with its noun ("1 pen", "3 pens"), `{a:item}` the same
with a noun drawn for this problem, `{a:$}` money ("$12"), `{A}` a person, `{A.he}` a pronoun ({A.He} at the
start of a sentence), `{item}` the plural of a drawn noun, `{item:one}` its singular, `{item:an}` the singular
with its article, `{item:Many}` the plural with a capital.
`[x|y]` is one of several wordings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random
from typing import TypeVar

T = TypeVar("T")


def pick(rng: Random, options: tuple[T, ...]) -> T:
    """One of the options. Uses `random()` alone, whose values never change between Python versions."""
    return options[int(rng.random() * len(options))]


def between(rng: Random, low: int, high: int) -> int:
    """A whole number from low to high, both included."""
    return low + int(rng.random() * (high - low + 1))


@dataclass(frozen=True, slots=True)
class Person:
    """A name with its pronouns: "he" or "she", "his" or "her", "him" or "her"."""

    name: str
    he: str
    his: str
    him: str

    def form(self, spec: str) -> str:
        """The name (empty spec) or a pronoun; a capital in the spec gives a capital."""
        forms = {"": self.name, "he": self.he, "his": self.his, "him": self.him}
        forms |= {"He": self.he.capitalize(), "His": self.his.capitalize()}
        return forms[spec]


@dataclass(frozen=True, slots=True)
class Noun:
    """A countable noun, kept in the singular."""

    one: str

    def count(self, number: int) -> str:
        """The noun as it stands behind a number."""
        return self.one if number == 1 else plural(self.one)


IRREGULAR = {
    "child": "children",
    "loaf": "loaves",
    "shelf": "shelves",
    "goose": "geese",
    "tomato": "tomatoes",
    "potato": "potatoes",
    "fish": "fish",
    "sheep": "sheep",
    "foot": "feet",
    "person": "people",
}


def plural(noun: str) -> str:
    """The plural of a noun; of several words the last one changes ("apple tree" -> "apple trees")."""
    head, _, last = noun.rpartition(" ")
    if last in IRREGULAR:
        last = IRREGULAR[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return f"{head} {last}" if head else last


_FEMALE = (
    "Mia Anna Lena Sofia Clara Emma Nora Ruth Ida Eva Lucy Maya Zoe Alice Grace Hannah Julia Kate Laura "
    "Maria Nina Olivia Priya Rosa Sara Tara Vera Wendy Yuki Amina Bella Carmen Diana Elena Fatima Greta Helen "
    "Ingrid Jane Karin"
)
_MALE = (
    "Tom Ben Paul Leo Max Jack Adam Omar Ivan Karl Noah Peter Ravi Sam Victor Ali Bruno Carlo Daniel Erik "
    "Felix George Hugo Ian Jonah Kevin Liam Martin Nico Oscar Pablo Quentin Robert Simon Theo Umar "
    "Walter Yusuf Arthur Diego"
)
PEOPLE = tuple(Person(n, "she", "her", "her") for n in _FEMALE.split()) + tuple(
    Person(n, "he", "his", "him") for n in _MALE.split()
)

POOLS: dict[str, tuple[Noun, ...]] = {
    name: tuple(Noun(word.strip()) for word in words.split(","))
    for name, words in {
        "stationery": "pen, pencil, notebook, ruler, eraser, marker, folder, brush, envelope, crayon",
        "clothes": "shirt, hat, jacket, sweater, belt, skirt, cap, tie, dress",
        "fruit": "apple, pear, orange, peach, plum, lemon, mango, melon, banana, fig",
        "vegetable": "carrot, cucumber, tomato, potato, onion, pumpkin, cabbage, turnip, leek, pepper",
        "toy": "marble, sticker, toy car, card, stamp, shell, coin, bead, button, badge",
        "sweet": "candy, cookie, toffee, chocolate, muffin, cupcake, biscuit, lollipop, brownie, caramel",
        "baked": "cookie, muffin, cupcake, biscuit, brownie, scone, pretzel, bun",
        "bread": "roll, bagel, loaf, bun, pretzel, croissant, pie, scone",
        "flower": "rose, tulip, daisy, lily, orchid, sunflower, violet, carnation",
        "tree": "apple tree, pear tree, cherry tree, plum tree, olive tree, lemon tree, fig tree",
        "animal": "cow, goat, sheep, horse, pig, donkey",
        "bird": "hen, duck, goose, turkey",
        "pet": "fish, turtle, rabbit, parrot, hamster, canary, frog",
        "box": "box, bag, crate, basket, carton, pack",
        "goal": "bicycle, guitar, camera, tent, tablet, drum, telescope, skateboard, piano keyboard, kayak",
        "machine": "machine, robot, printer, press",
        "made": "toy, bottle, bolt, cup, chair, lamp, plate, tile, spoon, clock",
        "book": "book, comic, magazine, atlas, novel, diary",
        "vehicle": "car, van, truck, motorbike",
        "game": "game, book, puzzle, model kit, kite, ball",
    }.items()
}

Context = dict[str, "int | Person | Noun"]

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_FIELD = re.compile(r"\{(\w+)(?:([.:])([^{}]+))?\}")


def choose_wording(text: str, rng: Random) -> str:
    """Replaces every `[x|y]` by one of its wordings."""
    return _CHOICE.sub(lambda match: pick(rng, tuple(match[1].split("|"))), text)


def fill(text: str, context: Context) -> str:
    """Replaces every `{...}` field (see the module docstring)."""
    return _FIELD.sub(lambda match: _field(context[match[1]], match[3] or "", context), text)


def _field(value: int | Person | Noun, spec: str, context: Context) -> str:
    if isinstance(value, int):
        return _number(value, spec, context)
    if isinstance(value, Person):
        return value.form(spec)
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
