"""`bench.quality`: accuracies, of each sort of problem too, from answers that are known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from unmask.bench.quality import Contender, quality
from unmask.decoding.counters import Counters
from unmask.lm import Generation
from unmask.tasks import Problem, get_task


class Solver:
    """Stands in for a model that solves all but some sorts of problems."""

    def __init__(self, problems: Iterator[Problem], fails: set[str]) -> None:
        self.problems, self.fails = {p.question: p for p in problems}, fails

    def generate(self, questions: list[str], **options: Any) -> list[Generation]:
        asked = [self.problems[q] for q in questions]
        texts = ["Zoe" if p.kind in self.fails else p.solution for p in asked]
        return [Generation(t, [1, 2], "stop", Counters(tokens=2, seconds=1.0), [1], "x") for t in texts]


def test_accuracy_by_kind_adds_up_to_the_whole() -> None:
    problems = list(get_task("lists").generate("test", 60))
    solver: Any = Solver(iter(problems), {"shuffle", "sort"})
    contender = Contender("solver", solver, "x")
    (summary,) = quality([contender], task="lists", count=60, batch=7)
    kinds = summary["accuracy_by_kind"]
    assert set(kinds) == {p.kind for p in problems} and sum(k["problems"] for k in kinds.values()) == 60
    assert {name for name, k in kinds.items() if k["accuracy"] == 0.0} == {"shuffle", "sort"}
    assert {k["accuracy"] for name, k in kinds.items() if name not in ("shuffle", "sort")} == {100.0}
    assert summary["correct"] == sum(k["correct"] for k in kinds.values()) < 60
    assert contender.answers[0]["kind"] == problems[0].kind and contender.answers[0]["expected"] == problems[0].answer
    assert summary["tokens"] == 120 and summary["seconds"] == 9.0


def test_word_problems_are_told_apart_by_their_situation() -> None:
    problems = list(get_task("wordmath").generate("unseen", 20))
    solver: Any = Solver(iter(problems), {problems[0].kind})
    (summary,) = quality([Contender("solver", solver, "x")], split="unseen", count=20)
    assert summary["accuracy_by_kind"][problems[0].kind]["correct"] == 0
    assert summary["accuracy_unseen_wordings"] == summary["accuracy"] < 100
