"""Selection rules: which open positions of a window are committed after a forward.

A rule is a frozen object called with batched tensors; it knows nothing of windows, caches or models. All rules rank
by `score`, take ties at the lowest position, and never choose a position that is not eligible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Rule(Protocol):
    """A selection rule."""

    def __call__(self, prob: Tensor, score: Tensor, eligible: Tensor, quota: Tensor) -> Tensor:
        """Chooses positions: bool [B, R].

        Args:
            prob: [B, R] confidence of the proposed token, what thresholds are compared with.
            score: [B, R] ranking, higher is better (often the same as `prob`).
            eligible: [B, R] bool, the open positions.
            quota: [B] how many positions are to be committed at least, as far as there are eligible ones.
        """
        ...


def rank(score: Tensor, eligible: Tensor) -> Tensor:
    """The rank of each position among the eligible ones of its row, best first: int64 [B, R]; ineligible ones come
    last."""
    # `stable` takes the lowest position on ties. Eligible scores of -inf must still precede ineligible ones.
    by_score = score.masked_fill(~eligible, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    by_both = eligible.gather(-1, by_score).int().argsort(dim=-1, descending=True, stable=True)
    order = by_score.gather(-1, by_both)
    index = torch.arange(score.shape[-1], device=score.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, index)


def best(score: Tensor, eligible: Tensor, count: Tensor) -> Tensor:
    """The `count` [B] best eligible positions of each row: bool [B, R]."""
    return (rank(score, eligible) < count.unsqueeze(-1)) & eligible


@dataclass(frozen=True)
class Static:
    """The `quota` best positions: low-confidence remasking of LLaDA and SDAR's static strategy."""

    def __call__(self, prob: Tensor, score: Tensor, eligible: Tensor, quota: Tensor) -> Tensor:
        return best(score, eligible, quota)


@dataclass(frozen=True)
class Leftmost:
    """The `quota` leftmost positions (SDAR's sequential strategy)."""

    def __call__(self, prob: Tensor, score: Tensor, eligible: Tensor, quota: Tensor) -> Tensor:
        return (eligible.long().cumsum(-1) <= quota.unsqueeze(-1)) & eligible


@dataclass(frozen=True)
class Threshold:
    """All positions above `tau` if these are at least `quota`, else the `quota` best.

    Quota 1 is Fast-dLLM v2's rule (the best position always goes), quota q is SDAR's dynamic strategy, quota 0 is a
    semi-activated block of D2F (nothing forced).

    Args:
        tau: the threshold on the confidence.
        strict: compare with > (Fast-dLLM v2, SDAR, D2F) rather than >= (Fast-dLLM v1).
    """

    tau: float
    strict: bool = True

    def __call__(self, prob: Tensor, score: Tensor, eligible: Tensor, quota: Tensor) -> Tensor:
        above = (prob > self.tau if self.strict else prob >= self.tau) & eligible
        enough = above.sum(-1, keepdim=True) >= quota.unsqueeze(-1)
        return torch.where(enough, above, best(score, eligible, quota))


@dataclass(frozen=True)
class EntropyBounded:
    """The largest set of lowest-entropy positions whose summed entropy stays below `gamma` nats, at least one.

    Expects `score` = negative entropy. SDAR (arXiv 2510.06303), strategy "entropy_bounded".
    """

    gamma: float

    def __call__(self, prob: Tensor, score: Tensor, eligible: Tensor, quota: Tensor) -> Tensor:
        ranks = rank(score, eligible)
        entropy = (-score).clamp(min=0).masked_fill(~eligible, 0)
        total = torch.zeros_like(entropy).scatter_(-1, ranks, entropy).cumsum(-1).gather(-1, ranks)
        return ((total < self.gamma) | (ranks == 0)) & eligible
