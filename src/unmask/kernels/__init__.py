"""Triton kernels, one noun a file: plain functions on tensors. Nothing else imports Triton."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec


@cache
def runs_kernels(cuda: bool) -> bool:
    """Whether Triton kernels take these tensors: on a GPU, and anywhere in Triton's interpreter (for tests)."""
    return (cuda or os.environ.get("TRITON_INTERPRET") == "1") and _triton() >= (3, 4)


@cache
def has_gluon() -> bool:
    """Whether Triton has Gluon as the kernels here are written in it: from 3.6 on, while its names stay as they are."""
    if _triton() < (3, 6):
        return False
    try:
        from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma_wait  # noqa: F401
        from triton.experimental.gluon.nvidia.hopper import TensorDescriptor  # noqa: F401
    except ImportError:
        return False
    return True


def _triton() -> tuple[int, ...]:
    """Its version, () where there is none."""
    if find_spec("triton") is None:
        return ()
    import triton

    return tuple(int(part) for part in triton.__version__.split(".")[:2])
