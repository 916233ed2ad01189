"""A task that a tiny network learns in a few hundred steps on one core, and its training and decoding.

The question gives two digits, the answer is the first four times and then the second: "37" -> "33337777".
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

import unmask
from checkpoints import GOLDEN
from unmask.decoding.counters import Counters
from unmask.lm import LM
from unmask.tasks import TASKS, Problem, Task
from unmask.training.config import from_mapping
from unmask.training.loop import run

TIMES = 4
TOKENIZER = Path(__file__).parents[2] / "configs" / "nano" / "tokenizer"
MASK, END, VOCAB = 3, 2, 2048
SIZES = {"vocab_size": VOCAB, "mask_token_id": MASK, "eos_token_id": END, "pad_token_id": 4, "bos_token_id": 0}


def generate(split: str, count: int, seed: int = 0, start: int = 0) -> Any:
    """All splits draw from the same hundred problems."""
    for index in range(start, start + count):
        question = f"{Random(f'{split} {seed} {index}').randrange(100):02}"
        answer = "".join(digit * TIMES for digit in question)
        yield Problem(question, answer, int(answer), "echo")


def check(problem: Problem, text: str) -> bool:
    return text.strip() == problem.solution


def train(
    place: Path, patch: pytest.MonkeyPatch, base: str, recipe: dict[str, Any], **changes: Any
) -> tuple[dict[str, Any], LM]:
    """Trains a network from nothing; its last figures, and the checkpoint as it loads.

    Args:
        base: the golden checkpoint whose config.json is taken, with the sizes of the tokenizer.
        changes: of the config.
    """
    patch.setitem(TASKS, "echo", Task("echo", generate, lambda text: int(text), check))
    model = place / "config.json"
    config = json.loads((GOLDEN / "models" / base / "config.json").read_text())
    more = {"embedding_size": VOCAB} if "embedding_size" in config else {}
    model.write_text(json.dumps({**config, **SIZES, **more}))
    values = {
        "recipe": recipe,
        "model": str(model),
        "tokenizer": str(TOKENIZER),
        "output": str(place / "run"),
        "task": "echo",
        "problems": 4000,
        "row_tokens": 48,
        "rows_per_step": 16,
        "rows_per_forward": 16,
        "learning_rate": 5e-3,
        "final_rate": 0.1,
        "weight_decay": 0.0,
        "warmup_steps": 20,
        "eval_problems": 200,
        "eval_every": 10_000,
        "decode_problems": 40,
        "decode_tokens": 12,
        "log_every": 50,
        "plot": False,
        "workers": 1,
        "dtype": "float32",
        "fill_end": True,
        **changes,
    }
    figures = run(from_mapping(values))
    return figures, unmask.load(values["output"], device="cpu")


def score(lm: LM, decoder: dict[str, Any], count: int = 40, **options: Any) -> tuple[float, float]:
    """Share of right answers, and tokens per forward, as a recipe's `decoder` decodes."""
    problems = list(generate("test", count))
    results = lm.generate([p.question for p in problems], **{**decoder, **options})
    total = Counters()
    for result in results:
        total.add(result.counters)
    right = sum(check(p, r.text) for p, r in zip(problems, results))
    return right / count, total.tpf
