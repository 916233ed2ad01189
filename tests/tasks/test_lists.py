"""Lists: exactly the right answers pass, splits share no list, free kinds have evenly drawn solutions."""

from collections import Counter
from itertools import permutations, product

import pytest

from unmask.errors import UnmaskError
from unmask.tasks import get_task
from unmask.tasks.lists import KINDS, NAMES, Problem

ITEMS = ("Tom", "Anna", "Leo")


def problem(kind, answer, place=2, word="Zoe"):
    return Problem(
        question="?", solution=", ".join(answer), answer=answer, kind=kind, items=ITEMS, place=place, word=word
    )


def right_answers(kind):
    """All that is right for ITEMS, place 2 and Zoe, found by trying every list of these four names."""
    names = (*ITEMS, "Zoe")
    task, asked = get_task(f"lists:{kind}"), problem(kind, SOLUTIONS[kind])
    tried = [c for size in range(1, 6) for c in product(names, repeat=size)]
    return {c for c in tried if task.check(asked, ", ".join(c))}


SOLUTIONS = {
    "copy": ("Tom", "Anna", "Leo"),
    "reverse": ("Leo", "Anna", "Tom"),
    "sort": ("Anna", "Leo", "Tom"),
    "insert": ("Tom", "Zoe", "Anna", "Leo"),
    "remove": ("Tom", "Leo"),
    "replace": ("Tom", "Zoe", "Leo"),
    "shuffle": ("Leo", "Tom", "Anna"),
    "insert-any": ("Tom", "Anna", "Leo", "Zoe"),
    "remove-any": ("Anna", "Leo"),
    "replace-any": ("Tom", "Anna", "Zoe"),
}
MANY = {
    "shuffle": set(permutations(ITEMS)) - {ITEMS},
    "insert-any": {ITEMS[:i] + ("Zoe",) + ITEMS[i:] for i in range(4)},
    "remove-any": {ITEMS[:i] + ITEMS[i + 1 :] for i in range(3)},
    "replace-any": {ITEMS[:i] + ("Zoe",) + ITEMS[i + 1 :] for i in range(3)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_the_right_answers_are_accepted(kind):
    assert right_answers(kind) == MANY.get(kind, {SOLUTIONS[kind]})


@pytest.mark.parametrize("kind", KINDS)
def test_solutions_are_right_and_problems_well_formed(kind):
    task = get_task(f"lists:{kind}")
    for p in task.generate("train", 150):
        assert p.kind == kind and not p.held_out
        assert task.check(p, p.solution) and task.extract_answer(p.solution) == p.answer
        assert 3 <= len(set(p.items)) == len(p.items) <= 8 and p.word not in p.items
        assert ", ".join(p.items) in p.question and "{" not in p.question
        assert (str(p.place) in p.question) == (kind in ("insert", "remove", "replace"))
        assert (p.word in p.question.split(":")[0]) == kind.startswith(("insert", "replace"))


def test_solutions_of_free_kinds_are_drawn_evenly():
    places = Counter(p.place / len(p.items) for p in get_task("lists:remove-any").generate("train", 3000))
    first = sum(n for share, n in places.items() if share <= 0.5) / 3000
    expected = sum((size // 2) / size for size in range(3, 9)) / 6
    assert first == pytest.approx(expected, abs=0.03)
    orders = Counter(
        tuple(sorted(p.items).index(name) for name in p.answer)
        for p in get_task("lists:shuffle").generate("train", 3000)
        if len(p.items) == 3
    )
    assert len(orders) == 6 and min(orders.values()) > 0.6 * max(orders.values())


def test_a_mixture_holds_all_kinds_evenly_and_one_kind_can_be_asked_for():
    kinds = Counter(p.kind for p in get_task("lists").generate("train", 2000))
    assert set(kinds) == set(KINDS) and min(kinds.values()) > 140
    assert {p.kind for p in get_task("lists:sort").generate("test", 20)} == {"sort"}


def test_problems_depend_on_split_seed_and_index_alone():
    generate = get_task("lists").generate
    first = list(generate("train", 30))
    assert first[20:] == list(generate("train", 10, start=20))
    assert first[0] != next(generate("train", 1, seed=1)) and first[0] != next(generate("test", 1))


def test_a_list_belongs_to_one_split_whatever_is_asked_of_it():
    lists = {
        split: {p.items for p in get_task(name).generate(split, 400)}
        for split, name in (("train", "lists"), ("validation", "lists:sort"), ("test", "lists:copy"))
    }
    assert not lists["train"] & lists["test"] and not lists["validation"] & (lists["train"] | lists["test"])


def test_unseen_wordings_never_occur_in_training():
    def wordings(split):
        found = set()
        for p in get_task("lists").generate(split, 1500):
            text = p.question.replace(", ".join(p.items), "X").replace(p.word, "W")
            found.add("".join("#" if c.isdigit() else c for c in text))
        return found

    assert wordings("unseen").isdisjoint(wordings("train") | wordings("test"))
    assert all(p.held_out for p in get_task("lists").generate("unseen", 20))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Tom, Anna", ("Tom", "Anna")),
        ('Here it is:\n["Tom", "Anna"].\n', ("Tom", "Anna")),
        ("Tom", ("Tom",)),
        ("", None),
        ("Tom, , Anna", None),
        ("1. Tom, 2. Anna", None),
    ],
)
def test_the_list_is_read_from_the_last_line(text, answer):
    assert get_task("lists").extract_answer(text) == answer


def test_names_are_words_that_sort_and_mistakes_are_named():
    assert all(name.isalpha() and name.isascii() for name in NAMES)
    with pytest.raises(UnmaskError, match="did you mean 'lists:reverse'"):
        get_task("lists:revers")
    with pytest.raises(UnmaskError, match="asks no questions"):
        get_task("grammar")
    with pytest.raises(UnmaskError, match="did you mean 'test'"):
        get_task("lists").generate("tst", 1)
