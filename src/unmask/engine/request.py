"""A request to the engine: what is asked, where it stands, what came of it. No tensors."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unmask.cache.pages import Lease
    from unmask.decoding.counters import Counters


class Status(Enum):
    """Where a request stands. WAITING → PREFILLING → RUNNING → FINISHED; ABORTED and FAILED end it from anywhere."""

    WAITING = "waiting"  # in the queue, holds nothing
    PREFILLING = "prefilling"  # holds its pages and the right to a row
    RUNNING = "running"  # holds its pages and a row
    FINISHED = "finished"
    ABORTED = "aborted"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Nothing more will happen to the request, and it holds nothing."""
        return self in (Status.FINISHED, Status.ABORTED, Status.FAILED)


@dataclass(slots=True, eq=False)
class Request:
    """One prompt to be answered. Compared by identity.

    Attributes:
        id: a name for messages and for whoever asked.
        prompt: token ids, not empty.
        max_new_tokens: positions returned at most.
        temperature, top_p, top_k, seed: as in `decoding.sampling.Draw` (0, 1, 0: greedy, no filters).
        canvas, open, counters: of the positions behind the prompt, as in `decoding.loop.Row`; set by the engine at the
            end.
        error: why it failed, one line.
        added, first_token, ended: times in seconds (`time.perf_counter`); the engine sets `first_token`, and not again
            when the request is preempted after it.

    The scheduler's:
        status: where the request stands.
        slots: K/V slots it takes at most.
        tokens: positions that the prefill spans (behind the prompt, too, where the method drafts during prefill).
        grain: the prefill may be cut at multiples of it; 0: not at all.
        keys: names of the prompt's leading pages (`cache.pages.prefix_keys`).
        arrival: the number under which it was added, -1 before that.
        attempt: how often it has been preempted. What was launched for an earlier attempt says nothing of this one.
        overtaken: how many later requests were admitted before it.
        prefilled: leading positions whose keys are in the cache or whose chunk has been handed out.
        lease: its pages, None while it holds none.
        row: its row of the state, -1 while it has none.
    """

    id: str
    prompt: list[int]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    canvas: list[int] = field(default_factory=list)
    open: list[bool] = field(default_factory=list)
    counters: Counters | None = None
    error: str | None = None
    added: float | None = None
    first_token: float | None = None
    ended: float | None = None

    status: Status = Status.WAITING
    slots: int = 0
    tokens: int = 0
    grain: int = 1
    keys: tuple[Hashable, ...] = ()
    arrival: int = -1
    attempt: int = 0
    overtaken: int = 0
    prefilled: int = 0
    lease: Lease | None = None
    row: int = -1

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from `add` to the first final token, None before that."""
        return None if self.added is None or self.first_token is None else self.first_token - self.added
