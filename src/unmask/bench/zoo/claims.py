"""What is claimed of the curves: each claim's figure from the recorded points, its bar, and whether it holds.

A point is `near` where its accuracy is at most `within` percent points below its baseline's, the least parallel point
of the baseline curve. Three figures are claimed:

    tpf              tokens per forward of the curve's fastest point that is near
    fewer_forwards   forwards of a reference point / forwards of the curve's fastest point that is near
    excess           how much less a point's samples exceed the source's entropy than the reference point's, in nats a
                     token (grammar alone; not below 0 is at least as good), at an entropy within `entropy` of it

With `same_as`, a point counts only if its texts are those of that curve's least parallel point (`same`: which share
of them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unmask.errors import UnmaskError, unknown

FIGURES = ("tpf", "fewer_forwards", "excess")
AT = ("slowest", "fastest")
DIGEST = 8
"""Characters of a text's digest."""
Point = Mapping[str, Any]
Curves = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim.

    Args:
        what: in words.
        figure: one of FIGURES.
        curve: whose.
        bar: the least figure that holds.
        within: see above; None: accuracy is not looked at.
        than: the curve of the reference point.
        than_at: which of its points: its least parallel one, or the fastest that is near; or its settings.
        at: settings of the curve's own point, for `excess`.
        same_as, same: see above.
        entropy: see above, as a share.
        least: accuracy in percent below which a baseline is no model to claim anything of.
    """

    what: str
    figure: str
    curve: str
    bar: float
    within: float | None = 1.0
    than: str | None = None
    than_at: Any = "slowest"
    at: dict[str, Any] = field(default_factory=dict)
    same_as: str | None = None
    same: float = 1.0
    entropy: float = 0.02
    least: float = 50.0

    def __post_init__(self) -> None:
        if self.figure not in FIGURES:
            raise unknown(f"figure of claim {self.what!r}", self.figure, FIGURES)
        if self.figure != "tpf" and self.than is None:
            raise UnmaskError(f"claim {self.what!r} needs than: the curve it is compared with")
        if not isinstance(self.than_at, Mapping) and self.than_at not in AT:
            raise unknown(f"than_at of claim {self.what!r}", self.than_at, AT)

    @property
    def curves(self) -> list[str]:
        """The curves it names."""
        return [name for name in (self.curve, self.than, self.same_as) if name is not None]


class MissingError(Exception):
    """Why a claim has no figure."""


def slowest(points: Sequence[Point]) -> Point:
    """The least parallel point; the first of several."""
    return min(points, key=lambda point: point["tpf"])


def near(points: Sequence[Point], accuracy: float, within: float) -> list[Point]:
    """The points that are at most `within` percent points below an accuracy."""
    return [point for point in points if point["accuracy"] >= accuracy - within - 1e-9]


def fastest(points: Sequence[Point]) -> Point:
    """The point of most tokens per forward."""
    return max(points, key=lambda point: point["tpf"])


def same_texts(point: Point, other: Point) -> int:
    """How many answers are token for token the same."""
    pairs = zip(_digests(point), _digests(other))
    return sum(a == b for a, b in pairs)


def _digests(point: Point) -> list[str]:
    text = point["digests"]
    return [text[i : i + DIGEST] for i in range(0, len(text), DIGEST)]


def forwards(point: Point) -> int:
    """All forwards but prefill."""
    return sum(count for kind, count in point["forwards"].items() if kind != "prefill")


def judge(claim: Claim, curves: Curves) -> dict[str, Any]:
    """The claim's figure and whether it holds.

    Args:
        curves: measured ones by name, each with `points` and the name of its `baseline`.

    Returns:
        `measured` and `holds` (both None where it cannot be said, `reason` tells why), and what they rest on: the
        point's `settings`, its `accuracy` and the baseline's, how many texts were the `same`.
    """
    head: dict[str, Any] = {"what": claim.what, "figure": claim.figure, "bar": claim.bar}
    none = dict.fromkeys(("measured", "holds", "settings", "accuracy", "baseline_accuracy", "same", "problems"))
    try:
        found = _excess(claim, curves) if claim.figure == "excess" else _speed(claim, curves)
    except MissingError as missing:
        return {**head, **none, "reason": str(missing)}
    measured = found["measured"]
    holds = measured is not None and measured >= claim.bar - 1e-9 and found.get("reason") is None
    return {**head, **none, "reason": None, **found, "holds": holds}


def _points(curves: Curves, name: str) -> Sequence[Point]:
    if name not in curves or not curves[name]["points"]:
        raise MissingError(f"{name} was not measured")
    return curves[name]["points"]


def _at(points: Sequence[Point], name: str, settings: Mapping[str, Any]) -> Point:
    for point in points:
        if point["settings"] == dict(settings):
            return point
    raise MissingError(f"{name} was not measured at {dict(settings)}")


def _baseline(curves: Curves, name: str) -> float:
    """Accuracy that a curve is held against: of its own least parallel point where it names no baseline."""
    baseline = curves[name]["baseline"]
    return float(slowest(_points(curves, baseline or name))["accuracy"])


def _speed(claim: Claim, curves: Curves) -> dict[str, Any]:
    points = list(_points(curves, claim.curve))
    base = _baseline(curves, claim.curve)
    if base < claim.least:
        raise MissingError(f"its baseline is right {base:g} % of the time, less than {claim.least:g} %")
    found: dict[str, Any] = {"baseline_accuracy": base, "problems": points[0]["problems"]}
    passing, same = points, {}
    if claim.same_as is not None:
        reference = slowest(_points(curves, claim.same_as))
        _comparable(points[0], reference)
        same = {id(point): same_texts(point, reference) for point in points}
        passing = [p for p in passing if same[id(p)] >= claim.same * p["problems"]]
    if not passing:
        return {**found, "measured": None, "same": max(same.values()), "reason": "no point has the same texts"}
    best = near(passing, base, claim.within) if claim.within is not None else passing
    if not best:
        top = max(point["accuracy"] for point in passing)
        reason = f"no point is within {claim.within:g} of the baseline's {base:g} %, the best has {top:g} %"
        return {**found, "measured": None, "reason": reason}
    point = fastest(best)
    measured = point["tpf"]
    if claim.than is not None:
        reference = _reference(claim, curves)
        _comparable(point, reference)
        measured = forwards(reference) / max(forwards(point), 1)
    about = {"settings": point["settings"], "accuracy": point["accuracy"], "same": same.get(id(point))}
    return {**found, **about, "measured": round(measured, 4)}


def _reference(claim: Claim, curves: Curves) -> Point:
    assert claim.than is not None
    points = _points(curves, claim.than)
    if isinstance(claim.than_at, Mapping):
        return _at(points, claim.than, claim.than_at)
    if claim.than_at == "slowest":
        return slowest(points)
    best = near(points, _baseline(curves, claim.than), 1.0 if claim.within is None else claim.within)
    if not best:
        raise MissingError(f"no point of {claim.than} is near its baseline")
    return fastest(best)


def _comparable(point: Point, other: Point) -> None:
    if point["problems"] != other["problems"]:
        raise MissingError(f"measured on {point['problems']} and on {other['problems']} problems")


def _excess(claim: Claim, curves: Curves) -> dict[str, Any]:
    point = _at(_points(curves, claim.curve), claim.curve, claim.at)
    reference = _reference(claim, curves)
    ratio = point["unigram_entropy"] / reference["unigram_entropy"]
    reason = None if abs(ratio - 1) <= claim.entropy else f"its entropy is {ratio:.3f} of the reference's"
    return {
        "measured": round(reference["excess"] - point["excess"], 5),
        "settings": point["settings"],
        "accuracy": point["accuracy"],
        "baseline_accuracy": reference["accuracy"],
        "problems": point["problems"],
        "reason": reason,
    }
