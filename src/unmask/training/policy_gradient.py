"""Pure functions for training a sampler by the score of its own draws: draws, rewards, baselines, divergences.

Shape legend: N sampled rows of W tokens in groups of G; P scored places with M draws each; V vocabulary.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Norm = Literal["none", "mean", "loo", "mean_std"]
REMOVED = -1e6  # log-probability of the mask
TINY = 1e-30


def beta_draw(uniforms: Tensor, a: int) -> Tensor:
    """Beta(a, b) numbers [...] from uniform ones [..., a + b - 1]: the a-th smallest of them follows that law."""
    return uniforms.sort(-1).values[..., a - 1]


def beta_density(x: Tensor, a: int, b: int) -> Tensor:
    """The density of Beta(a, b) at x."""
    scale = math.factorial(a + b - 1) / (math.factorial(a - 1) * math.factorial(b - 1))
    return scale * x ** (a - 1) * (1 - x) ** (b - 1)


def token_law(logits_PV: Tensor, mask_id: int) -> Tensor:
    """Log-probabilities [P, V] of the tokens at masked places; the mask itself is never one."""
    is_mask = torch.arange(logits_PV.shape[-1], device=logits_PV.device) == mask_id
    return torch.where(is_mask, REMOVED, logits_PV).log_softmax(-1)


def inverse_cdf(log_probs_PV: Tensor, draw_PM: Tensor) -> Tensor:
    """M tokens for each row: the first whose cumulated probability exceeds the uniform number.

    `draw_PM` of integers is the tokens themselves, for recorded draws.
    """
    if not draw_PM.is_floating_point():
        return draw_PM
    total = log_probs_PV.detach().exp().double().cumsum(-1)
    bound = draw_PM * total[:, -1:]
    return torch.searchsorted(total, bound, right=True).clamp(max=total.shape[-1] - 1)


def divergence(teacher_PV: Tensor, student_PV: Tensor, reverse: float = 0.0) -> Tensor:
    """(1 - reverse) KL(teacher || student) + reverse KL(student || teacher), [P], in nats, of log-probabilities."""
    out = (1 - reverse) * F.kl_div(student_PV, teacher_PV, reduction="none", log_target=True).sum(-1)
    if reverse:
        out = out + reverse * F.kl_div(teacher_PV, student_PV, reduction="none", log_target=True).sum(-1)
    return out


def entropy(log_probs_PV: Tensor) -> Tensor:
    """[P], in nats."""
    return -(log_probs_PV.exp() * log_probs_PV).sum(-1)


def label_loss(logits_NW: Tensor, wanted_NW: Tensor, label: float) -> Tensor:
    """The sum over the wanted entries of the binary cross-entropy of the logits against the label in 0 .. 1."""
    each = F.binary_cross_entropy_with_logits(logits_NW, torch.full_like(logits_NW, label), reduction="none")
    return torch.where(wanted_NW, each, 0.0).sum()


def log_odds(logits: Tensor, eps: float = 0.0, unsmooth: float = 0.0) -> Tensor:
    """What a discriminator's logits say of log(target / student).

    Args:
        logits: of "this is the target's".
        eps: added to both probabilities, as the official code does; 0 gives the logit itself.
        unsmooth: the label smoothing e that is undone. Trained to its end on labels 1 - e and e, the probability is
            s = ((1 - e) p + e q) / (p + q), so log(p / q) = log((s - e) / (1 - e - s)).
    """
    if not eps and not unsmooth:
        return logits
    yes, no = (x.sigmoid() - unsmooth + eps for x in (logits, -logits))
    return yes.clamp_min(TINY).log() - no.clamp_min(TINY).log()


def rewards(
    logits_NW: Tensor, corrupted_NW: Tensor, clip: float = 8.0, eps: float = 0.0, unsmooth: float = 0.0
) -> Tensor:
    """The mean [N] over each row's corrupted places of the log odds, each at most `clip` in size; see `log_odds`.

    A row without corrupted places has 0.
    """
    odds = log_odds(logits_NW, eps, unsmooth).clamp(-clip, clip)
    return torch.where(corrupted_NW, odds, 0.0).sum(-1) / corrupted_NW.sum(-1).clamp_min(1)


def advantages(rewards_N: Tensor, group: int, norm: Norm, clip: float = 0.0) -> Tensor:
    """Rewards [N] less the baseline of their group of `group` neighbours.

    Args:
        rewards_N: groups lie one behind the other.
        norm: "loo": less the mean of the others, which keeps the gradient's mean as it is. "mean": less the mean of
            all, which shrinks it by 1 - 1 / group. "mean_std": that divided by the group's unbiased standard
            deviation (the official rule), which also turns it a little. "none": as they are.
        clip: largest size; 0: no limit.
    """
    r = rewards_N.view(-1, group)
    if norm != "none":
        r = r - r.mean(-1, keepdim=True)
    if norm == "loo":
        r = r * (group / (group - 1))
    if norm == "mean_std":
        r = r / (r.std(-1, keepdim=True) + 1e-8)
    return (r.clamp(-clip, clip) if clip else r).flatten()
