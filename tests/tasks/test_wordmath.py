"""The word problems are right, repeatable, well formed, and the splits share nothing."""

import re
from collections import Counter, defaultdict
from random import Random

import pytest

from unmask.errors import UnmaskError
from unmask.tasks import get_task, wordmath
from unmask.tasks.wordmath.grammar import QUESTION_FIRST, choose_wording, expand
from unmask.tasks.wordmath.nouns import POOLS, Noun, plural
from unmask.tasks.wordmath.people import PEOPLE

EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
FROZEN_QUESTION = (
    "All three count their magnets: Luis has 39, Naomi has 12 more than Luis, and Jacob has 5 times as many as Naomi. "
    "How many are there?"
)
FROZEN_SOLUTION = """Naomi's magnets: 39 + 12 = 51 magnets.
Jacob's magnets: 51 * 5 = 255 magnets.
Luis and Naomi together: 39 + 51 = 90 magnets.
All three: 90 + 255 = 345 magnets.
#### 345"""
NOUNS = {n.one for pool in POOLS.values() for n in pool} - {"fish", "goldfish", "sheep", "deer", "bison"}
FORMS = {f for n in NOUNS for f in (n, plural(n))}
OF_PARTS = sorted((f for f in FORMS if not f.isalpha()), key=len, reverse=True)
NOUNS_OF_PARTS = re.compile(rf"\b({'|'.join(OF_PARTS)})\b", re.IGNORECASE)
NAMES = {p.name for p in PEOPLE}
PRONOUNS = {"he", "she", "his", "her", "him"}


def surface(question: str) -> str:
    """The wording alone: numbers, names, pronouns and nouns replaced by marks."""
    return re.sub(r"\d+|[A-Za-z]+", _mark, NOUNS_OF_PARTS.sub("N", question))


def _mark(found: re.Match[str]) -> str:
    word = found[0]
    if word.isdigit():
        return "0"
    if word.lower() in FORMS:
        return "N"
    return "P" if word in NAMES else "p" if word.lower() in PRONOUNS else word


@pytest.fixture(scope="module")
def train():
    return list(wordmath.generate("train", 8_000))


@pytest.fixture(scope="module")
def test():
    return list(wordmath.generate("test", 1_000))


@pytest.fixture(scope="module")
def unseen():
    return list(wordmath.generate("unseen", 1_000))


@pytest.fixture(scope="module")
def surfaces(train):
    """The wording of each problem of `train`."""
    return [surface(p.question) for p in train]


