"""Several versions of a window in one forward: how their columns are laid out, and what a version is worth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.decoding.select import rank


def weave(x: Tensor, copies: int) -> Tensor:
    """Versions as rows [B * copies, W] to columns [B, W * copies], position by position, so that columns that no
    version uses lie at the end."""
    return x.view(-1, copies, x.shape[1]).transpose(1, 2).flatten(1)


def unweave(x: Tensor, copies: int) -> Tensor:
    """Columns [B, R] by version: [B, copies, W]; -1 where the loop has cut columns off at the end."""
    return F.pad(x, (0, -x.shape[1] % copies), value=-1).view(len(x), -1, copies).transpose(1, 2)


def worth(score: Tensor, masked: Tensor, share: float) -> Tensor:
    """The mean score of the least sure share of the masks of each version, one at least: [B, copies] of
    [B, copies, W]; 1 where nothing is masked."""
    count = masked.sum(-1)
    few = (count.double() * share).floor().long().clamp(min=1)
    rising = score.masked_fill(~masked, torch.inf).sort(-1).values
    lowest = torch.arange(rising.shape[-1], device=few.device) < torch.minimum(few, count)[..., None]
    mean = torch.where(lowest, rising, 0.0).sum(-1) / few
    return torch.where(count > 0, mean, 1.0)


def surest(score: Tensor, masked: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The columns of the `count` best masked positions of a window [B, W], best first, and which of them there are:
    both [B, count]."""
    column = rank(score, masked).argsort(-1)[:, :count]
    short = count - column.shape[1]
    return F.pad(column, (0, short)), F.pad(masked.gather(1, column), (0, short))
