"""D2F on many random models: an early exit is D2F up to the end token, whatever is in flight."""

from __future__ import annotations

from random import Random

import pytest

from many_models import ManyModels
from random_models import random_prompts

NEW, MODELS, EACH = 8, 200, 4  # each setting on so many of the models
ENDS = (20, 21, 22)  # a random model often says one of them: the vocabulary has 24


def settings(rng: Random) -> dict[str, object]:
    return {
        "block_size": rng.choice([1, 2, 3, 4, 6]),
        "add_threshold": rng.choice([0.0, 0.1, 0.5, 1.0]),
        "activate_threshold": rng.choice([0.0, 0.5, 0.95]),
        "threshold": rng.choice([0.15, 0.25, 0.4, 1.0]),
        "rank": rng.choice(["prob", "margin", "entropy"]),
        "max_active_blocks": rng.choice([None, None, 1, 2]),
    }


def text(canvas: list[int]) -> list[int]:
    """What a user gets: up to the first end token."""
    return canvas[: next((i for i, t in enumerate(canvas[:NEW]) if t in ENDS), NEW - 1) + 1]


@pytest.mark.parametrize("part", range(5))
def test_an_early_exit_is_d2f_up_to_the_end_token(part):
    ended, saved = 0, 0
    for seed in range(part * EACH, MODELS, 5 * EACH):
        models = ManyModels(seed, EACH, ("llada", "dream")[seed // EACH % 2], layers=1)
        family = models.family.override(eos_token_id=ENDS)
        batch, options = random_prompts(seed, 2 * EACH), settings(Random(seed))
        short, full = (models.rows("d2f", family, batch, NEW, early_exit=early, **options) for early in (True, False))
        for a, b in zip(short, full):
            assert text(a.canvas) == text(b.canvas)
            ended += text(a.canvas)[-1] in ENDS
            least, cost = (sum(row.counters.forwards.values()) for row in (a, b))
            assert least <= cost
            saved += cost - least
    assert ended >= 10  # end tokens are likely enough for the test to mean something
    assert saved >= 10
