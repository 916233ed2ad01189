"""The device kernels are tested on: a GPU, or Triton's interpreter on the CPU where TRITON_INTERPRET=1 asks for it."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu), "cpu"])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu" and (os.environ.get("TRITON_INTERPRET") != "1" or find_spec("triton") is None):
        pytest.skip("needs TRITON_INTERPRET=1 and Triton")
    return request.param
