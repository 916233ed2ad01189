"""Tiles that the copy engine of a GPU fetches whole (TMA, from Hopper on)."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # Triton before 3.4
    TensorDescriptor = None


@cache
def copies(device: torch.device) -> bool:
    """Whether kernels on this device may be given `tiles`; Triton's interpreter can."""
    return TensorDescriptor is not None and (
        device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)
    )


def tiles(x: Tensor, rows: int, columns: int) -> Any:
    """A matrix, contiguous, of which a kernel loads tiles of so many rows and columns; zeros beyond its edges."""
    assert TensorDescriptor is not None
    return TensorDescriptor.from_tensor(x, [rows, columns])


def gluon_tiles(x: Tensor, rows: int, columns: int) -> Any:
    """The same for a kernel in Gluon, which is told how tiles lie in shared memory."""
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    dtype = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16, torch.float8_e4m3fn: gl.float8e4nv}[x.dtype]
    layout = gl.NVMMASharedLayout.get_default_for([rows, columns], dtype)
    return TensorDescriptor.from_tensor(x, [rows, columns], layout)
