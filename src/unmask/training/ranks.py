"""The processes of a run: which one this is, and what they agree on.

Started by `torchrun` or `accelerate launch`, on one machine or several, a run is cut over all processes; started
plainly it is one. Numbers that the host needs travel between the hosts (gloo), so that no GPU is waited for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from unmask.errors import UnmaskError

T = TypeVar("T")
_ELSEWHERE = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")


@dataclass(frozen=True)
class Ranks:
    """index: this process among `count`; device: where its tensors live."""

    index: int
    count: int
    device: torch.device
    host: Any = None
    """The group over which host numbers travel, None where the default one does."""

    @classmethod
    def start(cls) -> Ranks:
        """Joins the processes that were launched together, or stands alone.

        Raises:
            UnmaskError: accelerate was told to shard, which here is an option of the training config.
        """
        from accelerate import PartialState

        for name in _ELSEWHERE:
            if os.environ.get(name, "").lower() == "true":
                raise UnmaskError(
                    f"accelerate's own sharding ({name}) is not used; set shard: true in the config instead"
                )
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available():
            state = PartialState(cpu=True, backend="gloo")
        else:
            state = PartialState()
        assert state.device is not None
        count, device = int(state.num_processes), torch.device(state.device)
        host = dist.new_group(backend="gloo") if count > 1 and device.type != "cpu" else None
        return cls(int(state.process_index), count, device, host)

    @property
    def main(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.index == 0

    def totals(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over the processes, in float64."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.host)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return self.totals([float(flag)])[0] > 0

    def wait(self) -> None:
        """Until all processes are here."""
        self.totals([0.0])

    def gather(self, value: T) -> list[T]:
        """The value of every process."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value, group=self.host)
        return found

    def add(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in place, on the device and without waiting for it."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    @staticmethod
    def close() -> bool:
        """Leaves the group of processes, for the end of a program; whether this was its first process."""
        if not (dist.is_available() and dist.is_initialized()):
            return True
        first = dist.get_rank() == 0
        dist.destroy_process_group()
        return first
