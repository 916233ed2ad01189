"""The golden checkpoints, loaded once."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from unmask.lm import LM
from unmask.models.checkpoint import load_model

GOLDEN = Path(__file__).parent / "golden"


@cache
def tiny(name: str) -> LM:
    """A golden checkpoint as an LM (float32, CPU); read-only for tests."""
    # The published Fast-dLLM v2 configs do not name their mask token, nor does the tiny one.
    mask = 190 if name == "fast-dllm-v2-tiny" else None
    return LM(load_model(GOLDEN / "models" / name, dtype=torch.float32, mask_token_id=mask), None)
