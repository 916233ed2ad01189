"""Who is prefilled and decoded next. Host bookkeeping only: no tensors, no device.

An iteration of the engine: `admit` until it gives None; run the chunks of `next_prefill` and call `started` for those
that are complete; one decoding step of rows [0, len(running)); `finish` for the rows known to be done. A prefill is
bounded per iteration and goes on in each, so neither prefill nor decoding starves the other.

Pages for the whole life of a request are taken when it is admitted: nothing is allocated while decoding. Not
thread-safe.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Hashable, Sequence
from math import lcm
from time import perf_counter
from typing import NamedTuple

from unmask.cache.pages import Lease, PagePool
from unmask.engine.request import Request, Status
from unmask.errors import UnmaskError


class Move(NamedTuple):
    """Row `source` of the state is to be copied to row `target`, which has become free."""

    source: int
    target: int


class Chunk(NamedTuple):
    """Positions [first, stop) of a request's prefill; empty where the cache has all of it already."""

    request: Request
    first: int
    stop: int

    @property
    def final(self) -> bool:
        """Whether the prefill is complete with it: `Scheduler.started` is due after it is launched."""
        return self.stop == self.request.tokens


class Scheduler:
    """Queue, prefill and rows. Running requests occupy rows [0, len(running)).

    Requests are admitted in the order of their arrival. While one does not fit, later ones that do may overtake it, but
    none is overtaken more than `patience` times; after that the engine drains until it fits.

    Args:
        pool: the pages.
        rows: requests decoded at once at most.
        prefill_tokens: prompt tokens run per iteration at most; more only for a prefill that cannot be cut smaller.
        patience: how often a request may be overtaken, and how many are looked at behind the first.

    Attributes:
        waiting: the queue, by arrival. prefilling: in the order of admission. running: by row.
    """

    def __init__(self, pool: PagePool, rows: int, prefill_tokens: int, patience: int = 16) -> None:
        if rows < 1 or prefill_tokens < 1:
            raise UnmaskError(f"{rows} rows and {prefill_tokens} prefill tokens an iteration: at least 1 of each")
        self.pool, self.rows, self.prefill_tokens, self.patience = pool, rows, prefill_tokens, patience
        self.waiting: list[Request] = []
        self.prefilling: list[Request] = []
        self.running: list[Request] = []
        self._arrivals = 0

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.waiting or self.prefilling or self.running)

    def add(
        self, request: Request, slots: int, *, tokens: int | None = None, grain: int = 1, keys: Sequence[Hashable] = ()
    ) -> None:
        """Queues a request.

        Args:
            slots: K/V slots it takes at most: prompt, new tokens and scratch (`Method.slots`); 0 without a cache.
            tokens: positions that its prefill spans; None: the prompt's.
            grain: the prefill may be cut at multiples of it (1: causal, a block size: block-causal), so that a chunk
                never needs keys of a later one; 0: it runs at once. What follows the last prompt token is never cut
                from it.
            keys: `prefix_keys(..., grain)` of the prompt tokens whose keys are final after the prefill. With grain 0
                they must be those of the whole prompt, and only a hit of all of them counts.

        Raises:
            UnmaskError: it can never fit.
        """
        if request.arrival >= 0 or request.status is not Status.WAITING:
            raise ValueError(f"request {request.id} was added or ended before")
        need, has = self.pool.pages_for(slots), self.pool.capacity
        if need > has:
            raise UnmaskError(
                f"request {request.id} needs {need} cache pages ({slots} slots for a prompt of {len(request.prompt)} "
                f"and {request.max_new_tokens} new tokens, {self.pool.page_size} a page), there are {has}"
            )
        prompt = len(request.prompt)
        request.tokens = prompt if tokens is None else tokens
        named = min(prompt, request.tokens) // self.pool.page_size if grain else self.pool.pages_for(prompt)
        whole = grain > 0 or (len(keys) == named and request.tokens >= prompt)
        if keys and (len(keys) > min(named, need) or not whole):
            raise ValueError(f"request {request.id}: {len(keys)} keys, {named} pages of prompt, {need} pages in all")
        request.slots, request.grain, request.keys = slots, grain, tuple(keys)
        request.arrival, request.added = self._arrivals, perf_counter()
        self._arrivals += 1
        self.waiting.append(request)

    def admit(self) -> Request | None:
        """The next request to be prefilled, its pages taken, or None if none can be now.

        None, too, while the prefills under way fill an iteration: a later request may then share what they compute.

        The caller gives the page table `request.lease.pages`, and copies the page `request.lease.source`, if there is
        one, to `pages[shared]`, before it calls `started`. The first `request.prefilled` positions are in the cache.
        """
        if len(self.running) + len(self.prefilling) >= self.rows:
            return None
        if sum(request.tokens - request.prefilled for request in self.prefilling) >= self.prefill_tokens:
            return None
        for place, request in enumerate(self.waiting[: self.patience + 1]):
            request.lease = self._take(request)
            if request.lease is not None:
                for passed in self.waiting[:place]:
                    passed.overtaken += 1
                del self.waiting[place]
                self.prefilling.append(request)
                request.status = Status.PREFILLING
                return request
            if request.overtaken >= self.patience:
                break
        return None

    def next_prefill(self) -> list[Chunk]:
        """The chunks of this iteration: at most one a request, the earliest admitted first; that one always advances.

        Handing a chunk out counts as running it.
        """
        chunks: list[Chunk] = []
        room = self.prefill_tokens
        for request in self.prefilling:
            stop = self._cut(request, room, first=not chunks)
            if stop is None:
                continue
            chunks.append(Chunk(request, request.prefilled, stop))
            room -= stop - request.prefilled
            request.prefilled = stop
            if room <= 0:
                break
        return chunks

    def started(self, request: Request) -> int:
        """The whole prefill (and the copy, if there was one) is launched: others may share the prompt's pages now.
        Returns the row that the request's state goes to, the first free one.
        """
        if request.status is not Status.PREFILLING or request.prefilled != request.tokens or request.lease is None:
            raise ValueError(f"request {request.id} is {request.status.value}, {request.prefilled} of {request.tokens}")
        self.pool.copied(request.lease)
        self.pool.register(request.lease, request.keys)
        self.prefilling.remove(request)
        request.row = len(self.running)
        request.status = Status.RUNNING
        self.running.append(request)
        return request.row

    def finish(self, request: Request) -> Move | None:
        """A running request is done: its pages are free, and so is row len(running), after the move returned, if any.

        Whoever learns of it late looks at `status` and `attempt` first: it may have been aborted or preempted since.
        """
        if request.status is not Status.RUNNING:
            raise ValueError(f"request {request.id} cannot finish: it is {request.status.value}")
        return self._end(request, Status.FINISHED)

    def abort(self, request: Request) -> Move | None:
        """Gives a request up, wherever it stands; nothing happens if it has ended. Returns as `finish` does."""
        return None if request.status.ended else self._end(request, Status.ABORTED)

    def fail(self, request: Request, error: str) -> Move | None:
        """As `abort`, for a request in which something went wrong: nobody will share its pages from now on."""
        request.error = request.error if request.status.ended else error
        return None if request.status.ended else self._end(request, Status.FAILED)

    def preempt(self, request: Request) -> Move | None:
        """Takes pages and row away; the request goes back to the place of its arrival in the queue and starts anew.

        Its draws depend on seed, forward and position alone, so it gives the same tokens again. Returns as `finish`.
        """
        if request.status not in (Status.PREFILLING, Status.RUNNING):
            raise ValueError(f"request {request.id} cannot be preempted: it is {request.status.value}")
        move = self._release(request)
        request.attempt += 1
        request.status = Status.WAITING
        insort(self.waiting, request, key=lambda other: other.arrival)
        return move

    def _take(self, request: Request) -> Lease | None:
        """Pages for the request, and `prefilled` set to what they hold already."""
        count, found = self.pool.pages_for(request.slots), self.pool.hits(request.keys)
        request.prefilled = 0
        if request.grain:  # a block must not be run in part: shared pages end where a block does
            found -= found % (lcm(request.grain, self.pool.page_size) // self.pool.page_size)
            lease = self.pool.take(count, request.keys[:found])
            if lease is not None:
                request.prefilled = found * self.pool.page_size
            return lease
        if found and found == len(request.keys):
            lease = self.pool.take(count, request.keys, copy_last=True)
            if lease is not None:
                request.prefilled = len(request.prompt) - 1  # the last token's logits may be wanted
                return lease
        return self.pool.take(count)  # also where there is no room for the source of a copy

    def _cut(self, request: Request, room: int, first: bool) -> int | None:
        """Where the request's next chunk ends, None if it has to wait for another iteration."""
        begin, grain = request.prefilled, request.grain
        if request.tokens - begin <= room or (first and not grain):
            return request.tokens
        if not grain:
            return None
        least = (begin // grain + 1) * grain
        stop = max((begin + room) // grain * grain, least if first else 0)
        stop = min(stop, (len(request.prompt) - 1) // grain * grain, request.tokens)
        if stop > begin:
            return stop
        return request.tokens if first else None  # only what cannot be cut is left

    def _end(self, request: Request, status: Status) -> Move | None:
        move = self._release(request, forget=status is Status.FAILED)
        request.status, request.ended = status, perf_counter()
        return move

    def _release(self, request: Request, forget: bool = False) -> Move | None:
        """Takes the request out of wherever it stands, with its pages and its row."""
        move = None
        if request.status is Status.WAITING:
            if request.arrival >= 0:
                self.waiting.remove(request)
        elif request.status is Status.PREFILLING:
            self.prefilling.remove(request)
        else:
            last = self.running.pop()
            if last is not request:
                move = Move(last.row, request.row)
                self.running[request.row], last.row = last, request.row
        if request.lease is not None:
            self.pool.free(request.lease, forget=forget)
        request.lease, request.row, request.prefilled = None, -1, 0
        return move
