"""Traces for tests: a small one by hand, and one as large as real runs get, full of text that pages must survive."""

from __future__ import annotations

import random
from typing import Any

from unmask.decoding.counters import NAMES, Counters
from unmask.decoding.loop import TraceStep
from unmask.trace import Trace

HOSTILE = [
    "</script><script>alert(1)</script>",
    '" onload="x',
    "' & &lt;",
    " 🙂",
    "שלום",
    "\x1b[31m",
    "\u202eevil",
    "\x00",
    "雪",
    "\n",
    "@@DATA@@",
    "\u2028",
]


def step(forward: int, kind: str, first: int, span: int, fixed: dict[int, int], **more: Any) -> TraceStep:
    """A forward that fixes tokens by position, all surely."""
    given = {"width": span, "visible": 0, "reads": 0, "stores": 0, "confidences": [0.95] * len(fixed)} | more
    return TraceStep(forward, kind, first, span, positions=list(fixed), tokens=list(fixed.values()), **given)


def trace(steps: list[TraceStep], words: list[str], ids: list[int], **more: Any) -> Trace:
    """A trace whose tokens are `words`; its options, prompt and the like may be replaced."""
    forwards = dict.fromkeys(NAMES, 0)
    for s in steps:
        forwards[s.kind] += 1
    given: dict[str, Any] = {
        "model": "toy",
        "method": "masked",
        "options": {"threshold": 0.8},
        "block_size": None,
        "block_offset": 0,
        "prompt": "say it",
        "prompt_ids": [7, 8, 9],
        "text": "".join(words[i] for i in ids),
        "ids": ids,
        "pieces": [words[i] for i in ids],
        "labels": dict(enumerate(words)),
        "finish_reason": "length",
        "counters": Counters(len(ids), forwards, 0.5),
        "steps": steps,
    }
    return Trace(**(given | more))


def small() -> Trace:
    """Four tokens and an end token in a block of 4 and one of 2, three forwards."""
    words = ["the", " boxes", "\n", " 12", "<end>"]
    steps = [
        step(0, "prefill", -3, 3, {}, stores=3),
        step(1, "denoise", -2, 4, {1: 1, 0: 0}, reads=1, stores=4, confidences=[0.999, None]),
        step(2, "commit", 2, 4, {2: 2, 3: 3, 4: 4}, reads=5, stores=4, confidences=[0.4, 0.95, 1.0]),
    ]
    pieces = ["the", " boxes", "\n", " 12", ""]
    return trace(steps, words, [0, 1, 2, 3, 4], block_size=4, block_offset=-2, pieces=pieces, text="the boxes\n 12")


def large(tokens: int = 1200, block: int = 32, prompt: int = 150) -> Trace:
    """Blocks of hostile text, about 3 tokens a forward, kinds and confidences at random."""
    rng = random.Random(0)
    ids = [rng.randrange(len(HOSTILE)) for _ in range(tokens)]
    steps = [step(0, "prefill", -prompt, prompt, {}, stores=prompt)]
    for first in range(-(prompt % block), tokens, block):
        waiting = list(range(max(first, 0), min(first + block, tokens)))
        while waiting:
            taken = sorted(rng.sample(waiting, min(len(waiting), rng.randint(1, 6))))
            sure = [rng.choice([None, round(rng.random() ** 0.2, 6)]) for _ in taken]
            kind, reads = rng.choice(NAMES), prompt + max(first, 0)
            fixed = {p: ids[p] for p in taken}
            steps.append(step(len(steps), kind, first, block, fixed, reads=reads, stores=block, confidences=sure))
            waiting = [p for p in waiting if p not in taken]
    more = {"model": HOSTILE[0], "prompt": " ".join(HOSTILE), "prompt_ids": list(range(prompt))}
    return trace(steps, HOSTILE, ids, block_size=block, block_offset=-(prompt % block), **more)
