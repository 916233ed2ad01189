"""D2F on many random models: an early exit is D2F up to the end token, whatever is in flight."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from random_models import random_lm, random_prompts
from unmask.lm import LM

NEW, MODELS = 8, 200
ENDS = (20, 21, 22)


def lm_with_ends(seed: int) -> LM:
    """A random model that often says an end token: one of three in a vocabulary of 24."""
    lm = random_lm(seed, ("llada", "dream")[seed % 2], layers=1)
    return LM(replace(lm.checkpoint, family=lm.family.override(eos_token_id=ENDS)), None)


def settings(rng: Random) -> dict[str, object]:
    return {
        "block_size": rng.choice([1, 2, 3, 4, 6]),
        "add_threshold": rng.choice([0.0, 0.1, 0.5, 1.0]),
        "activate_threshold": rng.choice([0.0, 0.5, 0.95]),
        "threshold": rng.choice([0.15, 0.25, 0.4, 1.0]),
        "rank": rng.choice(["prob", "margin", "entropy"]),
        "max_active_blocks": rng.choice([None, None, 1, 2]),
    }


@pytest.mark.parametrize("part", range(8))
def test_an_early_exit_is_d2f_up_to_the_end_token(part):
    ended, saved = 0, 0
    for seed in range(part, MODELS, 8):
        lm, batch = lm_with_ends(seed), random_prompts(seed, 2)
        same = {"method": "d2f", "max_new_tokens": NEW} | settings(Random(seed))
        for short, full in zip(lm.generate(batch, **same), lm.generate(batch, early_exit=False, **same)):
            assert (short.ids, short.finish_reason) == (full.ids, full.finish_reason)
            ended += short.finish_reason == "stop"
            cost, least = (sum(r.counters.forwards.values()) for r in (full, short))
            assert least <= cost
            saved += cost - least
    assert ended >= 10  # end tokens are likely enough for the test to mean something
    assert saved >= 10
