"""Checks of data that was read from a file: what a field has to be, and the error that names the one at fault."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from unmask.errors import UnmaskError


@dataclass(frozen=True)
class Check:
    """wanted: what a value has to be, in words; holds: whether it is that."""

    wanted: str
    holds: Callable[[Any], bool]


def fields(data: Any, wanted: dict[str, Check], where: str = "") -> dict[str, Any]:
    """The named fields of an object, each checked; further ones are left out.

    Raises:
        UnmaskError: the field (`where` before its name), and what it has to be.
    """
    for name, check in wanted.items():
        if name not in data:
            raise UnmaskError(f"{where}{name} is missing")
        if not check.holds(data[name]):
            raise UnmaskError(f"{where}{name} must be {check.wanted}, not {_short(data[name])}")
    return {name: data[name] for name in wanted}


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}..."


def _is_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:  # half a character, written as \ud800
        return False


def whole(low: int, high: int) -> Check:
    """A whole number in a range."""
    return Check(f"a whole number from {low} to {high}", lambda v: type(v) is int and low <= v <= high)


def count(high: int) -> Check:
    """A whole number from 0."""
    return whole(0, high)


def number(low: float, high: float | None = None) -> Check:
    """A finite number in a range."""
    span = f"at least {low:g}" if high is None else f"from {low:g} to {high:g}"
    most = 1e300 if high is None else high
    return Check(f"a number {span}", lambda v: type(v) in (int, float) and low <= v <= most)


def one_of(names: Collection[str]) -> Check:
    """One of some words."""
    return Check(f"one of {', '.join(names)}", lambda v: isinstance(v, str) and v in names)


def optional(check: Check) -> Check:
    """That, or null."""
    return Check(f"{check.wanted} or null", lambda v: v is None or check.holds(v))


def each(check: Check, least: int = 0) -> Check:
    """A list of that."""
    wanted = f"a list{' that is not empty' if least else ''}, each entry {check.wanted}"
    return Check(wanted, lambda v: isinstance(v, list) and len(v) >= least and all(map(check.holds, v)))


def table(check: Check) -> Check:
    """An object whose values are that."""
    wanted = f"an object, each value {check.wanted}"
    return Check(wanted, lambda v: isinstance(v, dict) and all(map(_is_text, v)) and all(map(check.holds, v.values())))


text = Check("text", _is_text)
scalar = Check(
    "a number, text, true, false or null",
    lambda v: v is None or isinstance(v, bool) or _is_text(v) or number(-1e300).holds(v),
)
record = Check("an object", lambda v: isinstance(v, dict))