def calculate(left: int, operator: str, right: int) -> int:
    if operator == "/":
        assert left % right == 0
    return {"+": left + right, "-": left - right, "*": left * right, "/": left // max(right, 1)}[operator]


def test_problems_depend_on_split_seed_and_index_alone():
    first, again = list(wordmath.generate("train", 30)), list(wordmath.generate("train", 10, start=20))
    assert first[20:] == again
    assert first[0] != next(wordmath.generate("train", 1, seed=1))
    assert first[0] != next(wordmath.generate("validation", 1))


def test_a_frozen_example_stays_the_same_on_every_python_version():
    problem = next(wordmath.generate("test", 1, seed=7))
    assert problem.question == FROZEN_QUESTION
    assert problem.solution == FROZEN_SOLUTION


def test_splits_share_no_question(train, test):
    validation = {p.question for p in wordmath.generate("validation", 500)}
    questions = {p.question for p in train}
    assert questions.isdisjoint(p.question for p in test)
    assert questions.isdisjoint(validation)
    assert validation.isdisjoint(p.question for p in test)
    assert len(questions) > 0.99 * len(train)


def test_every_equation_is_right_and_the_last_one_is_the_answer(train, test, unseen):
    for problem in train + test + unseen:
        equations = EQUATION.findall(problem.solution)
        assert len(equations) == problem.steps == problem.solution.count("\n")
        for left, operator, right, result in equations:
            assert calculate(int(left), operator, int(right)) == int(result)
        assert problem.answer == int(equations[-1][3]) == wordmath.extract_answer(problem.solution)
        assert wordmath.check(problem, problem.solution)


def test_numbers_and_step_counts_stay_in_range(train):
    assert {p.steps for p in train} == {2, 3, 4, 5}
    assert all(1 <= int(n) <= 9999 for p in train for n in re.findall(r"\d+", p.question + p.solution))


def test_every_number_of_a_solution_comes_from_the_question_or_an_earlier_step(train):
    known_to_all = {"2", "3", "4", "5", "7", "10", "12", "60", "100", "1000"}
    for problem in train:
        known = set(re.findall(r"\d+", problem.question)) | known_to_all
        for left, _, right, result in EQUATION.findall(problem.solution):
            assert {left, right} <= known, problem
            known.add(result)


def test_nouns_agree_with_their_numbers(train, test, unseen):
    for problem in train[:5000] + test + unseen:
        text = problem.question + "\n" + problem.solution
        assert "{" not in text and "[" not in text and "|" not in text
        assert text[0].isupper() or text[0].isdigit()
        assert not re.search(r"\b[Aa] [aeiou]", text.replace("a one-time", "")), problem
        for number, noun in re.findall(r"(?<![\d$])\b(\d+) ((?:[a-z]+ )?[a-z]+)", text):
            if noun in NOUNS:
                assert number == "1", problem
            if number == "1":
                assert noun.split()[0] not in {plural(n) for n in NOUNS | {"week", "hour", "day", "egg"}}


@pytest.mark.parametrize(
    ("one", "many"),
    [("box", "boxes"), ("daisy", "daisies"), ("toy", "toys"), ("loaf", "loaves"), ("brush", "brushes")]
    + [
        ("fish", "fish"),
        ("apple tree", "apple trees"),
        ("child", "children"),
        ("tomato", "tomatoes"),
        ("bus", "buses"),
        ("scarf", "scarves"),
        ("guinea pig", "guinea pigs"),
    ],
)
def test_plurals(one, many):
    assert plural(one) == many
    assert (Noun(one).count(1), Noun(one).count(2)) == (one, many)


def test_every_template_occurs_and_held_out_ones_only_outside_training(train, test, unseen):
    seen = Counter(p.kind for p in train)
    held = {t.name for t in wordmath.HELD_OUT}
    assert set(seen) == {t.name for t in wordmath.TEMPLATES}
    assert not held & set(seen)
    assert not any(p.held_out for p in train)
    assert held <= {p.kind for p in unseen}
    assert 0.01 < sum(p.held_out for p in test) / len(test) < 0.03
    assert all(p.held_out for p in unseen)


def test_every_situation_has_many_surface_forms(train, surfaces):
    forms = defaultdict(set)
    for problem, form in zip(train, surfaces):
        forms[problem.kind].add(form)
    counts = sorted(len(f) for f in forms.values())
    assert counts[0] >= 20
    assert counts[len(counts) // 2] >= 50


def test_held_out_wordings_never_occur_in_training(surfaces, unseen):
    assert {surface(p.question) for p in unseen}.isdisjoint(surfaces)


def test_sentences_begin_with_capitals_and_spaces_are_single(train):
    for problem in train:
        assert not re.search(r"  | [.,?]|[.?] [a-z]|\?\?|\.\.", problem.question), problem
        assert problem.question[-1] in ".?"
        assert len(problem.question.split()) <= 60


def test_solutions_do_not_depend_on_the_wording():
    for template in wordmath.TEMPLATES:
        context = template.context(Random(template.name))
        rng = Random(1)
        solution = template.solution(context)
        questions = {template.question(w, context, rng) for w in template.wordings for _ in range(3)}
        assert len(questions) > 5
        assert template.solution(context) == solution


def test_choices_nest_and_the_question_may_stand_first():
    rng = Random(0)
    drawn = {choose_wording("a [b|c [d|e]|]f", rng) for _ in range(100)}
    assert drawn == {"a bf", "a c df", "a c ef", "a f"}
    orders = Counter(choose_wording("{A} sings. // Is {A.his} song {A.his}?", rng) for _ in range(1000))
    assert set(orders) == {"{A} sings. Is {A.his} song {A.his}?", "Is {A}'s song {A.his}? {A} sings."}
    assert abs(orders["Is {A}'s song {A.his}? {A} sings."] / 1000 - QUESTION_FIRST) < 0.05
    assert expand("<at p>") == "[at|for] {p:$} [each|apiece]"


def test_names_and_nouns_are_many_and_differ():
    names = [p.name for p in PEOPLE]
    assert len(names) == len(set(names)) >= 245
    assert {"Tom", "Sam", "Anna", "Ben", "Lucy"} <= set(names)
    assert all(len(pool) == len(set(pool)) for pool in POOLS.values())


def test_template_names_are_unique_and_there_are_many():
    names = [t.name for t in wordmath.TEMPLATES + wordmath.HELD_OUT]
    assert len(names) == len(set(names)) >= 60


@pytest.mark.parametrize(
    ("text", "answer"), [("so #### 12", 12), ("####7 #### 8", 7), ("12", None), ("#### twelve", None)]
)
def test_answers_are_read_behind_the_marker(text, answer):
    assert wordmath.extract_answer(text) == answer


def test_unknown_names_are_refused_with_the_nearest_one():
    with pytest.raises(UnmaskError, match="did you mean 'wordmath'"):
        get_task("wordmth")
    with pytest.raises(UnmaskError, match="did you mean 'train'"):
        wordmath.generate("trian", 1)  # pyright: ignore[reportArgumentType]
