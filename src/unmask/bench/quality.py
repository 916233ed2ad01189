"""Accuracy and speed on a task with checkable answers, beside an autoregressive baseline on the same problems.

    unmask bench quality nano --set threshold=0.9 --against nano-ar --count 500 --out bench/results/nano-quality.json

Runs take turns problem by problem, so that a machine that slows down slows all of them. Time is wall clock around
`generate`, prefill included, printing and checking excluded. Aggregates are sums over sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from unmask.decoding.counters import Counters
from unmask.lm import LM, Generation
from unmask.tasks import Problem, Task, get_task


@dataclass
class Contender:
    """One model decoded one way."""

    name: str
    lm: LM
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    answers: list[dict[str, Any]] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Accuracy in percent and the summed counters."""
        right = sum(a["correct"] for a in self.answers)
        unseen = [a["correct"] for a in self.answers if a["held_out"]]
        head = {"model": self.name, "method": self.method, "options": self.options, "problems": len(self.answers)}
        score = {
            "correct": right,
            "accuracy": round(100 * right / max(len(self.answers), 1), 2),
            "accuracy_unseen_wordings": round(100 * sum(unseen) / len(unseen), 2) if unseen else None,
            "accuracy_by_kind": self._by_kind(),
        }
        return head | score | self.counters.as_dict()

    def _by_kind(self) -> dict[str, dict[str, Any]]:
        """Problems, right answers and their percentage of each sort of problem."""
        sorts: dict[str, list[bool]] = {}
        for answer in self.answers:
            sorts.setdefault(answer["kind"], []).append(answer["correct"])
        return {
            kind: {"problems": len(r), "correct": sum(r), "accuracy": round(100 * sum(r) / len(r), 2)}
            for kind, r in sorted(sorts.items())
        }


def quality(
    contenders: Sequence[Contender],
    *,
    task: str = "wordmath",
    split: str = "test",
    count: int = 500,
    seed: int = 0,
    batch: int = 1,
    engine: dict[str, Any] | None = None,
    max_new_tokens: int = 256,
    progress: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """Lets each contender answer the same problems; returns one summary each (raw answers stay in `contenders`).

    Args:
        batch: problems decoded together.
        engine: decode in the GPU engine made with these arguments, all problems in one queue with `batch` of them at a
            time; None: in the eager loop.
        progress: called with the number of problems done.
    """
    bench = get_task(task)
    problems = list(bench.generate(split, count, seed=seed))  # type: ignore[arg-type]
    for contender in contenders:  # the first calls of a process are slow, in the engine those of each kind of step
        contender.options |= {} if engine is None else {"engine": engine | {"rows": batch}}
        first = problems[:1] if engine is None else problems
        _answer(contender, [p.question for p in first], max_new_tokens)
    size = batch if engine is None else count
    for start in range(0, count, size):
        group = problems[start : start + size]
        for contender in contenders:
            results = _answer(contender, [p.question for p in group], max_new_tokens)
            for problem, result in zip(group, results):
                contender.counters.add(result.counters)
                contender.answers.append(_record(bench, problem, result))
            # A batch shares its wall-clock time: count it once.
            contender.counters.seconds -= results[0].counters.seconds * (len(results) - 1)
        progress(min(start + size, count))
    return [c.summary() for c in contenders]


def _answer(contender: Contender, questions: list[str], max_new_tokens: int) -> list[Generation]:
    return contender.lm.generate(questions, method=contender.method, max_new_tokens=max_new_tokens, **contender.options)


def _record(task: Task, problem: Problem, result: Generation) -> dict[str, Any]:
    return {
        "kind": problem.kind,
        "held_out": problem.held_out,
        "expected": problem.answer,
        "answered": task.extract_answer(result.text),
        "correct": bool(task.check(problem, result.text)),
        "tokens": result.counters.tokens,
        "forwards": {k: n for k, n in result.counters.forwards.items() if n},
        "finish_reason": result.finish_reason,
    }
