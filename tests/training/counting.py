"""A task for runs of training on one core: "..7=" is answered by "789012...", each digit one more than the one before.

An autoregressive model learns it in no time and token by token; several digits at once need the distance from the last
known one. Rows are token ids of the nano tokenizer, of which the first 40 are enough.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from unmask.decoding.counters import Counters
from unmask.lm import LM, load
from unmask.training.config import from_mapping
from unmask.training.generated import Writer
from unmask.training.loop import run

TOKENIZER = Path(__file__).parents[2] / "configs" / "nano" / "tokenizer"
DIGITS, ZERO, EQUALS = 24, 20, 33
END, MASK = 2, 3
SIZES = {
    "vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def prompts(first: int, count: int) -> list[list[int]]:
    """Three signs of no meaning, a digit, an equals sign."""
    draws = [Random(number) for number in range(first, first + count)]
    return [[*draw.choices(range(5, 15), k=3), ZERO + draw.randrange(10), EQUALS] for draw in draws]


def answer(prompt: list[int]) -> list[int]:
    return [ZERO + (prompt[-2] - ZERO + i) % 10 for i in range(DIGITS)] + [END]


def answers(path: Path) -> Path:
    """A file of right answers."""
    return _lines(path, [{"prompt_ids": p, "response_ids": answer(p)} for p in prompts(0, 400)])


def trajectories(path: Path, lm: LM, size: int) -> Path:
    """A file of what the model itself decodes, with the states of each block on the way."""
    found = Writer(lm=lm, options={"block_size": size}, max_new_tokens=DIGITS + 1).trajectories(prompts(0, 200), 0)
    rows = [{"prompt_ids": a.prompt_ids, "response_ids": a.ids, "block_size": size, "blocks": a.blocks} for a in found]
    return _lines(path, rows)


def _lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def train(place: Path, recipe: dict[str, Any], data: Path, **changes: Any) -> LM:
    """A tiny network trained as the recipe says, from nothing or from `init`, loaded from its checkpoint."""
    place.mkdir()
    model = place / "config.json"
    model.write_text(json.dumps({**json.loads((TOKENIZER.parent / "model" / "config.json").read_text()), **SIZES}))
    values = {
        "recipe": recipe,
        "model": None if "init" in changes else str(model),
        "tokenizer": str(TOKENIZER),
        "output": str(place / "run"),
        "data": str(data),
        "row_tokens": 80,
        "rows_per_step": 8,
        "rows_per_forward": 8,
        "learning_rate": 5e-3,
        "warmup_steps": 10,
        "weight_decay": 0.0,
        "log_every": 100,
        "eval_every": 10_000,
        "workers": 1,
        "dtype": "float32",
        **changes,
    }
    run(from_mapping(values))
    return load(values["output"], device="cpu")


def speed(lm: LM, asked: list[list[int]], **options: Any) -> tuple[list[list[int]], float]:
    """What the model answers, and tokens per forward."""
    results = lm.generate(asked, max_new_tokens=DIGITS + 1, **options)
    total = Counters()
    for result in results:
        total.add(result.counters)
    return [r.ids for r in results], total.tpf
