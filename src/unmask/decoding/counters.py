"""What is counted, defined once for the Python result, the command line and the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from unmask.decoding.forward import KINDS

NAMES = KINDS


@dataclass(slots=True)
class Counters:
    """Counts of one request, or sums over several.

    tokens: ids returned, prompt excluded, up to and including the first end token. forwards: model calls by kind, as
    this row took part in them. seconds: wall-clock time of the decoding, prefill included (of the whole batch the row
    was in).
    """

    tokens: int = 0
    forwards: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NAMES, 0))
    seconds: float = 0.0

    @property
    def decode_forwards(self) -> int:
        """All forwards but prefill."""
        return sum(self.forwards.values()) - self.forwards["prefill"]

    @property
    def tpf(self) -> float:
        """Tokens per forward, prefill not counted."""
        return self.tokens / max(self.decode_forwards, 1)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def add(self, other: Counters) -> None:
        """Adds counts and times: aggregates are sums over sums."""
        self.tokens += other.tokens
        self.seconds += other.seconds
        for name, count in other.forwards.items():
            self.forwards[name] += count

    def as_dict(self) -> dict[str, Any]:
        used = {name: count for name, count in self.forwards.items() if count}
        return {
            "tokens": self.tokens,
            "forwards": used,
            "tpf": round(self.tpf, 4),
            "seconds": round(self.seconds, 4),
            "tokens_per_second": round(self.tokens_per_second, 2),
        }
