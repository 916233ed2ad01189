"""What a recipe is: from a batch of packed rows to what the network sees and what it must predict.

A recipe is a frozen dataclass of its paper's options with two members, `block` and `views`. Loss, loop, packing
and optimiser are common. Shapes: B rows of L tokens in, N rows of W tokens out (N counts the views).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.layout import Layout
from unmask.training.noise import Noise

IGNORE = -100


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rows, all int64 [B, L].

    Args:
        tokens: token ids.
        labels: the token where it is to be learnt, else -100.
        segment: number of the sample within the row; `layout.PAD` behind the last one.
        positions: index within the sample.
        sample: id of the sample in the data set, the key of its noise.
    """

    tokens: Tensor
    labels: Tensor
    segment: Tensor
    positions: Tensor
    sample: Tensor


@dataclass(frozen=True, slots=True)
class View:
    """One forward: what the network sees and what its rows are to predict.

    Args:
        tokens: [N, W] token ids.
        layout: of the tokens, [W] or [N, W].
        targets: [N, W], the token that the logits at this place must predict, -100 for none; any shift is done.
        weights: [N, W] float32, of each target's cross-entropy.
        normaliser: what the weighted sum is divided by, summed over the whole step.
    """

    tokens: Tensor
    layout: Layout
    targets: Tensor
    weights: Tensor
    normaliser: float


class Recipe(Protocol):
    """A way to train. The registry is in `recipes`."""

    @property
    def block(self) -> int:
        """Samples are padded to a multiple of this many tokens."""
        ...

    def views(self, batch: Batch, noise: Noise) -> View:
        """What the network sees of these rows."""
        ...


def previous_row_targets(batch: Batch, wanted: Tensor) -> Tensor:
    """Targets [B, L] of a model with token shift: row i-1 predicts token i where `wanted` (bool [B, L]).

    A token whose predecessor belongs to another sample cannot be predicted and is left out.
    """
    same = batch.segment[:, 1:] == batch.segment[:, :-1]
    targets = torch.where(wanted[:, 1:] & same, batch.tokens[:, 1:], IGNORE)
    return F.pad(targets, (0, 1), value=IGNORE)
