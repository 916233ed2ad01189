"""The golden checkpoints, loaded once."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from unmask.lm import LM
from unmask.models.checkpoint import load_model

GOLDEN = Path(__file__).parent / "golden"
# The published configs of these families do not name their mask token, nor do the tiny ones.
MASKS = {"fast-dllm-v2-tiny": 190, "llada-moe-tiny": 187, "llada2-moe-tiny": 190}


@cache
def tiny(name: str) -> LM:
    """A golden checkpoint as an LM (float32, CPU); read-only for tests."""
    return LM(load_model(GOLDEN / "models" / name, dtype=torch.float32, mask_token_id=MASKS.get(name)), None)
