"""A point of a curve: one model decoded one way, on problems of a task or as samples of the grammar.

Problems are decoded in batches by the eager loop, in float32, so that methods which promise the same text are held to
it; forwards and tokens are each row's own (`decoding.counters`), seconds are wall clock of whole batches, prefill
included. A point keeps one character for each answer (right or not) and a digest of its token ids.

Samples of the grammar are drawn whole, without a prompt, at temperature 1; their `accuracy` is the share of tokens that
fit the grammar, `excess` the nats a token by which the true source finds them less likely than its own samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from unmask.bench.zoo.claims import DIGEST
from unmask.bench.zoo.plan import Curve, TaskPlan
from unmask.decoding import build
from unmask.decoding.counters import Counters
from unmask.decoding.loop import decode
from unmask.decoding.sampling import Draw
from unmask.lm import LM
from unmask.tasks import Problem, get_task
from unmask.tasks.grammar import Grammar


def measure(lm: LM, curve: Curve, task: TaskPlan, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The point of a curve at these settings.

    Raises:
        UnmaskError: the model cannot be decoded so.
    """
    options = {**curve.options, **settings}
    asked = samples if curve.task == "grammar" else answers
    return {"settings": dict(settings), **asked(lm, curve, task, options)}


def answers(lm: LM, curve: Curve, how: TaskPlan, options: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy in percent and the summed counters on the first problems of the test split."""
    task = get_task(curve.task)
    problems = list(task.generate("test", how.problems, seed=how.seed))
    decoding: dict[str, Any] = {"method": curve.method, "max_new_tokens": how.tokens, **options}
    lm.generate([problems[0].question], **decoding)  # the first call of a process is slow
    total, right, digests = Counters(), "", ""
    kinds: dict[str, tuple[Counters, list[bool]]] = {}
    for start in range(0, len(problems), how.batch):
        group: list[Problem] = problems[start : start + how.batch]
        results = lm.generate([p.question for p in group], **decoding)
        for problem, result in zip(group, results):
            good = bool(task.check(problem, result.text))
            right, digests = right + str(int(good)), digests + _digest(result.ids)
            counters, marks = kinds.setdefault(problem.kind, (Counters(), []))
            marks.append(good)
            for counted in (total, counters):
                counted.add(result.counters)
        # A batch shares its wall-clock time: count it once.
        total.seconds -= results[0].counters.seconds * (len(results) - 1)
    sorts = {kind: _figures(marks, counters) for kind, (counters, marks) in sorted(kinds.items())}
    return {
        **_figures([mark == "1" for mark in right], total),
        "batch": how.batch,
        "seconds": round(total.seconds, 4),
        "tokens_per_second": round(total.tokens_per_second, 2),
        "by_kind": sorts if how.by_kind else None,
        "right": right,
        "digests": digests,
    }


def _figures(right: list[bool], counters: Counters) -> dict[str, Any]:
    return {
        "problems": len(right),
        "correct": sum(right),
        "accuracy": round(100 * sum(right) / len(right), 2),
        "tokens": counters.tokens,
        "forwards": {kind: count for kind, count in counters.forwards.items() if count},
        "tpf": round(counters.tpf, 4),
    }


def _digest(ids: list[int]) -> str:
    return hashlib.sha256(str(ids).encode()).hexdigest()[:DIGEST]


def samples(lm: LM, curve: Curve, how: TaskPlan, options: Mapping[str, Any]) -> dict[str, Any]:
    """What the grammar says of samples that the model draws."""
    source, total, drawn = Grammar(), Counters(), []
    seconds = 0.0
    for start in range(0, how.problems, how.batch):
        count = min(how.batch, how.problems - start)
        ids, counters = drawn_samples(lm, curve.method, options, count, how.tokens, how.seed + start)
        seconds += counters.seconds
        total.add(counters)
        drawn.append(ids)
    said = source.report(torch.cat(drawn))
    return {
        "problems": how.problems,
        "accuracy": round(100 * said.pop("fitting"), 3),
        "tokens": total.tokens,
        "forwards": {kind: count for kind, count in total.forwards.items() if count},
        "tpf": round(total.tpf, 4),
        "batch": how.batch,
        "seconds": round(seconds, 4),
        "tokens_per_second": round(total.tokens / seconds, 2) if seconds else 0.0,
        **{name: round(value, 6) for name, value in said.items()},
    }


def drawn_samples(
    lm: LM, method: str, options: Mapping[str, Any], count: int, length: int, seed: int
) -> tuple[torch.Tensor, Counters]:
    """Whole texts without a prompt, int64 [count, length] on the CPU, and the counters of all of them.

    Args:
        seed: of the first text; each has the next one.
    """
    import time

    device = lm.model.device
    one = torch.ones(count, device=device)
    seeds = torch.arange(seed, seed + count, device=device)
    bound = build(method, dict(options)).bind(lm.family, length)
    begun = time.perf_counter()
    draw = Draw(one, one, torch.zeros_like(seeds), seeds)
    rows = decode(lm.model, bound, [[] for _ in range(count)], facts=lm.facts, draw=draw, new_tokens=length)
    total = Counters()
    for row in rows:
        row.counters.tokens = length
        total.add(row.counters)
    total.seconds = time.perf_counter() - begun
    return torch.tensor([row.canvas[:length] for row in rows]), total
