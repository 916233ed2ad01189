"""Random traffic through an engine, and what the eager loop makes of the same requests."""

from __future__ import annotations

import random
from typing import Any

from test_exact import RUNS

from unmask.engine.engine import Engine
from unmask.engine.request import Request, Status
from unmask.lm import LM

NEW = 16
LONGEST = 40


def requests(seed: int, count: int, mixed: bool) -> list[dict[str, Any]]:
    """Prompts with their settings; `mixed`: of different numbers of new tokens too. Some prompts begin alike."""
    rng = random.Random(seed)
    stem = [rng.randrange(170) for _ in range(LONGEST)]
    out = []
    for i in range(count):
        length = rng.randint(1, LONGEST)
        shared = rng.randint(0, length) if rng.random() < 0.4 else 0
        prompt = stem[:shared] + [rng.randrange(170) for _ in range(length - shared)]
        new = rng.choice((NEW, NEW, 5)) if mixed else NEW
        out.append({"prompt": prompt, "new": new, "temperature": rng.choice((0.0, 0.9)), "seed": i})
    return out


def eager(lm: LM, name: str, asked: list[dict[str, Any]]) -> list[Any]:
    """What `LM.generate` gives for them, in the order asked."""
    out: dict[int, Any] = {}
    for new in {a["new"] for a in asked}:
        group = [i for i, a in enumerate(asked) if a["new"] == new]
        settings = {key: [asked[i][key] for i in group] for key in ("temperature", "seed")}
        prompts = [asked[i]["prompt"] for i in group]
        method, options = name.split("-")[0], RUNS[name][1]
        results = lm.generate(prompts, method=method, max_new_tokens=new, **settings, **options)
        out |= dict(zip(group, results))
    return [out[i] for i in range(len(asked))]


def engine(lm: LM, name: str, **sizes: Any) -> Engine:
    """An engine so small that requests have to wait, with prompts cut into parts where that is possible."""
    small = {"rows": 4, "max_prompt": LONGEST, "max_new_tokens": NEW, "page_size": 16, "prefill_tokens": 16}
    return Engine(lm, name.split("-")[0], **(small | sizes), **RUNS[name][1])


def drive(engine: Engine, asked: list[dict[str, Any]], seed: int) -> tuple[list[Request], set[int]]:
    """Lets requests arrive, be given up and be preempted at random moments; returns them and which were given up."""
    rng = random.Random(seed)
    waiting, made, dropped = list(enumerate(asked)), [], set()
    while waiting or not engine.idle:
        for _ in range(min(rng.choice((0, 0, 1, 2, 5)), len(waiting))):
            _, a = waiting.pop(0)
            settings = {key: a[key] for key in ("temperature", "seed")}
            made.append(engine.add(a["prompt"], max_new_tokens=a["new"], id=str(len(made)), **settings))
        if made and rng.random() < 0.08:
            victim = rng.randrange(len(made))
            if not made[victim].status.ended:
                engine.abort(made[victim])
                dropped.add(victim)
        busy = [r for r in made if r.status in (Status.RUNNING, Status.PREFILLING)]
        if busy and rng.random() < 0.08:
            engine.preempt(rng.choice(busy))
        engine.step()
    return made, dropped


def text(lm: LM, request: Request) -> list[int]:
    """Ids up to and including the first end token."""
    ids = request.canvas[: request.max_new_tokens]
    stop = next((i for i, t in enumerate(ids) if t in lm.family.eos_ids), len(ids))
    return ids[: stop + 1]


def check(lm: LM, name: str, engine: Engine, count: int, seed: int) -> None:
    """Asserts that all requests that were not given up come out as in the eager loop, and that no page is held."""
    asked = requests(seed, count, mixed=engine.method.any_length)
    asked = asked if _any(engine, lm) else [a | {"new": NEW} for a in asked]
    made, dropped = drive(engine, asked, seed)
    for number, (request, expected) in enumerate(zip(made, eager(lm, name, asked))):
        if number not in dropped:
            assert request.status is Status.FINISHED, request.error
            assert text(lm, request) == expected.ids
            assert request.counters is not None
            assert request.counters.forwards == expected.counters.forwards
    assert engine.pool.used_pages == 0
    engine.pool.check()


def _any(engine: Engine, lm: LM) -> bool:
    return engine.method.any_length and engine.unbound.bind(lm.family, 5) == engine.method
