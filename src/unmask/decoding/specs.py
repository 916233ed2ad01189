"""Rules given as text: `name`, or `name:key=value,key=value`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from math import isfinite
from typing import Any, TypeVar

from unmask.errors import UnmaskError, unknown

C = TypeVar("C", bound=type[Any])


class Specs:
    """The rules of one kind by name, and the reader of their texts.

    Args:
        kind: what a rule is called in messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.known: dict[str, type[Any]] = {}

    def add(self, name: str) -> Callable[[C], C]:
        """Class decorator: makes a frozen dataclass known under `name`."""

        def register(cls: C) -> C:
            self.known[name] = cls
            return cls

        return register

    def parse(self, given: Any) -> Any:
        """The rule that a text describes; rules and None stay what they are.

        Raises:
            UnmaskError: an unknown name or key (with the nearest), or a value of the wrong type.
        """
        if given is None or type(given) in self.known.values():
            return given
        name, _, rest = str(given).partition(":")
        if not isinstance(given, str) or name not in self.known:
            raise unknown(self.kind, name, self.known)
        return self.known[name](**dict(self._pair(name, part) for part in rest.split(",") if part))

    def _pair(self, name: str, part: str) -> tuple[str, Any]:
        defaults = {f.name: f.default for f in fields(self.known[name])}
        key, equals, text = (piece.strip() for piece in part.partition("="))
        if key not in defaults:
            raise unknown(f"option of {self.kind} {name}", key, defaults)
        if not equals:
            raise UnmaskError(f"{self.kind} {name}: {part!r} is not of the form key=value")
        return key, _convert(f"{self.kind} {name}: {key}", text, defaults[key])


def _convert(what: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise UnmaskError(f"{what} must be true or false, not {text!r}")
        return text.lower() == "true"
    if isinstance(default, str):
        return text
    try:
        value = type(default)(text)
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise UnmaskError(f"{what} must be a {'whole ' if isinstance(default, int) else ''}number, not {text!r}")
    return value
