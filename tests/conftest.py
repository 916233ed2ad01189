"""For all tests: one thread, deterministic kernels, GPU tests skipped without a GPU, slow ones but for `-m slow`."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if "slow" in item.keywords and "slow" not in config.getoption("markexpr"):
            item.add_marker(pytest.mark.skip(reason="slow: pytest -m slow"))
