"""Kernels that start before the one ahead of them has ended (programmatic dependent launch, from Hopper on).

A decoding step is some 300 short kernels, each waiting for the last program of the one before. Here every kernel first
lets the next one start, and waits for its predecessor before it touches anything that a kernel writes. A kernel that
waits for its predecessor has waited for all before it, as those waited too; kernels of libraries start when all is
done, as ever. Weights may be read before the wait (`kernels.even`), and what earlier steps cached
(`kernels.pipelined`); fetching either into the L2 cache gave nothing.
"""

from __future__ import annotations

import os
from functools import cache

import torch
import triton
import triton.language as tl


@cache
def overlapped(cuda: bool) -> dict[str, bool]:
    """The keywords of a launch that make it so, where card and Triton can. UNMASK_OVERLAP=0 switches it off, to
    measure what it gives."""
    able = cuda and torch.cuda.get_device_capability() >= (9, 0) and "gdc_wait" in dir(tl.extra.cuda)
    if able and os.environ.get("UNMASK_OVERLAP") != "0":
        return {"OVERLAP": True, "launch_pdl": True}
    return {"OVERLAP": False}


@triton.jit
def release(OVERLAP: tl.constexpr) -> None:
    """Lets the next kernel start. What is read between this and `wait` must not be written by a kernel that does the
    same, since that may not have ended."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait(OVERLAP: tl.constexpr) -> None:
    """Waits for the kernel before."""
    if OVERLAP:
        tl.extra.cuda.gdc_wait()


@triton.jit
def follow(OVERLAP: tl.constexpr) -> None:
    """Lets the next kernel start, where `release` has not yet, and waits for the one before."""
    release(OVERLAP)
    wait(OVERLAP)
