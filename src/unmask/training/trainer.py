"""One update: the loss of all its forwards over what the whole step is divided by, then the optimiser.

Every term of the loss is divided by its own normaliser, totalled over all forwards and processes, so 1 x 8, 2 x 4 and
8 x 1 rows give the same update on any number of processes. Nothing in an update waits for a GPU.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unmask.training.config import TrainConfig
from unmask.training.ema import Average
from unmask.training.guard import Guard
from unmask.training.objective import Objective
from unmask.training.optimizer import Optimizer, trained
from unmask.training.ranks import Ranks
from unmask.training.recipes.base import Supervised, Terms
from unmask.training.step import Step
from unmask.training.wrap import replicate, shard


class Trainer:
    """The state of a run: networks, optimiser, averages, number of updates done.

    Args:
        objective: on the CPU; it is put on the device, and replicated or sharded.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks, objective: Objective) -> None:
        self.config, self.ranks, self.raw = config, ranks, objective
        low = config.precision == "bf16"
        if config.shard:
            networks = [n for n in (objective.network, objective.frozen) if n is not None]
            shard(objective, networks, ranks, low)
        objective.to(ranks.device)
        self.objective: nn.Module = objective if config.shard else replicate(objective, ranks)
        # FSDP runs in bfloat16 by itself.
        self.low = low and not config.shard
        self.weights = trained(objective)
        self.optimizer = Optimizer(self.weights, config, ranks, objective.recipe.pace())
        self.average = None if config.ema is None else Average(self.weights, config.ema, config.ema_ramp)
        self.guard = Guard()
        self.term_names: list[str] = []
        self.done = 0
        self.seconds = 0.0
        """Of training; the first update, measuring and saving are not counted."""
        self.clock: float | None = None

    @property
    def minutes(self) -> float:
        """Of training so far, see `seconds`; the same in all processes."""
        running = 0.0 if self.clock is None else time.monotonic() - self.clock
        mine = self.seconds + running
        return self.ranks.totals([mine / 60])[0] / self.ranks.count

    def pause(self) -> None:
        """Stops the clock."""
        if self.clock is not None:
            self.seconds += time.monotonic() - self.clock
        self.clock = None

    def go_on(self) -> None:
        """Starts the clock, if it stands."""
        if self.clock is None:
            self.clock = time.monotonic()

    def progress(self, step: int) -> float:
        """How much of the schedule is over when this update begins, in 0 .. 1; the same in all processes."""
        by_steps = step / self.config.steps
        if not self.config.max_minutes:
            return by_steps
        return max(by_steps, self.minutes / self.config.max_minutes)

    def update(self, step: Step, learning_rate: float) -> None:
        """One optimiser step. Its numbers go to the guard.

        Raises:
            NotFiniteError: an earlier step (on a CPU: this one) had a loss or gradient that was not finite; since then
                no update was applied.
        """
        device = self.ranks.device
        self.term_names = list(step.normalisers)
        totals = torch.tensor([float(step.normalisers[name]) for name in self.term_names], dtype=torch.float32)
        scale = self.ranks.count / self.ranks.add(_sent(totals, device)).clamp_min(1e-8)
        terms: list[Tensor] = []
        for index, forward in enumerate(step.forwards):
            torch.manual_seed(_seed(self.config.seed, step.number, self.ranks.index, index))
            with self._accumulating(index < len(step.forwards) - 1):
                with self.lowered():
                    values = self._terms(forward) * scale
                # DDP and FSDP average gradients over the processes; the sum is wanted.
                values.sum().backward()
            terms.append(values.detach())
        whole = self.ranks.add(torch.stack(terms).sum(0)) / self.ranks.count
        norms = self.optimizer.step(learning_rate, whole, step.number)
        self.raw.place_mask_row()
        self.done = step.number + 1
        if self.average is not None:
            self.average.update(self.done)
        self.guard.add(step.number, whole, norms, torch.stack(terms).sum(1))

    def lowered(self) -> torch.autocast:
        """Where matrices are multiplied in bfloat16, if the config says so."""
        return torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.low)

    def _terms(self, forward: Supervised) -> Tensor:
        """The sums of one forward in the order of the normalisers, [T]."""
        batch = self.raw.place(forward, self.ranks.device)
        terms: Terms = self.objective(batch)
        assert set(terms.sums) == set(self.term_names), "each term of the loss has its normaliser"
        return torch.stack([terms.sums[name].float() for name in self.term_names])

    def _accumulating(self, more: bool) -> AbstractContextManager[None]:
        """DDP exchanges gradients in the last forward of a step alone; FSDP in each, as whole gradients are large."""
        return (
            self.objective.no_sync() if more and isinstance(self.objective, DistributedDataParallel) else nullcontext()
        )


def _seed(*keys: int) -> int:
    """Of dropout: no forward depends on what was drawn before it."""
    return int.from_bytes(hashlib.blake2b(repr(keys).encode(), digest_size=7).digest(), "little")


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
