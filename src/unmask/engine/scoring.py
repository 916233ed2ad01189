"""Scores in the engine: those of `sampling.score`, from logits in the model's dtype, by one pass over them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from unmask.decoding import sampling
from unmask.decoding.sampling import Draw, ScoreRule, Scores
from unmask.kernels import runs_kernels


def score(logits: Tensor, rule: ScoreRule, draw: Draw, number: Tensor, targets: Tensor) -> Scores:
    """`sampling.score` of logits [B, R, V] in any float dtype, which become `Scores.logits` as they are.

    Which code runs is a matter of what the host knows, so a step that is captured stays as it was captured. Top-p and
    top-k need a sort, and are left to torch.
    """
    filters = draw.filters and (draw.stochastic or rule.filter_greedy)
    if filters or not _kernels(logits):
        return replace(sampling.score(logits.float(), rule, draw, number, targets), logits=logits)
    from unmask.kernels import score as kernels

    made = kernels.score(
        logits,
        draw.temperature,
        draw.seed,
        number,
        targets,
        ban=rule.ban,
        ban_confidence=rule.ban_confidence,
        rank=rule.rank,
        stochastic=draw.stochastic,
        raw=rule.confidence == "raw",
    )
    return Scores(*made, logits)


def with_carry(logits: Tensor, rows: Tensor, carry: Tensor | None) -> Tensor:
    """Logits [B, R, V] with the carried ones [B, V] where rows [B, R] is -1. The given tensor may be written to."""
    if carry is None:
        return logits
    carry = carry.to(logits.dtype)
    if not _kernels(logits):
        return torch.where((rows == -1).unsqueeze(-1), carry.unsqueeze(1), logits)
    from unmask.kernels.carry import carry_into

    carry_into(logits, rows, carry if carry.stride(-1) == 1 else carry.contiguous())
    return logits


def _kernels(logits: Tensor) -> bool:
    """Whether the Triton kernels can take these logits; on the CPU only if its interpreter was asked for."""
    return runs_kernels(logits.is_cuda) and logits.numel() > 0 and logits.stride(-1) == 1
