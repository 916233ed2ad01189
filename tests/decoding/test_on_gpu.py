"""Every method on a GPU: no tensor on the wrong device, and the text of the CPU (float32, tiny models)."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from test_exact import RUNS, prompts

from checkpoints import GOLDEN, MASKS, tiny
from unmask.lm import LM
from unmask.models.checkpoint import load_model


@cache
def on_gpu(name: str) -> LM:
    folder = GOLDEN / "models" / name
    return LM(load_model(folder, device="cuda", dtype=torch.float32, mask_token_id=MASKS.get(name)), None)


@pytest.mark.gpu
@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("name", RUNS)
def test_a_method_gives_the_same_text_on_a_gpu(name, temperature):
    model, options = RUNS[name]
    asked = {
        "method": name.split("-")[0],
        "max_new_tokens": 16,
        "temperature": temperature,
        "seed": [3, 4, 5],
    } | options
    batch = prompts(2, 3)
    expected = tiny(model).generate(batch, **asked)
    assert [r.ids for r in on_gpu(model).generate(batch, **asked)] == [r.ids for r in expected]
