"""Trainer against decoder: the logits that a decoding run saw, beside those of a recipe's training row.

The run is a real one (`seen_when_decoding.moments`: plan, cache, commits and all). For each of its forwards the row is
made that trains on the same state: open positions masked, the others as decided, packed behind another sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from sample_rows import packed, row_logits, sample
from seen_when_decoding import Moment
from torch import Tensor

from unmask.lm import LM
from unmask.training.recipes.base import Batch, View

FILLER = 7
"""Stands where the text is not decided yet: no training row may show it to what is compared."""


def packed_state(moment: Moment, row: int, before: int) -> tuple[Batch, Tensor]:
    """A row of the run as a packed row of two samples, and what is masked in it (bool [1, L]).

    Args:
        before: tokens of the sample in front; half of its answer is masked.
    """
    state = moment[0]
    length, prompt = int(state.limit[row]), int(state.prompt[row])
    is_open = state.open[row, :length]
    tokens = torch.where(is_open, FILLER, state.canvas[row, :length]).tolist()
    front = sample([3, 4], list(range(5, 3 + before)), 0)
    batch = packed([front, sample(tokens[:prompt], tokens[prompt:], 1)], before + length)
    masked = torch.cat([torch.arange(before) % 2 == 1, is_open])[None]
    return batch, masked & (batch.prompt <= batch.positions)


def greatest_difference(
    lm: LM,
    run: Iterable[Moment],
    view_of: Callable[[Batch, Tensor], View],
    *,
    before: int = 8,
    row_of: Callable[[int, int], int] | None = None,
) -> tuple[int, float]:
    """How many predictions of open positions were compared, and the largest difference between two logits.

    Args:
        view_of: the recipe's view of a batch with this mask.
        before: see `packed_state`.
        row_of: (position, tokens of the row) to where the row that speaks of it is, both within the sample; None: the
            position, or the one before it under token shift.
    """
    count, largest = 0, 0.0
    for moment in run:
        state, forward, logits = moment
        for row in range(len(state.prompt)):
            batch, masked = packed_state(moment, row, before)
            view = view_of(batch, masked)
            ours = row_logits(lm.model, replace(view, layout=view.layout.batch(1)))[0]
            for column, position in enumerate(forward.targets[row].tolist()):
                if position < 0 or not state.open[row, position]:
                    continue
                place = position - lm.family.shift if row_of is None else row_of(position, batch.tokens.shape[1])
                largest = max(largest, float((ours[before + place] - logits[row, column]).abs().max()))
                count += 1
    return count, largest
