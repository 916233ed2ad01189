"""Where the time of a step goes: the kernels that the device ran, by name.

unmask bench step fast-dllm-v2-7b --shapes 1x128 --kernels
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

SHOWN = 16
"""Lines of a table; a file holds all."""
LONGEST = 90


def by_kernel(work: Callable[[], object], times: int, device: torch.device) -> list[dict[str, Any]]:
    """Does `work` so many times under PyTorch's profiler. What this process times afterwards may take longer.

    Returns:
        Of each kernel (on a CPU, each operation): `name`, `calls` and `microseconds` of one time; the longest first.
    """
    from torch.profiler import ProfilerActivity, profile

    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found:
        for _ in range(times):
            work()
        if cuda:
            torch.cuda.synchronize(device)
    names = found.key_averages()
    spent = [(e.self_device_time_total if cuda else e.self_cpu_time_total, e.count, e.key) for e in names]
    ranked = sorted((entry for entry in spent if entry[0] > 0), reverse=True)
    return [{"name": n, "calls": c / times, "microseconds": round(us / times, 2)} for us, c, n in ranked]


def table(kernels: Sequence[dict[str, Any]]) -> list[str]:
    """Lines for people: share, microseconds, calls, name."""
    total = sum(kernel["microseconds"] for kernel in kernels)
    lines = [f"{total:.0f} microseconds in {sum(kernel['calls'] for kernel in kernels):.0f} kernels"]
    for kernel in kernels[:SHOWN]:
        share, name = 100 * kernel["microseconds"] / total, " ".join(kernel["name"].split())[:LONGEST]
        lines.append(f"{share:5.1f} %  {kernel['microseconds']:9.1f} us  {kernel['calls']:6.1f} x  {name}")
    return lines
