"""The errors a user can cause. Each message is one line: the value, what is allowed, the nearest name."""

from collections.abc import Iterable
from difflib import get_close_matches


class UnmaskError(ValueError):
    """A mistake in what the user gave. The command line prints the message and exits with code 2."""


class UnmaskWarning(UserWarning):
    """What a user has to know, though the run goes on. One line; the command line prints it to stderr."""


def unknown(kind: str, value: object, allowed: Iterable[str]) -> UnmaskError:
    """The error for a name that does not exist, with the nearest existing one.

    Args:
        kind: what the name should have been, for example "method".
        value: the name given.
        allowed: the names that exist.
    """
    names = sorted(allowed)
    close = get_close_matches(str(value), names, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return UnmaskError(f"unknown {kind} {value!r}{hint} (known: {', '.join(names)})")
