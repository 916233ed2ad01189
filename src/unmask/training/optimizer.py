"""What an update does: gradients clipped group by group, AdamW, and nothing at all once a number was not finite.

Weights may be sharded (FSDP2): each process updates the pieces that it owns, which are plain tensors here, so that
optimiser, averages and states need not know of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from unmask.training.config import TrainConfig
from unmask.training.ranks import Ranks
from unmask.training.recipes.base import Pace

NETWORK = "network"


def rate(config: TrainConfig, step: int, progress: float) -> float:
    """Learning rate of an update: linear warm-up by steps, then constant or falling by progress (0 to 1)."""
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    if config.schedule == "constant":
        return config.learning_rate * warm
    done = min(progress, 1.0)
    falling = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.learning_rate * warm * (config.final_rate + (1 - config.final_rate) * falling)


@torch.no_grad()
def own(tensor: Tensor) -> Tensor:
    """The piece of a tensor that this process holds, sharing its memory: all of it where it is not sharded."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


@dataclass(frozen=True)
class Weight:
    """A trained parameter: its name in the objective, and this process's piece of it as a leaf that is updated."""

    name: str
    parameter: nn.Parameter
    leaf: nn.Parameter

    @classmethod
    def of(cls, name: str, parameter: nn.Parameter) -> Weight:
        return cls(name, parameter, nn.Parameter(own(parameter)) if isinstance(parameter, DTensor) else parameter)

    @property
    def sharded(self) -> bool:
        """Whether other processes hold other pieces."""
        return self.leaf is not self.parameter

    @property
    def group(self) -> str:
        """What it belongs to: the network, or one of the recipe's own modules."""
        first, *rest = self.name.split(".")
        return rest[0] if first == "modules_of_recipe" else NETWORK

    def take_gradient(self) -> None:
        """Gives the leaf its piece of the gradient."""
        if self.sharded:
            self.leaf.grad = None if self.parameter.grad is None else own(self.parameter.grad)

    def drop_gradient(self) -> None:
        self.leaf.grad = self.parameter.grad = None


def trained(module: nn.Module) -> list[Weight]:
    """All parameters of a module that are trained."""
    return [Weight.of(name, p) for name, p in module.named_parameters() if p.requires_grad]


class AdamW(torch.optim.AdamW):
    """PyTorch's fused AdamW, which leaves everything as it is where `found_inf` is above 0."""

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None


class Optimizer:
    """AdamW on every trained parameter, weight decay on matrices only.

    Args:
        pace: of groups of parameters beside the network.
    """

    def __init__(self, weights: Sequence[Weight], config: TrainConfig, ranks: Ranks, pace: Mapping[str, Pace]) -> None:
        self.weights, self.clip, self.ranks = weights, config.clip, ranks
        self.groups = list(dict.fromkeys(w.group for w in weights))
        self.pace = {name: pace.get(name, Pace()) for name in self.groups}
        self.bad = torch.zeros((), device=ranks.device)
        """1 from the first number on that was not finite."""
        self.inner = AdamW(list(self._parts(config)), lr=config.learning_rate, betas=config.betas, fused=True)

    def _parts(self, config: TrainConfig) -> list[dict[str, Any]]:
        parts = []
        for name in self.groups:
            for matrices in (True, False):
                # A sharded tensor may be empty here, and a fused kernel has nothing to do for it.
                leaves = [w.leaf for w in self._of(name) if (w.parameter.dim() >= 2) == matrices and w.leaf.numel()]
                if leaves:
                    decay = config.weight_decay if matrices else 0.0
                    kept = {"group": name, "multiple": self.pace[name].rate}
                    parts.append({"params": leaves, "weight_decay": decay, **kept})
        return parts

    def _of(self, group: str) -> list[Weight]:
        return [w for w in self.weights if w.group == group]

    def step(self, learning_rate: float, loss: Tensor, number: int = 0) -> Tensor:
        """One update with the gradients there are, which are then dropped.

        Args:
            learning_rate: of the network.
            loss: numbers that have to be finite too, the same in all processes.
            number: of the update; the network stands still while one of the others is ahead of it (`Pace.lead`).

        Returns:
            The norm of the gradient of each of `groups`, on the device. Nothing waits for the device.
        """
        for weight in self.weights:
            weight.take_gradient()
        norms = self._norms()
        self.bad = torch.maximum(self.bad, 1 - torch.cat([norms, loss]).isfinite().all().float())
        for index, name in enumerate(self.groups):
            leaves = [w.leaf for w in self._of(name) if w.leaf.grad is not None]
            nn.utils.clip_grads_with_norm_(leaves, self.clip * self.pace[name].clip, norms[index])
        waits = number < max((p.lead for p in self.pace.values()), default=0)
        for part in self.inner.param_groups:
            part["lr"] = 0.0 if waits and part["group"] == NETWORK else learning_rate * part["multiple"]
        self.inner.found_inf = self.bad
        self.inner.step()
        self.drop()
        return norms

    def drop(self) -> None:
        """Forgets the gradients."""
        for weight in self.weights:
            weight.drop_gradient()

    def _norms(self) -> Tensor:
        norms = []
        for name in self.groups:
            gradients = [w.leaf.grad for w in self._of(name) if w.leaf.grad is not None and w.leaf.numel()]
            norm = nn.utils.get_total_norm(gradients) if gradients else self.bad.new_zeros(())
            norms.append(norm.to(self.bad.device, torch.float32))
        stacked = torch.stack(norms)
        if any(w.sharded for w in self.weights):
            return self.ranks.add(stacked.square()).sqrt()
        return stacked

    def moments(self, weight: Weight) -> tuple[Tensor, Tensor, float] | None:
        """Both moments and the number of updates of a weight, None before the first."""
        state = self.inner.state.get(weight.leaf)
        return (state["exp_avg"], state["exp_avg_sq"], float(state["step"])) if state else None

    def set_moments(self, weight: Weight, first: Tensor, second: Tensor, updates: float) -> None:
        """The opposite of `moments`."""
        device = weight.leaf.device
        self.inner.state[weight.leaf] = {
            "step": torch.tensor(updates, dtype=torch.float32, device=device),
            "exp_avg": first.to(device),
            "exp_avg_sq": second.to(device),
        }
