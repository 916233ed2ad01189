"""Values on their way from the device to the host, without either of them waiting for the other."""

from __future__ import annotations

import torch
from torch import Tensor


class Mirror:
    """Copies of tensors, taken where the device's work stands now; `ready` once they have arrived.

    On a CPU they are there at once.
    """

    def __init__(self, **named: Tensor) -> None:
        self.values = {name: _host_copy(x) for name, x in named.items()}
        self.event: torch.cuda.Event | None = None
        if any(x.is_cuda for x in named.values()):
            self.event = torch.cuda.Event()
            self.event.record()

    def ready(self) -> bool:
        return self.event is None or self.event.query()

    def wait(self) -> None:
        """Waits for this copy alone: work queued behind it goes on."""
        if self.event is not None:
            self.event.synchronize()

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def __contains__(self, name: str) -> bool:
        return name in self.values


def _host_copy(x: Tensor) -> Tensor:
    if not x.is_cuda:
        return x.clone()
    # Into pinned memory: a copy to ordinary memory would wait for the device.
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A host tensor on the device, again without waiting."""
    return x.contiguous().pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x
