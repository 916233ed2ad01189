"""Trajectories of Jacobi decoding as training data: which state of each block is shown as its noisy one.

Jacobi Forcing (arXiv 2512.14681; official code hao-ai-lab/JacobiForcing) trains on the states that a block went through
while it was decoded. How noisy a state is: the share of the block from its first wrong token on, as in the code (the
paper counts wrong tokens; the decoder has to redo all behind the first). The schedule asks block i for a noise of
W[i mod w] with W the w numbers evenly spaced from `low` to `high`, both included, and takes the nearest state, the
earlier one of two. On purpose different: places behind the end token count as right (the official measure compares what
the model says behind its end), and the first state is the one that decoding began with (the official recorder has
overwritten it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from unmask.errors import UnmaskError, unknown
from unmask.hashing import hashed, shift
from unmask.training.samples import Ints

Strategy = Literal["progressive", "random"]


@dataclass(frozen=True, slots=True)
class NoiseSchedule:
    """Which state of a block is shown.

    Args:
        window: after how many blocks the noise begins anew (w).
        low, high: least and most noise.
        strategy: "progressive", the noise rises through the window; "random", each block's is drawn from the window's.
        seed: of the draws.
    """

    window: int = 16
    low: float = 0.0
    high: float = 1.0
    strategy: Strategy = "progressive"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.window < 1:
            raise UnmaskError(f"window must be at least 1, got {self.window}")
        if not 0 <= self.low <= self.high <= 1:
            raise UnmaskError(f"noise needs 0 <= low <= high <= 1, got low {self.low}, high {self.high}")
        if self.strategy not in get_args(Strategy):
            raise unknown("strategy", self.strategy, get_args(Strategy))

    @classmethod
    def of(cls, options: Mapping[str, Any], seed: int) -> NoiseSchedule:
        """From the config's `drafts`; its seed, unless they name another."""
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                raise unknown("option of drafts", name, known)
        return cls(**{"seed": seed, **options})

    def targets(self, sample: int, blocks: int) -> NDArray[np.float64]:
        """The noise that each of the first `blocks` blocks of a sample is to have, [blocks]."""
        step = torch.arange(blocks)
        if self.strategy == "random":
            step = shift(hashed(torch.tensor(self.seed), sample, step), 1)
        return np.linspace(self.low, self.high, self.window)[(step % self.window).numpy()]


def nearest(states: Ints, final: Ints, target: float) -> int:
    """The number of the state, of [S, n] on the way to `final` [at most n], whose noise is nearest to the target."""
    return int(np.abs(noise_of(states, final) - target).argmin())


def noise_of(states: Ints, final: Ints) -> NDArray[np.float64]:
    """How noisy each of the states [S, n] is, [S]: the share of the block from the first token that differs from
    `final` on, where that is shorter than a block (the text ends in it) in the places it has."""
    size = states.shape[1]
    wrong = states[:, : len(final)] != final
    first = np.where(wrong.any(1), wrong.argmax(1), size)
    return (size - first) / size


def noisy_answer(row: Mapping[str, Any], sample: int, schedule: NoiseSchedule, block_size: int) -> list[int]:
    """The answer's tokens with each block as in the chosen state.

    Args:
        row: of a file of `unmask distil --trajectories`: response_ids, block_size, and blocks (states of each).
        sample: number of the row, the key of its draws.
        block_size: the recipe's.

    Raises:
        UnmaskError: what is wrong with the row, to stand behind its number.
    """
    if "blocks" not in row:
        raise UnmaskError("holds no trajectory; make the file with `unmask distil --trajectories`")
    answer, size, blocks = row["response_ids"], row["block_size"], row["blocks"]
    if size != block_size:
        raise UnmaskError(f"has a trajectory in blocks of {size} tokens, the recipe's block_size is {block_size}")
    if len(blocks) != -(-len(answer) // size) or any(len(state) != size for block in blocks for state in block):
        raise UnmaskError(f"holds {len(blocks)} blocks for an answer of {len(answer)} tokens in blocks of {size}")
    noisy: list[int] = []
    for number, target in enumerate(schedule.targets(sample, len(blocks)).tolist()):
        states, final = blocks[number], answer[number * size : (number + 1) * size]
        noisy += states[nearest(np.array(states), np.array(final), target)][: len(final)]
    return noisy
