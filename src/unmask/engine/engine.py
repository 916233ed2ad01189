"""The engine: many requests decoded together, entering and leaving at any time, each as it would be alone.

The rows in work stand in one static batch on the device. An iteration prefills what has been admitted, launches one
step of all rows and looks at what arrived from earlier steps: the host never waits for the step it has just launched,
and nothing is read back but a few whole numbers a row.

    engine = Engine(unmask.load("nano"), rows=32)
    requests = [engine.add(ids) for ids in prompts]
    engine.run()
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unmask.cache.pages import PagePool, prefix_keys
from unmask.decoding import Method, build
from unmask.decoding.counters import NAMES, Counters
from unmask.decoding.forward import Kind, State
from unmask.decoding.method import doubling
from unmask.engine import step as steps
from unmask.engine.batch import Batch, Used
from unmask.engine.compiled import compiled
from unmask.engine.fused import FusedTransformer
from unmask.engine.load import Load
from unmask.engine.mirror import Mirror, to_device
from unmask.engine.parts import parts_for
from unmask.engine.prefill import Prefills
from unmask.engine.request import Request, Status
from unmask.engine.runner import Runner
from unmask.engine.scheduler import Move, Scheduler
from unmask.engine.tuning import tune_attention
from unmask.errors import UnmaskError
from unmask.streaming import RowFeeder, Streamer

if TYPE_CHECKING:
    from unmask.lm import LM

LAG = 2
"""Steps that may be launched before the first of them has been looked at; 1 once rows are found to differ in width, for
then the next step is chosen by what the last one left."""
PATIENCE = 4
"""Steps in a row that a row may sit out because it needs more columns than the others."""
GRAIN = 32
"""Packed tokens are a multiple of it; where they are many, at most a quarter more than needed."""
PACKED = 0.9
"""Rows are packed if that leaves at most this share of their columns."""


@dataclass(frozen=True)
class _Seen:
    """What a step or a prefill left, on its way to the host, and whose rows it was: requests with their attempts, by
    row."""

    mirror: Mirror
    rows: list[tuple[Request, int]]


class Engine:
    """Continuous batching of one method on one model.

    Args:
        lm: a loaded checkpoint.
        method, options: as `LM.generate`, or a method as an object; one engine decodes with one method under one set of
            options.
        rows: requests decoded at once at most.
        max_prompt, max_new_tokens: of a request at most; they fix the shapes of the batch.
        pages: K/V pages; None: enough for `rows` of the longest requests.
        page_size: slots a page, a power of two.
        prefill_tokens: prompt tokens run between two steps at most, where prompts can be cut.
        share_prefixes: keep the keys of prompts for later ones that begin alike.
        graphs: capture steps as CUDA graphs; None: on a GPU.
        compile: join the small operations of a step by torch.compile (half a minute for each kind of step).
        quantise: "fp8": round the weights of the layers to float8; the eager model then no longer runs.
        tune: measure which way each matrix product, and which tiling of attention, is fastest before a kind of step is
            captured (seconds each).
        by_load: let rows look less far, down to one token a forward, where that decides more tokens a second (see
            `engine.load`): the text then depends on what else is decoded. Takes some seconds at the start.
    """

    def __init__(
        self,
        lm: LM,
        method: str | Method[Any] | None = None,
        *,
        rows: int = 32,
        max_prompt: int = 1024,
        max_new_tokens: int = 256,
        pages: int | None = None,
        page_size: int = 64,
        prefill_tokens: int = 2048,
        share_prefixes: bool = True,
        graphs: bool | None = None,
        tune: bool = False,
        compile: bool = False,
        quantise: str | None = None,
        by_load: bool = False,
        **options: Any,
    ) -> None:
        self.quantised = quantise is not None
        self.lm = lm
        self.unbound = method if isinstance(method, Method) else build(method or lm.default_method, options)
        if self.unbound.no_engine:
            raise UnmaskError(f"{self.unbound.name} runs in the eager loop alone: {self.unbound.no_engine}")
        self.method: Method[Any] = self.unbound.bind(lm.family, max_new_tokens)
        self.max_prompt, self.max_new_tokens = max_prompt, max_new_tokens
        self.share_prefixes = share_prefixes and self.method.cached
        reaches = self.method.reaches(max_new_tokens) if by_load else ()
        if by_load and len(reaches) < 2:
            raise UnmaskError(f"{self.method.name} looks as far under any load; leave out by_load")
        self.width = self.method.limit(max_prompt, max_new_tokens)
        if self.width > lm.model.config.max_positions:
            raise UnmaskError(
                f"max_prompt {max_prompt} and max_new_tokens {max_new_tokens} take {self.width} positions, "
                f"the context is {lm.model.config.max_positions}"
            )
        slots = self.method.slots(self.width) if self.method.cached else 0
        per_row = max(-(-slots // page_size), 1)
        self.device = lm.model.device
        self.pool = PagePool(rows * per_row + 1 if pages is None else pages, page_size)
        self.scheduler = Scheduler(self.pool, rows, prefill_tokens)
        self.parts = parts_for(lm, self.method, self.pool.capacity if slots else 0, page_size, quantise)
        self.prefills = Prefills(self.parts, lm.facts, self.width, max_new_tokens, per_row)
        self.batch = Batch(self._example(per_row, reaches[-1:]), rows, per_row)
        graphs = self.device.type == "cuda" if graphs is None else graphs
        if compile:
            self.parts = compiled(self.parts)
        self.runner = Runner(self.parts, self.batch, graphs=graphs, prepare=self._tune if tune else None)
        self.buckets = doubling(1, rows)
        least = reaches[:1] if reaches and reaches[0] < steps.NARROWEST else ()
        self.widths = (*least, *doubling(steps.NARROWEST, self._planned))
        self._need: dict[Request, int] = {}
        self._passed: dict[Request, int] = {}
        self._lag = LAG
        self._feeders: dict[Request, RowFeeder] = {}
        self._flight: deque[_Seen] = deque()
        self._leaving: deque[tuple[Request, Mirror]] = deque()
        self._news: list[tuple[float, _Seen, list[list[int]]]] = []
        self.steps = 0
        self.load = Load(reaches, self._times(reaches), self.method.grain() or 1) if reaches else None
        self.prefills.enter = None if self.load is None else self.load.enter
        self._told: list[int] = []

    def add(
        self,
        prompt: list[int],
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        id: str = "",
        streamer: Streamer | None = None,
    ) -> Request:
        """Queues a prompt (token ids, not empty). Its results stand in the request once it has ended.

        Args:
            max_new_tokens: None: as many as the engine gives.
            temperature, top_p, top_k, seed: as `LM.generate`.
            id: a name for messages.
            streamer: see `LM.generate`.

        Raises:
            UnmaskError: it does not fit into the engine's sizes.
        """
        new = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        if not 0 < len(prompt) <= self.max_prompt:
            raise UnmaskError(f"a prompt of {len(prompt)} tokens; this engine takes 1 to {self.max_prompt}")
        if not 0 < new <= self.max_new_tokens:
            raise UnmaskError(f"max_new_tokens {new}: this engine gives 1 to {self.max_new_tokens}")
        alike = self.method.any_length and self.unbound.bind(self.lm.family, new) == self.method
        if new != self.max_new_tokens and not alike:
            raise UnmaskError(
                f"{self.method.name} plans by max_new_tokens: this engine gives {self.max_new_tokens}, not {new}"
            )
        request = Request(id, prompt, new, temperature, top_p, top_k, seed)
        forward = self.method.prefill(self.prefills.state([request]))
        limit = self.method.limit(len(prompt), new)
        slots = self.method.slots(limit) if self.method.cached else 0
        columns = 0 if forward is None else forward.tokens.shape[1]
        grain = self.method.grain()
        keys = self._keys(prompt, columns, grain) if self.share_prefixes and slots and grain is not None else ()
        self.scheduler.add(request, slots, tokens=columns, grain=grain or 0, keys=keys)
        if streamer is not None:
            self._feeders[request] = RowFeeder(streamer, prompt)
        return request

    def abort(self, request: Request) -> None:
        """Gives a request up, wherever it stands; its streamer ends with what it has."""
        self._leave(request, self.scheduler.abort)
        self._end_stream(request)

    def preempt(self, request: Request) -> None:
        """Takes a request's pages and row away; it starts anew when it is its turn, and gives the same tokens."""
        self._leave(request, self.scheduler.preempt)

    def suits(self, method: Method[Any], prompt: int, new_tokens: int) -> bool:
        """Whether requests of this bound method and of these lengths are what the engine is for."""
        return method == self.method and prompt <= self.max_prompt and new_tokens == self.max_new_tokens

    @property
    def idle(self) -> bool:
        """Whether every request has ended and its results are here."""
        return self.scheduler.idle and not self._leaving

    def run(self) -> None:
        """Works until idle."""
        while not self.idle:
            self.step()

    @torch.inference_mode()
    def step(self) -> None:
        """One iteration: what has arrived, prefills, one step of all rows."""
        self._look(wait=not self.scheduler.running)
        while self.scheduler.admit() is not None:
            pass
        if self.load is not None and self.scheduler.prefilling:
            self.load.weigh(len(self.scheduler.running) + len(self.scheduler.prefilling))
        for entered in self.prefills.run(self.scheduler.next_prefill()):
            row = self.scheduler.started(entered.request)
            self.batch.put(row, entered.state, entered.status, entered.table)
            self._told = []
            if len(self.widths) > 1:
                named = [(entered.request, entered.request.attempt)]
                self._flight.append(_Seen(Mirror(status=entered.status), named))
        # A row of which nothing is known would make the step as wide as any can be.
        while len(self.widths) > 1 and any(r not in self._need for r in self.scheduler.running):
            self._take(self._flight.popleft())
        if self.scheduler.running:
            self._decode()
        self._read()
        if self.scheduler.running:
            self._tell()  # now, while the device works: nothing new is known of acceptance before the next step

    def _decode(self) -> None:
        running = self.scheduler.running
        rows = next(b for b in self.buckets if b >= len(running))
        if not self._told:
            self._tell()
        width, tokens = self._choose(rows)
        self.runner(rows, width, _used(running), tokens)
        self.steps += 1
        named = {"status": self.batch.status}
        if any(r in self._feeders for r in running):  # whoever streams wants to see all of it
            named |= {name: self.batch.named[name] for name in ("canvas", "open")}
        mirror = Mirror(**{name: x[: len(running)] for name, x in named.items()})
        self._flight.append(_Seen(mirror, [(r, r.attempt) for r in running]))

    def _tell(self) -> None:
        """Tells the rows how far to look."""
        if self.load is None:
            return
        told = self.load.choose(self.scheduler.running)
        if told != self._told:
            self.batch.named["reach"][: len(told)].copy_(to_device(torch.tensor(told), self.device))
            self._told = told

    def _times(self, reaches: Sequence[int]) -> dict[int, float]:
        """Milliseconds of steps by their tokens, of one row and of all; also of the widest there are, as what lies
        beyond the longest step that was measured would have to be guessed."""
        times: dict[int, float] = {}
        for rows in {self.buckets[0], self.buckets[-1]}:
            for reach in (*reaches, self._planned):
                width = next((w for w in self.widths if w >= reach), self.widths[-1])
                tokens = self._tokens(rows, width, rows * reach)
                times[tokens] = self.runner.measured(rows, width, tokens)
        return times

    def _choose(self, rows: int) -> tuple[int, int | None]:
        """How many columns and tokens the next step has: those with which most rows advance per unit of time. Rows
        that need more columns sit out, but not more often than `PATIENCE` times in a row, and never one that the load
        tries something on: until that is known all others may look too far, or not far enough."""
        if len(self.widths) == 1:
            return self.widths[0], None
        need = [self._need[r] for r in self.scheduler.running]
        trial = None if self.load is None else self.load.trial
        least = next((n for r, n in zip(self.scheduler.running, need) if r is trial), 1)
        # No row needs a wider one than the last of these.
        widths = self.widths[bisect_left(self.widths, least) : bisect_left(self.widths, max(need)) + 1]
        fits = {w: fit for w in widths if (fit := [n for n in need if n <= w])}
        tokens = {w: self._tokens(rows, w, sum(fit)) for w, fit in fits.items()}
        width = widths[-1]
        if len(fits) > 1 and max(self._passed.values(), default=0) < PATIENCE:
            gain = {w: len(fits[w]) / self.runner.cost(rows, t) for w, t in tokens.items()}
            width = max(gain, key=lambda w: gain[w])
        passed = self._passed
        self._passed = {r: passed.get(r, 0) + 1 for r, n in zip(self.scheduler.running, need) if n > width}
        return width, tokens[width]

    def _tokens(self, rows: int, width: int, needed: int) -> int:
        """Tokens of a step that needs so many: that number rounded up, so that there are few kinds of steps, or those
        of all columns where little is saved."""
        grain = max(GRAIN, (1 << max(needed - 1, 1).bit_length()) // 8)
        tokens, whole = -(-needed // grain) * grain, rows * width
        return tokens if self._packs and tokens <= PACKED * whole else whole

    def _look(self, wait: bool) -> None:
        """Takes in what has arrived of earlier steps; waits for those that are too long ago, or for any if `wait`."""
        # Rows that look at one token each do so in the next step too: its width is known.
        lag = LAG if self.widths[0] == 1 and set(self._need.values()) <= {1} else self._lag
        while self._flight and (wait or len(self._flight) >= lag or self._flight[0].mirror.ready()):
            self._take(self._flight.popleft())
        while self._leaving and (wait or self._leaving[0][1].ready()):
            request, mirror = self._leaving.popleft()
            mirror.wait()
            _results(request, mirror)
            if request in self._feeders:
                self._feed(request, mirror["canvas"], mirror["open"], done=True)
                del self._feeders[request]

    def _take(self, seen: _Seen) -> None:
        """Takes in what a step or a prefill left; waits for it."""
        seen.mirror.wait()
        status = seen.mirror["status"].tolist()
        self._news.append((perf_counter(), seen, status))
        for _, request, values in _still(seen, status):
            self._need[request] = max(values[steps.NEED], 1)
            if values[steps.DONE] or values[steps.FAILED]:
                self._read()
                self._end(request, failed=bool(values[steps.FAILED]))

    def _read(self) -> None:
        """What else was taken in says. Where rows differ in width the device waits for the host to launch the next
        step, so this comes after."""
        news, self._news = self._news, []
        for time, seen, status in news:
            for row, request, values in _still(seen, status):
                if self.load is not None:
                    forwards = sum(values[steps.FLAGS + Kind.PREFILL + 1 :])
                    self.load.saw(request, values[steps.FINAL], forwards, values[steps.NEED])
                if 0 < values[steps.NEED] < self._planned and len(self.widths) > 1:
                    self._lag = 1
                if request.first_token is None and values[steps.FINAL]:
                    request.first_token = time
                if request in self._feeders and "canvas" in seen.mirror and not values[steps.DONE]:
                    self._feed(request, seen.mirror["canvas"][row], seen.mirror["open"][row])

    def _feed(self, request: Request, canvas: Tensor, is_open: Tensor, done: bool = False) -> None:
        """Gives a streamer the row [N] up to its first decided end token, or to the end of its text."""
        first, stop = len(request.prompt), len(request.prompt) + request.max_new_tokens
        eos = torch.isin(canvas[first:stop], torch.tensor(self.lm.facts.eos_ids)) & ~is_open[first:stop]
        stop = first + int(eos.int().argmax()) + 1 if bool(eos.any()) else stop
        self._feeders[request](canvas[:stop], is_open[:stop], done)

    def _end_stream(self, request: Request) -> None:
        """Ends the stream of a request that leaves without its results; those of a finished one are still to come."""
        if request.status is not Status.FINISHED and request in self._feeders:
            self._feeders.pop(request).streamer.end()

    def _end(self, request: Request, failed: bool) -> None:
        if failed:
            error = f"request {request.id}: logits are not finite; the eager loop says where"
            self._leave(request, lambda r: self.scheduler.fail(r, error))
            self._end_stream(request)
        else:
            row, named = request.row, self.batch.named
            self._leaving.append(
                (request, Mirror(canvas=named["canvas"][row], open=named["open"][row], status=self.batch.status[row]))
            )
            self._leave(request, self.scheduler.finish)

    def _leave(self, request: Request, how: Any) -> None:
        """Ends a request's stay by a call of the scheduler; its row is filled by the last one."""
        row = request.row
        move: Move | None = how(request)
        self.prefills.forget(request)
        self._need.pop(request, None)
        self._passed.pop(request, None)
        self._told = []
        if self.load is not None:
            self.load.forget(request)
        if move is not None:
            self.batch.move(*move)
        elif row >= 0:
            self.batch.stop(row)

    @torch.inference_mode()
    def _example(self, per_row: int, reach: Sequence[int]) -> State:
        """A state of one row after a step, which shows what tensors there are; its keys go to the spare page."""
        asked = Request("", [0] * min(self.max_prompt, 2), self.max_new_tokens)
        state = self.prefills.state([asked], reach).map(lambda x: x.to(self.device))
        table = torch.zeros(1, per_row, dtype=torch.int32, device=self.device)
        state, planned = steps.example(self.parts, state, table)
        self._planned, self._asked = planned.tokens.shape[1], planned.rows.shape[1]
        self._packs = planned.guide is None
        return state

    def _tune(self, rows: int, width: int, tokens: int) -> None:
        if isinstance(self.parts.model, FusedTransformer):
            self.parts.model.tune([tokens], [rows * min(self._asked, width)])
            heads, per_row = self.lm.model.config.num_heads, self.batch.table.shape[1]
            tune_attention(self.parts.cache, heads, rows, width, tokens, per_row)

    def _keys(self, prompt: list[int], columns: int, grain: int) -> tuple[bytes, ...]:
        """Names of the prompt's pages. What has to be run again for its logits is left out where prompts can be cut."""
        last = min(len(prompt), columns) - 1
        tokens = prompt if grain == 0 else prompt[: max(last, 0) // grain * grain]
        return prefix_keys(tokens, self.pool.page_size, self.method.name, grain)


def _still(seen: _Seen, status: list[list[int]]) -> Iterator[tuple[int, Request, list[int]]]:
    """The rows of which a status still says something, with their requests and values."""
    for row, ((request, attempt), values) in enumerate(zip(seen.rows, status)):
        if request.status is Status.RUNNING and request.attempt == attempt:
            yield row, request, values


def _used(requests: list[Request]) -> Used:
    filters = {"top_p": any(r.top_p < 1 for r in requests), "top_k": any(r.top_k > 0 for r in requests)}
    return any(r.temperature > 0 for r in requests), frozenset(name for name, asked in filters.items() if asked)


def _results(request: Request, mirror: Mirror) -> None:
    first = len(request.prompt)
    request.canvas = mirror["canvas"][first:].tolist()
    request.open = mirror["open"][first:].tolist()
    counts = mirror["status"].tolist()[steps.FLAGS :]
    request.counters = Counters(forwards=dict(zip(NAMES, counts)))
