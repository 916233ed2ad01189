"""AUP, by hand."""

from __future__ import annotations

import math

import pytest

from unmask import UnmaskError
from unmask.bench.aup import aup, kept, weight

CURVE = [(2.0, 78.0), (1.0, 80.0), (4.0, 70.0)]


def test_two_points_by_hand() -> None:
    """4 tokens a forward at 70 % are more than 5 points below the first and do not count; W(78) = exp(-3 / 40)."""
    assert aup(CURVE) == pytest.approx(80 + (80 + 78 * 0.92774349) / 2, rel=1e-7)
    assert aup(CURVE) == pytest.approx(156.18199, abs=1e-4)


def test_what_others_reach_weighs_all_that_is_below_it() -> None:
    """W(80) = exp(-0.6), W(78) = exp(-0.66); the first point's rectangle is not weighed."""
    assert aup(CURVE, best=100.0) == pytest.approx(80 + (80 * 0.54881164 + 78 * 0.51685133) / 2, rel=1e-7)
    assert weight(90.0, 80.0) == 1.0


def test_a_point_that_does_not_count_leaves_its_neighbours_joined() -> None:
    assert kept([(3, 79.0), (1, 80.0), (2, 70.0)]) == [(1, 80.0), (3, 79.0)]
    assert aup([(1, 80.0), (2, 70.0), (3, 79.0)], alpha=0.0) == pytest.approx(80 + 2 * 79.5)
    assert aup([(1, 80.0), (2, 70.0), (3, 79.0)], alpha=0.0, offset=10.0) == pytest.approx(80 + 75 + 74.5)


def test_one_point_has_the_area_of_its_rectangle() -> None:
    assert aup([(1.02, 98.4)], best=99.0) == pytest.approx(1.02 * 98.4)


def test_without_a_penalty_and_a_cut_it_is_the_area_under_the_curve() -> None:
    assert aup([(1, 60.0), (3, 40.0)], alpha=0.0, offset=100.0) == pytest.approx(60 + 2 * 50)


def test_nothing_right_has_no_area_and_nonsense_is_refused() -> None:
    assert aup([(1, 0.0), (2, 0.0)]) == aup([(1, 0.0)], best=0.0) == 0.0
    for points in ([], [(0.0, 50.0)], [(1.0, 101.0)], [(math.inf, 50.0)]):
        with pytest.raises(UnmaskError, match="AUP needs"):
            aup(points)
