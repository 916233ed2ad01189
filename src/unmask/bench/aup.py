"""AUP, accuracy under parallelism: one number for a curve of accuracy against tokens per forward (TPF).

Paper: "d3LLM: Ultra-Fast Diffusion LLM using Pseudo-Trajectory Distillation" (arXiv 2601.07568; official code
hao-ai-lab/d3LLM). Of pairs (rho_i TPF, y_i accuracy in percent), sorted by rho, those with y_i >= y_1 - offset are
kept, y_1 being the accuracy of the least parallel point. Then

    AUP = rho_1 y_1 + sum over i >= 2 of (rho_i - rho_{i-1}) (y_i W(y_i) + y_{i-1} W(y_{i-1})) / 2
    W(y) = min(exp(-alpha (1 - y / y_max)), 1)

with y_max the best accuracy of all methods on the task: the area under the curve, where accuracy that was lost weighs
less and less. A method of one point has the area of its rectangle. On purpose different from the official code: a curve
whose fastest point is below the cut is no error, the point is left out like any other.

    from unmask.bench.aup import aup
    aup([(1.0, 98.4), (3.1, 98.0), (5.8, 97.2)], best=98.4)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from unmask.errors import UnmaskError

ALPHA = 3.0
OFFSET = 5.0


def weight(accuracy: float, best: float, alpha: float = ALPHA) -> float:
    """W(y): 1 for the best accuracy and above, less for what is below it."""
    return min(math.exp(-alpha * (1 - accuracy / best)), 1.0)


def kept(points: Sequence[tuple[float, float]], offset: float = OFFSET) -> list[tuple[float, float]]:
    """The points (TPF, accuracy) that count, by TPF: none that is more than `offset` below the first."""
    ordered = sorted(points)
    return [point for point in ordered if point[1] >= ordered[0][1] - offset]


def aup(
    points: Sequence[tuple[float, float]], best: float | None = None, *, alpha: float = ALPHA, offset: float = OFFSET
) -> float:
    """The area under a curve.

    Args:
        points: (TPF, accuracy in percent), in any order.
        best: the best accuracy of all methods on the task; None: that of these points.
        alpha: how fast lost accuracy loses weight.
        offset: points that are so much (in percent) below the least parallel one do not count.

    Returns:
        TPF times percent; 0 where nothing was ever right.

    Raises:
        UnmaskError: no points, a TPF that is not above 0, an accuracy outside 0 .. 100.
    """
    if not points:
        raise UnmaskError("AUP needs at least one point")
    for rate, accuracy in points:
        if not (rate > 0 and math.isfinite(rate) and 0 <= accuracy <= 100):
            raise UnmaskError(f"AUP needs TPF above 0 and accuracy from 0 to 100, got {rate:g} and {accuracy:g}")
    top = max(accuracy for _, accuracy in points) if best is None else best
    if top <= 0:
        return 0.0
    counted = kept(points, offset)
    area = counted[0][0] * counted[0][1]
    for (slower, before), (faster, accuracy) in pairwise(counted):
        heights = accuracy * weight(accuracy, top, alpha) + before * weight(before, top, alpha)
        area += (faster - slower) * heights / 2
    return area
