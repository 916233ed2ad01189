"""The rows of each update, and of the validation set, made ready for this process ahead of time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

from unmask.errors import UnmaskError
from unmask.training.data import Packed, pack
from unmask.training.noise import Noise
from unmask.training.recipes.base import Recipe, Supervised
from unmask.training.times import StepNoise

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Step:
    """The rows of one update that fall to this process: one `Supervised` a forward, and their summed normalisers."""

    number: int
    forwards: list[Supervised]
    normalisers: dict[str, float]
    tokens: int


@dataclass(frozen=True, slots=True)
class Share:
    """What one of `count` processes takes of every step: a run of neighbouring rows, cut into forwards."""

    index: int
    count: int
    rows: int
    per_forward: int

    @classmethod
    def of(cls, rows_per_step: int, rows_per_forward: int, index: int = 0, count: int = 1) -> Share:
        """Raises UnmaskError where the rows cannot be shared evenly."""
        if rows_per_step % count:
            raise UnmaskError(f"rows_per_step {rows_per_step} cannot be shared evenly by {count} processes")
        rows = rows_per_step // count
        size = min(rows_per_forward, rows)
        if rows % size:
            raise UnmaskError(f"the {rows} rows of a step and process are no multiple of rows_per_forward {size}")
        return cls(index, count, rows, size)

    def groups(self, rows: Sequence[T]) -> list[Sequence[T]]:
        """The rows of each forward, from all rows of a step."""
        mine = rows[self.index * self.rows : (self.index + 1) * self.rows]
        return [mine[i : i + self.per_forward] for i in range(0, self.rows, self.per_forward)]


class Source:
    """Makes the steps of this process, and the batches of the validation set.

    Args:
        pinned: tensors are put where a GPU can fetch them by itself.
    """

    def __init__(
        self, seed: int, recipe: Recipe, data: Packed, held: Packed, share: Share, *, pinned: bool = False
    ) -> None:
        self.seed, self.recipe, self.data, self.held, self.share = seed, recipe, data, held, share
        self.pinned = pinned

    def steps(self, first: int) -> Iterator[Step]:
        """Steps `first` and on."""
        for number, (epoch, rows) in enumerate(self.data.steps(first), first):
            noise = StepNoise(self.seed, epoch, tuple(n for row in rows for n in row))
            views = [self.recipe.views(self.data.batch(group), noise) for group in self.share.groups(rows)]
            forwards = [self._ready(Supervised.of(view)) for view in views]
            tokens = sum(view.tokens.numel() for view in views)
            yield Step(number, forwards, sums(view.normalisers for view in views), tokens)

    def samples(self, number: int) -> list[list[int]]:
        """The sample ids of each forward of this process in a step."""
        _, rows = next(iter(self.data.steps(number)))
        ids = (self.data.batch(group).sample.unique() for group in self.share.groups(rows))
        return [[n for n in found.tolist() if n >= 0] for found in ids]

    def validation(self) -> Iterator[Supervised]:
        """This process's part of the validation rows, always with the same noise; filled up with empty rows, so that
        all processes have as many forwards."""
        share = self.share
        rows = pack(self.held.padded, self.held.form.length, 0, 0)
        rows += [[] for _ in range(-len(rows) % (share.per_forward * share.count))]
        whole = replace(share, rows=len(rows) // share.count)
        for group in whole.groups(rows):
            yield self._ready(Supervised.of(self.recipe.views(self.held.batch(group), Noise(self.seed + 1))))

    def _ready(self, batch: Supervised) -> Supervised:
        if not self.pinned:
            return batch

        def pin(x: Tensor) -> Tensor:
            return x.contiguous().pin_memory()

        own = {name: pin(getattr(batch, name)) for name in ("tokens", "index", "targets", "weights")}
        extra = {name: pin(value) for name, value in batch.extra.items()}
        return replace(batch, layout=batch.layout.map(pin), extra=extra, **own)


def sums(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The values of each name added up."""
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def prefetch(items: Iterable[T], depth: int) -> Iterator[T]:
    """The same items, made by a thread that runs up to `depth` ahead. An error in the thread is raised here."""
    ready: queue.Queue[T | BaseException | None] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: T | BaseException | None) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.2)
            except queue.Full:
                continue
            break

    def work() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:  # handed to the consumer
            put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        # A thread that still uses torch while the interpreter ends can crash it.
        while thread.is_alive():
            while not ready.empty():
                ready.get()
            thread.join(0.01)
