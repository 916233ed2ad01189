"""Pearson's test for whether counts follow given probabilities, for seeds that are fixed: a test either always passes
or always fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from math import sqrt


def surprise(drawn: Iterable[Hashable], law: Mapping[Hashable, float]) -> float:
    """How many standard deviations the chi-square statistic lies above what is expected (Wilson-Hilferty).

    Args:
        drawn: the outcomes.
        law: probability of each possible outcome. Cells with an expected count below 5 are pooled.

    Returns:
        About normal with mean 0 and deviation 1 if the outcomes follow the law; infinite if an impossible one came up.
    """
    counts = Counter(drawn)
    total = sum(counts.values())
    if any(law.get(outcome, 0.0) <= 0 for outcome in counts):
        return float("inf")
    cells = [(counts[outcome], p * total) for outcome, p in law.items() if p * total >= 5]
    rest = [(counts[outcome], p * total) for outcome, p in law.items() if 0 < p * total < 5]
    if rest and sum(e for _, e in rest) > 0:
        cells.append((sum(n for n, _ in rest), sum(e for _, e in rest)))
    freedom = len(cells) - 1
    if freedom < 1:
        raise ValueError("one cell only: nothing is tested")
    statistic = sum((n - e) ** 2 / e for n, e in cells)
    spread = 2 / (9 * freedom)
    return ((statistic / freedom) ** (1 / 3) - (1 - spread)) / sqrt(spread)
