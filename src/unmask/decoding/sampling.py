"""From logits to scores: which token each asked row proposes, and how sure it is.

All of it is a batched function of tensors. Random numbers are a hash of (seed, forward, position): a request draws
the same tokens alone, in any batch and on any device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from typing import Literal

import torch
from torch import Tensor

from unmask.hashing import hashed, shift

Rank = Literal["prob", "margin", "entropy"]


@dataclass(frozen=True)
class ScoreRule:
    """How a method wants its scores made.

    Args:
        confidence: "filtered" takes probabilities after temperature and top-p/top-k (Dream, D2F, Fast-dLLM v2,
            SDAR's script), "raw" takes those of the untouched logits (LLaDA, SDAR's evaluation).
        rank: what `Scores.score` is: the probability, the margin between the two best, or the negative entropy in nats.
        filter_greedy: apply top-p/top-k to the confidences at temperature 0 too (Dream and D2F do).
        filters: the order in which the two filters act.
        filter_first: filter before the temperature divides, not after.
        ban: token ids that are never proposed.
        ban_confidence: token ids whose logits are removed for the confidence alone (LLaDA's confidence_eos_eot_inf).
        soft: temperature of the expected embedding wanted as `Scores.soft`; None: not wanted.
    """

    confidence: Literal["filtered", "raw"] = "filtered"
    rank: Rank = "prob"
    filter_greedy: bool = False
    filters: tuple[str, str] = ("top_p", "top_k")
    filter_first: bool = False
    ban: tuple[int, ...] = ()
    ban_confidence: tuple[int, ...] = ()
    soft: float | None = None


@dataclass(frozen=True)
class Draw:
    """Sampling settings of each row: temperature [B], top_p [B] (1 = off), top_k [B] (0 = off), seed [B].

    Which of them any row uses, `stochastic` and `filters`, is read back to the host once, here, so that no forward has
    to ask; `used` gives both where they are known.
    """

    temperature: Tensor
    top_p: Tensor
    top_k: Tensor
    seed: Tensor
    stochastic: bool = field(init=False)
    filters: frozenset[str] = field(init=False)
    used: InitVar[tuple[bool, frozenset[str]] | None] = None

    def __post_init__(self, used: tuple[bool, frozenset[str]] | None) -> None:
        if used is None:
            filters = {"top_p": bool((self.top_p < 1).any()), "top_k": bool((self.top_k > 0).any())}
            used = bool((self.temperature > 0).any()), frozenset(name for name, asked in filters.items() if asked)
        object.__setattr__(self, "stochastic", used[0])
        object.__setattr__(self, "filters", used[1])

    def map(self, change: Callable[[Tensor], Tensor]) -> Draw:
        """The same change made to each tensor. What no row uses any more still counts as used, which changes nothing
        but the time."""
        tensors = (self.temperature, self.top_p, self.top_k, self.seed)
        return Draw(*map(change, tensors), used=(self.stochastic, self.filters))


@dataclass(frozen=True)
class Scores:
    """What a method sees of a forward, per asked row: all [B, R], but `logits` [B, R, V] (float32, guidance applied).

    token: the proposal (sampled at temperature > 0); greedy: the best allowed token; prob: confidence of `token`;
    score: the ranking the method asked for. soft: [B, R, C], the expected input embedding, if it was asked for.
    """

    token: Tensor
    greedy: Tensor
    prob: Tensor
    score: Tensor
    logits: Tensor
    soft: Tensor | None = None


def rank_of(name: str) -> Rank:
    """What `ScoreRule.rank` is for a method's option; options that rank otherwise need the probability alone."""
    return "margin" if name == "margin" else "entropy" if name == "entropy" else "prob"


def uniform(seed: Tensor, step: Tensor, position: Tensor, salt: int = 0) -> Tensor:
    """Uniform numbers in (0, 1), float64 [B, R], a pure function of seed [B], step [B] or [B, R], position [B, R] and
    salt."""
    step = step.unsqueeze(-1) if step.dim() == 1 else step
    bits = hashed(seed.unsqueeze(-1), step, position, salt)
    return (shift(bits, 12).double() + 0.5) * 2.0**-52


def _top_p(logits: Tensor, top_p: Tensor) -> Tensor:
    """Keeps the smallest set of tokens whose probability reaches top_p; the one that crosses it stays."""
    values, order = logits.sort(dim=-1, descending=True)
    total = values.softmax(-1).cumsum(-1)
    drop = torch.zeros_like(total, dtype=torch.bool)
    drop[..., 1:] = total[..., :-1] > top_p[:, None, None]
    drop &= top_p[:, None, None] < 1
    return logits.masked_fill(torch.zeros_like(drop).scatter_(-1, order, drop), -torch.inf)


def _top_k(logits: Tensor, top_k: Tensor) -> Tensor:
    size = logits.shape[-1]
    k = torch.where(top_k > 0, top_k, size).clamp(max=size)
    lowest = logits.sort(dim=-1, descending=True).values.gather(
        -1, (k - 1)[:, None, None].expand(-1, logits.shape[1], 1)
    )
    return logits.masked_fill(logits < lowest, -torch.inf)


def filtered(logits: Tensor, draw: Draw, order: tuple[str, str]) -> Tensor:
    """Logits [B, R, V] with what top-p and top-k drop at -inf."""
    for name in order:
        if name == "top_p" and name in draw.filters:
            logits = _top_p(logits, draw.top_p)
        if name == "top_k" and name in draw.filters:
            logits = _top_k(logits, draw.top_k)
    return logits


def _without(logits: Tensor, ids: tuple[int, ...]) -> Tensor:
    if not ids:
        return logits
    logits = logits.clone()
    for i in ids:  # a list of ids would have to be copied to the device, which a captured graph cannot do
        logits[..., i].fill_(-torch.inf)
    return logits


def _sample(logits: Tensor, u: Tensor) -> Tensor:
    """One token per row by inversion: the first whose cumulated probability exceeds u."""
    total = logits.softmax(-1).double().cumsum(-1)
    bound = (u * total[..., -1]).unsqueeze(-1)
    # A token of probability 0 adds nothing to the sum, so it is never the first to exceed the bound.
    return torch.searchsorted(total, bound, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def score(logits: Tensor, rule: ScoreRule, draw: Draw, step: Tensor, targets: Tensor) -> Scores:
    """Scores of logits [B, R, V] for the canvas positions `targets` [B, R], drawn under the numbers `step` [B] or
    [B, R].

    Banned ids keep their share in the confidence (the official codes do not ban at all), they are only never proposed.
    """
    allowed = _without(logits, rule.ban)
    greedy = allowed.argmax(-1)
    hot, stochastic = draw.temperature > 0, draw.stochastic
    heat = torch.where(hot, draw.temperature, 1.0)[:, None, None]
    warm = logits / heat if stochastic else logits
    if stochastic or rule.filter_greedy:
        kept = filtered(logits if rule.filter_first else warm, draw, rule.filters)
        kept = kept / heat if rule.filter_first else kept
        if not rule.filter_greedy:
            kept = torch.where(hot[:, None, None], kept, warm)
        warm = kept
    token = greedy
    if stochastic:
        # The filters may have left nothing but a banned id; then the best allowed token is taken.
        pool = _without(warm, rule.ban)
        empty = torch.isinf(pool).all(-1)
        drawn = _sample(torch.where(empty[..., None], allowed, pool), uniform(draw.seed, step, targets))
        token = torch.where(hot[:, None] & ~empty, drawn, greedy)
    basis = logits if rule.confidence == "raw" else warm
    probs = _without(basis, rule.ban_confidence).softmax(-1)
    prob = probs.gather(-1, token.unsqueeze(-1)).squeeze(-1)
    return Scores(token, greedy, prob, _ranking(probs, prob, rule.rank), logits)


def _ranking(probs: Tensor, prob: Tensor, name: Rank) -> Tensor:
    if name == "margin":
        top = probs.topk(2, dim=-1).values
        return top[..., 0] - top[..., 1]
    if name == "entropy":
        return (probs * (probs + 1e-10).log()).sum(-1)
    return prob
