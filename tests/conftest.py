"""Fixtures shared by all tests: the golden checkpoints, one thread, deterministic kernels, GPU tests skipped without
a GPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from unmask.lm import LM
from unmask.models.checkpoint import load_model

GOLDEN = Path(__file__).parent / "golden"

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@cache
def tiny(name: str) -> LM:
    """A golden checkpoint as an LM (float32, CPU); read-only for tests."""
    # The published Fast-dLLM v2 configs do not name their mask token, nor does the tiny one.
    mask = 190 if name == "fast-dllm-v2-tiny" else None
    return LM(load_model(GOLDEN / "models" / name, dtype=torch.float32, mask_token_id=mask), None)


@pytest.fixture
def golden() -> Path:
    return GOLDEN
