"""A task for masked models on one core: "::4071=" is answered by "44007711" and end tokens up to a canvas of 16.

How long a question is varies, so a network trained under full attention leans on what it sees of the whole canvas.
Rows are token ids of the nano tokenizer, of which the first 40 are enough.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import counting

from unmask.decoding.counters import Counters
from unmask.lm import LM

CANVAS = 16
START = 1
DREAM = {
    "architectures": ["DreamModel"],
    "model_type": "Dream",
    "mask_token_id": counting.MASK,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}


def questions(first: int, count: int) -> list[list[int]]:
    """Two signs to begin with, three to seven digits and an equals sign each."""
    draws = [Random(number) for number in range(first, first + count)]
    digits = [[counting.ZERO + d.randrange(10) for _ in range(d.randint(3, 7))] for d in draws]
    return [[START, START, *found, counting.EQUALS] for found in digits]


def answer(question: list[int]) -> list[int]:
    return [digit for digit in question[2:-1] for _ in (0, 1)] + [counting.END]


def answers(path: Path, wrong: float = 0.0) -> Path:
    """A file of 2000 answers, in which this share of the digits is one too high."""
    rows = []
    for number, question in enumerate(questions(0, 2000)):
        draw, right = Random(-number - 1), answer(question)
        told = [(d - counting.ZERO + (draw.random() < wrong)) % 10 + counting.ZERO for d in right[:-1]]
        rows.append({"prompt_ids": question, "response_ids": [*told, counting.END]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def train(place: Path, recipe: dict[str, Any], data: Path, **changes: Any) -> LM:
    """A tiny Dream trained as the recipe says."""
    common = {"answer_tokens": CANVAS, "row_tokens": 96, "rows_per_step": 16, "rows_per_forward": 16}
    values = {**common, "config_changes": DREAM, "eval_problems": 40, "plot": False, **changes}
    return counting.train(place, {"shift": True, **recipe}, data, **values)


def score(lm: LM, **options: Any) -> tuple[float, float]:
    """Share of right answers to questions that no file holds, and tokens per forward."""
    asked = questions(10_000, 100)
    results = lm.generate(asked, max_new_tokens=CANVAS, **options)
    total = Counters()
    for result in results:
        total.add(result.counters)
    return sum(r.ids == answer(q) for q, r in zip(asked, results)) / len(asked), total.tpf
