"""How far rows look by the load: what a step of so many tokens takes, and what forwards that look so far have decided.

Looking further decides more tokens a forward and makes the forward larger. While a step waits for the weights that
costs next to nothing; with many rows each token takes its time, and beyond some number of rows one token a row is the
fastest there is. So all rows are told the reach with which, by what is known, most tokens are decided per unit of time:

    rate(reach) = rows * tokens a forward / time of a step of rows * columns a forward

Times are measured when the engine starts; tokens and columns are counted while requests decode. A reach of which too
little is known is tried by one row at a time, and counts fade, so that a reach given up long ago is tried again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

ENOUGH = 32
"""Forwards after which the tokens that a reach decides count as known."""
FADING = 4096
"""Steps after which all counts are halved."""
BETTER = 1.05
"""How much faster another reach has to be for rows to change over."""


@dataclass
class _Count:
    """Sums over forwards that looked so far."""

    forwards: float = 0.0
    tokens: float = 0.0
    columns: float = 0.0


@dataclass
class _Row:
    """What a request is told; until it has decided `due` tokens it may still do what it was told before. Tokens and
    forwards so far, columns of its next forward."""

    reach: int
    due: int = 0
    tokens: int = 0
    forwards: int = 0
    columns: int = 0


class Load:
    """Chooses the reach of each row in work.

    Args:
        reaches: those there are, the least first (`Method.reaches`).
        times: milliseconds of a step by its tokens.
        grain: tokens within which a row takes notice of what it is told.

    Attributes:
        best: what rows are told that nothing is tried on.
        trial: of the rows last chosen for, the one that something is tried on.
    """

    def __init__(self, reaches: Sequence[int], times: Mapping[int, float], grain: int) -> None:
        self.reaches, self.grain = tuple(reaches), grain
        self.times = sorted(times.items())
        self.counts = {reach: _Count() for reach in reaches}
        self._know_the_least()
        self.best = reaches[-1]
        self.trial: Hashable | None = None
        self._rows: dict[Hashable, _Row] = {}
        self._steps = 0

    def milliseconds(self, tokens: float) -> float:
        """Time of a step of so many tokens, along straight lines between what was measured. Below that reading the
        weights is all there is; above, time grows with the tokens."""
        at = bisect_left(self.times, (tokens, 0.0))
        if at == 0:
            return self.times[0][1]
        low, early = self.times[at - 1]
        if at == len(self.times):
            return early * tokens / low
        high, late = self.times[at]
        return early + (late - early) * (tokens - low) / (high - low)

    def rate(self, reach: int, rows: int) -> float | None:
        """Tokens a millisecond of so many rows, None where too little is known."""
        count = self.counts[reach]
        if count.forwards < ENOUGH:
            return None
        return rows * count.tokens / count.forwards / self.milliseconds(rows * count.columns / count.forwards)

    def weigh(self, rows: int) -> dict[int, float]:
        """Sets `best` for so many rows; the rates that are known."""
        rates = {reach: rate for reach in self.reaches if (rate := self.rate(reach, rows)) is not None}
        fastest = max(rates, key=lambda reach: rates[reach], default=self.best)
        if rates.get(fastest, 0.0) > BETTER * rates.get(self.best, 0.0):
            self.best = fastest
        return rates

    def choose(self, rows: Sequence[Hashable]) -> list[int]:
        """What each row of a step is told; all have entered."""
        self._fade()
        rates = self.weigh(len(rows))
        unknown = [reach for reach in self.reaches if reach not in rates]
        self.trial = None
        if unknown:
            self.trial = next((row for row in rows if self._rows[row].reach in unknown), rows[-1])
        for row in rows:
            held = self._rows[row]
            if row != self.trial:
                self._tell(held, self.best)
            elif held.reach not in unknown:
                self._tell(held, unknown[-1])
        return [self._rows[row].reach for row in rows]

    def enter(self, row: Hashable) -> int:
        """What a row is told from its first forward on."""
        unknown = [reach for reach in self.reaches if self.counts[reach].forwards < ENOUGH]
        tried = any(held.reach in unknown for held in self._rows.values())
        self._rows[row] = _Row(unknown[-1] if unknown and not tried else self.best)
        return self._rows[row].reach

    def saw(self, row: Hashable, tokens: int, forwards: int, columns: int) -> None:
        """A row's status: tokens decided and forwards made so far, columns of its next forward."""
        held = self._rows.get(row)
        if held is None:
            return
        more = forwards - held.forwards
        if more and held.tokens >= held.due:  # what a prefill decides is nobody's
            count = self.counts[held.reach]
            count.forwards += more
            count.tokens += tokens - held.tokens
            count.columns += more * held.columns
        held.tokens, held.forwards, held.columns = tokens, forwards, columns

    def forget(self, row: Hashable) -> None:
        """The row has left."""
        self._rows.pop(row, None)

    def _tell(self, held: _Row, reach: int) -> None:
        if held.reach != reach:
            held.reach, held.due = reach, held.tokens + self.grain

    def _know_the_least(self) -> None:
        # One token a forward decides one token a forward: nobody has to try that.
        if self.reaches[0] == 1 and self.counts[1].forwards < ENOUGH:
            self.counts[1] = _Count(ENOUGH, ENOUGH, ENOUGH)

    def _fade(self) -> None:
        self._steps += 1
        if self._steps % FADING == 0:
            for count in self.counts.values():
                count.forwards, count.tokens, count.columns = count.forwards / 2, count.tokens / 2, count.columns / 2
            self._know_the_least()
