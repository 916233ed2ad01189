"""The options of LoRA, as the config's `lora` gives them; see `adapters`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import sqrt
from typing import Any

from unmask.errors import UnmaskError, unknown

ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraOptions:
    """What the config's `lora` holds."""

    rank: int
    alpha: float | None = None
    """The product is scaled by alpha / rank; None: alpha = rank."""
    dropout: float = 0.0
    """On what goes into the low-rank matrices."""
    targets: tuple[str, ...] = (ALL,)
    """Ends of the layers' names in the published checkpoint, or "all": every linear layer but the head and routers."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank)."""

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise UnmaskError(f"lora.rank must be a whole number of at least 1, got {self.rank!r}")
        if not 0 <= self.dropout < 1:
            raise UnmaskError(f"lora.dropout must be at least 0 and below 1, got {self.dropout}")
        if not self.targets or not all(isinstance(t, str) for t in self.targets):
            raise UnmaskError(f"lora.targets must be a list of names, got {self.targets!r}")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> LoraOptions:
        """From the config's entry.

        Raises:
            UnmaskError: an unknown option, or a value that cannot be.
        """
        known = {f.name for f in fields(cls)}
        for name in values:
            if name not in known:
                raise unknown("lora option", name, known)
        if "rank" not in values:
            raise UnmaskError("lora needs a rank")
        targets = values.get("targets", (ALL,))
        given = {**values, "targets": (targets,) if isinstance(targets, str) else tuple(targets)}
        for name in ("alpha", "dropout"):
            try:
                given[name] = None if given.get(name) is None else float(given[name])
            except (TypeError, ValueError):
                raise UnmaskError(f"lora.{name} must be a number, got {given[name]!r}") from None
        return cls(**{name: value for name, value in given.items() if value is not None})

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (sqrt(self.rank) if self.rslora else self.rank)
