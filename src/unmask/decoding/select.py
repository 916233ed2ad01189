"""Selection rules: which open positions of a window are committed after a forward.

A rule is a frozen object called with batched tensors; it knows nothing of windows, caches or models. All rules rank
by `score`, take ties at the lowest position, never choose a position that is not eligible, and commit at least
`quota` positions where there are as many. A rule that remembers earlier forwards of a block says so (`per_block`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from unmask.decoding.sampling import Rank
from unmask.decoding.specs import Specs

RULES = Specs("selection rule")


class Rule(Protocol):
    """A selection rule. `rank` is what `score` has to be; None: any ranking will do."""

    rank: ClassVar[Rank | None]

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
    return (_counted if score.shape[-1] <= COUNTED else _sorted)(score, eligible)


COUNTED = 128
"""Positions up to which ranks are counted: one small kernel of a step of the engine instead of several that sort."""


def _counted(score: Tensor, eligible: Tensor) -> Tensor:
    index = torch.arange(score.shape[-1], device=score.device)
    value = score.masked_fill(~eligible, -torch.inf)
    own, other = value.unsqueeze(-1), value.unsqueeze(-2)
    # The lowest position on ties.
    better = (other > own) | ((other == own) & (index < index.unsqueeze(-1)))
    mine, others = eligible.unsqueeze(-1), eligible.unsqueeze(-2)
    return torch.where(mine == others, better, others).sum(-1)


def _sorted(score: Tensor, eligible: Tensor) -> Tensor:
    # `stable` takes the lowest position on ties. Eligible scores of -inf must still precede ineligible ones.
    by_score = score.masked_fill(~eligible, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    by_both = eligible.gather(-1, by_score).int().argsort(dim=-1, descending=True, stable=True)
    order = by_score.gather(-1, by_both)
    index = torch.arange(score.shape[-1], device=score.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, index)


def best(score: Tensor, eligible: Tensor, count: Tensor) -> Tensor:
    """The `count` [B] best eligible positions of each row: bool [B, R]."""
    return (rank(score, eligible) < count.unsqueeze(-1)) & eligible


def _at_least(chosen: Tensor, score: Tensor, eligible: Tensor, quota: Tensor) -> Tensor:
    """`chosen` where these are `quota` positions or more, else the `quota` best."""
    enough = chosen.sum(-1, keepdim=True) >= quota.unsqueeze(-1)
    return torch.where(enough, chosen, best(score, eligible, quota))


@RULES.add("static")
@dataclass(frozen=True)
class Static:
    """The `quota` best positions: low-confidence remasking of LLaDA and SDAR's static strategy."""

    rank: ClassVar[Rank | None] = None

    def __call__(self, prob: Tensor, score: Tensor, eligible: Tensor, quota: Tensor) -> Tensor:
        return best(score, eligible, quota)


@RULES.add("sequential")
@dataclass(frozen=True)
class Leftmost:
    """The `quota` leftmost positions (SDAR's sequential strategy)."""

    rank: ClassVar[Rank | None] = None

    def __call__(self, prob: Tensor, score: Tensor, eligible: Tensor, quota: Tensor) -> Tensor:
        return (eligible.long().cumsum(-1) <= quota.unsqueeze(-1)) & eligible


@RULES.add("threshold")
@dataclass(frozen=True)
class Threshold:
    """All positions above `tau` if these are at least `quota`, else the `quota` best.

    Quota 1 is Fast-dLLM v2's rule (the best position always goes), quota q is SDAR's dynamic strategy, quota 0 is a
    semi-activated block of D2F (nothing forced).

    Args:
        tau: the threshold on the confidence.
        strict: compare with > (Fast-dLLM v2, SDAR, D2F) rather than >= (Fast-dLLM v1).
    """

    rank: ClassVar[Rank | None] = None

    tau: float | Tensor = 0.9
    strict: bool = True

    def __call__(self, prob: Tensor, score: Tensor, eligible: Tensor, quota: Tensor) -> Tensor:
        above = (prob > self.tau if self.strict else prob >= self.tau) & eligible
        return _at_least(above, score, eligible, quota)


@RULES.add("entropy_bounded")
@dataclass(frozen=True)
class EntropyBounded:
    """The largest set of lowest-entropy positions whose summed entropy stays below `gamma` nats, at least one.

    Expects `score` = negative entropy. SDAR (arXiv 2510.06303), strategy "entropy_bounded".
    """

    rank: ClassVar[Rank | None] = "entropy"

    gamma: float = 0.1

    def __call__(self, prob: Tensor, score: Tensor, eligible: Tensor, quota: Tensor) -> Tensor:
        ranks = rank(score, eligible)
        entropy = (-score).clamp(min=0).masked_fill(~eligible, 0)
        total = torch.zeros_like(entropy).scatter_(-1, ranks, entropy).cumsum(-1).gather(-1, ranks)
        return ((total < self.gamma) | (ranks == 0)) & eligible


@RULES.add("factor")
@dataclass(frozen=True)
class Factor:
    """The r surest positions, r the largest with (r + 1)(1 - c(r)) < factor.

    Fast-dLLM (arXiv 2505.22618). The released code accepts the last candidate unseen when it gets that far; this is the
    paper's formula.
    """

    rank: ClassVar[Rank | None] = None
    factor: float = 1.0

    def __call__(self, prob: Tensor, score: Tensor, eligible: Tensor, quota: Tensor) -> Tensor:
        ranks = rank(prob, eligible)
        # c falls and the bound rises with the rank, so the positions that pass are a prefix of the ranking.
        passes = (prob > 1 - self.factor / (ranks + 2)) & eligible
        return _at_least(passes, score, eligible, quota)


@RULES.add("entropy")
@dataclass(frozen=True)
class Entropy:
    """All positions whose entropy in nats is at most `tau`: dParallel (arXiv 2509.26488)."""

    rank: ClassVar[Rank | None] = "entropy"
    tau: float = 0.5

    def __call__(self, prob: Tensor, score: Tensor, eligible: Tensor, quota: Tensor) -> Tensor:
        return _at_least((score >= -self.tau) & eligible, score, eligible, quota)


@RULES.add("margin")
@dataclass(frozen=True)
class Margin:
    """All positions whose two best probabilities differ by at least `tau`."""

    rank: ClassVar[Rank | None] = "margin"
    tau: float = 0.8

    def __call__(self, prob: Tensor, score: Tensor, eligible: Tensor, quota: Tensor) -> Tensor:
        return _at_least((score >= self.tau) & eligible, score, eligible, quota)


@RULES.add("hierarchical")
@dataclass(frozen=True)
class Hierarchical:
    """The best position of each run of open positions if it is above `low`, and all above `tau`: dInfer (arXiv
    2510.08666). So long runs are split near their surest token and what remains depends less on each other."""

    rank: ClassVar[Rank | None] = None
    tau: float | Tensor = 0.92
    low: float = 0.62

    def __call__(self, prob: Tensor, score: Tensor, eligible: Tensor, quota: Tensor) -> Tensor:
        before = torch.zeros_like(eligible)
        before[:, 1:] = eligible[:, :-1]
        run = (eligible & ~before).long().cumsum(-1).masked_fill(~eligible, 0)  # 0: in no run
        lowest = torch.full_like(prob, -torch.inf)
        top = lowest.scatter_reduce(-1, run, prob.masked_fill(~eligible, -torch.inf), "amax").gather(-1, run)
        index = torch.arange(prob.shape[-1], device=prob.device).expand_as(run)
        at_top = eligible & (prob == top)
        none = torch.full_like(run, prob.shape[-1])
        first = none.scatter_reduce(-1, run, torch.where(at_top, index, none), "amin").gather(-1, run)
        leads = at_top & (index == first) & (prob > self.low)
        return leads | ((prob > self.tau) & eligible) | best(score, eligible, quota)


@RULES.add("credit")
@dataclass(frozen=True)
class Credit:
    """Threshold selection on logits to which tokens that led before get credit: CreditDecoding (arXiv 2510.06133).

    At each forward of a block the credit of every token decays by `beta`, that of the leading one grows by its
    probability to the power `gamma`, and alpha * log(1 + credit) is added to the logits: token and confidence come from
    the sum. Credit belongs to one block and begins at zero in it.
    """

    rank: ClassVar[Rank | None] = None
    per_block: ClassVar[bool] = True
    tau: float | Tensor = 0.9
    strict: bool = False
    alpha: float = 0.7
    gamma: float = 0.2
    beta: float = 0.8

    def __call__(self, prob: Tensor, score: Tensor, eligible: Tensor, quota: Tensor) -> Tensor:
        return Threshold(self.tau, self.strict)(prob, score, eligible, quota)

    def adjust(
        self,
        memory: dict[str, Tensor],
        first: Tensor,
        column: Tensor,
        eligible: Tensor,
        size: int,
        logits: Tensor,
        mask_id: int,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """New memory and logits.

        Args:
            first: [B], where the block in work begins; credit starts anew when it moves.
            column: [B, R], place of each row in the block; rows with `eligible` [B, R] False are left as they are.
            size: of the block.
            logits: [B, R, V].
            mask_id: gets no credit, for it is never proposed.
        """
        logits = logits.float()
        rows, vocab = logits.shape[0], logits.shape[-1]
        shape = (rows, size, vocab)
        old = memory.get("credit", logits.new_zeros(shape))
        same = memory.get("credit_first", torch.full_like(first, -1)) == first
        credit = torch.where(same[:, None, None], old * self.beta, 0.0)
        probs = logits.softmax(-1)
        probs[..., mask_id].fill_(0)
        lead = probs.max(-1)
        gain = torch.where(eligible, lead.values**self.gamma, 0.0)
        row = torch.arange(rows, device=logits.device)[:, None].expand_as(column)
        place = column.clamp(0, size - 1)
        credit = credit.index_put((row, place, lead.indices), gain, accumulate=True)
        bonus = self.alpha * credit[row, place].log1p()
        return memory | {"credit": credit, "credit_first": first}, torch.where(
            eligible[..., None], logits + bonus, logits
        )
