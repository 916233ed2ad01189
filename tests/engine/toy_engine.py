"""An engine without a model, on a toy GPU whose slots hold values that name what was computed for them.

A row that reads a slot which holds anything but what its own request computed, or would have computed, fails.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from itertools import accumulate

import unmask.cache.pages as pages_module
from unmask.cache.pages import PagePool
from unmask.engine.request import Request, Status
from unmask.engine.scheduler import Scheduler

PAGE, PAGES, ROWS, BUDGET, QUEUE = 4, 49, 8, 32, 12
SLOTS = (PAGES - 1) * PAGE

WAIT = 100
"""Iterations that a request waits at most; the queue is 12 long, a request runs for at most 8 iterations."""


class Prompt:
    """A prompt and, for each kind of request, its plan and what each slot must hold after the prefill."""

    def __init__(self, tokens):
        self.tokens, n = tokens, len(tokens)
        seen = list(accumulate(tokens, lambda h, t: hash((h, t)), initial=0))[1:]
        self.kinds = []
        for grain, extra, spare in ((1, 0, 1), (1, 3, 1), (6, 0, 0), (8, 0, 1), (0, 5, 0), (1, -n, n)):
            span = n // max(grain, 1) * max(grain, 1) + extra
            usable = tokens[: max(min(span, n) - spare, 0)]
            ends = [(p // grain + 1) * grain if grain else n for p in range(n)]
            truth = [hash((p, seen[end - 1], grain)) if end <= n else 0 for p, end in enumerate(ends)]
            self.kinds.append((grain, span, pages_module.prefix_keys(usable, PAGE, "m", grain), truth))


class Row:
    """A request on the toy GPU: where its pages are and what it has written."""

    def __init__(self, r, kind):
        self.request, self.attempt, self.pages, self.shared = r, r.attempt, r.lease.pages, r.lease.shared
        self.source = r.lease.source
        self.held = list(kind[3])  # the value each slot must have, by position
        self.at = 0  # positions [0, at) are in the cache
        self.copied = False
        self.left = 0  # forwards until it is done

    def read(self, memory):
        """Every slot the row may see holds what the row's own request wrote, or would have written."""
        whole = self.at // PAGE
        for i in range(whole):
            assert memory[self.pages[i]] == self.held[i * PAGE : (i + 1) * PAGE], "a page holds something else"
        rest = self.at % PAGE
        if rest:
            got, want = memory[self.pages[whole]][:rest], self.held[whole * PAGE : self.at]
            assert got == want, "the last page holds something else"

    def write(self, memory, first, values):
        assert first // PAGE >= self.shared or not values, "a shared page is written"
        for p, value in enumerate(values, first):
            memory[self.pages[p // PAGE]][p % PAGE] = value


class Simulation:
    """An engine without a model. Finished rows become known one or two steps late and write scratch until then."""

    def __init__(self, count, seed, patience=6, checked=True):
        self.rng, self.left, self.checked = random.Random(seed), count, checked
        self.s = Scheduler(PagePool(PAGES, PAGE), ROWS, BUDGET, patience)
        self.memory = [[0] * PAGE for _ in range(PAGES)]
        self.rows, self.filling, self.kind = [None] * ROWS, {}, {}
        self.flags, self.born, self.seen = deque(), {}, Counter()
        self.number = self.steps = self.longest = self.overtaken = 0
        self.prompts = []

    def run(self):
        while self.left or not self.s.idle:
            if self.steps % 500 == 0:
                self.prompts = self.fresh_prompts()
            self.steps += 1
            self.arrive()
            self.admit()
            self.prefill()
            self.decode()
            self.learn()
            self.disturb()
            self.cheap_checks()
            if self.checked and self.steps % 50 == 0:
                self.s.pool.check()
        pool = self.s.pool
        pool.check()
        assert pool.used_pages == 0 and pool.free_pages + pool.cached_pages == pool.capacity and not self.born
        return self

    def fresh_prompts(self):
        rng = self.rng
        bases = [[rng.randrange(9) for _ in range(40)] for _ in range(4)]
        cut = [rng.choice(bases)[: rng.randint(1, 40)] for _ in range(25)]
        return [Prompt(tokens + [rng.randrange(9) for _ in range(rng.randrange(4))]) for tokens in cut]

    def arrive(self):
        draw = self.rng.random
        while self.left and len(self.s.waiting) < QUEUE and draw() < 0.6:
            prompt = self.prompts[int(draw() ** 3 * len(self.prompts))]  # some are frequent
            kind = prompt.kinds[int(draw() * len(prompt.kinds))]
            n = len(prompt.tokens)
            new = SLOTS - n if draw() < 0.02 else 1 + int(draw() * 24)
            r = Request(str(self.number), prompt.tokens, new)
            self.s.add(r, min(n + new + int(draw() * 5), SLOTS), tokens=kind[1], grain=kind[0], keys=kind[2])
            self.kind[r], self.born[r] = kind, self.steps
            self.number, self.left = self.number + 1, self.left - 1

    def admit(self):
        while (r := self.s.admit()) is not None:
            row = self.filling[r] = Row(r, self.kind[r])
            row.at = r.prefilled
            self.seen["hit"] += r.prefilled > 0
            self.seen["copy"] += row.source is not None
            if self.rng.random() < 0.5:  # else just before the first chunk
                self.copy(row)
            if r.attempt == 0:
                self.longest = max(self.longest, self.steps - self.born[r])
            self.overtaken = max(self.overtaken, r.overtaken)

    def copy(self, row):
        if row.source is not None and not row.copied:
            row.copied = True
            self.memory[row.pages[row.shared]][:] = self.memory[row.source]

    def prefill(self):
        total, chunks = 0, self.s.next_prefill()
        for r, first, stop in chunks:
            row, (grain, span, _, truth), n = self.filling[r], self.kind[r], len(r.prompt)
            self.copy(row)
            assert first == row.at and (first == 0 or first < n or first == stop), "the last prompt token is run"
            assert not grain or (first % grain == 0 and (stop % grain == 0 or stop == span)), "a block is cut"
            total += stop - first
            row.read(self.memory)
            row.write(self.memory, first, truth[first : min(stop, n)])
            row.at = min(stop, n)
            if stop == span:
                row.left = 1 + int(self.rng.random() * 4)
                assert self.s.started(r) == r.row and self.rows[r.row] is None
                self.rows[r.row] = self.filling.pop(r)
        assert total <= BUDGET or len(chunks) == 1, "more than an iteration's tokens"
        assert chunks or not self.s.prefilling, "a prefill stands still"

    def decode(self):
        rng, memory, done = self.rng, self.memory, []
        for row in self.rows[: len(self.s.running)]:
            r = row.request
            row.left -= 1
            if row.left >= 0:
                row.read(memory)
                end = min(len(r.prompt) + r.max_new_tokens, r.slots)
                before, row.at = row.at, min(max(row.at, len(r.prompt)) + 1 + int(rng.random() * 5), end)
                row.held[before:] = [hash((r.id, p)) for p in range(before, row.at)]
                row.write(memory, before, row.held[before:])
                if row.left == 0:
                    row.read(memory)
                    done.append((r, row.attempt))
            if row.at < r.slots:  # scratch, also of rows that are done
                row.write(memory, row.at + int(rng.random() * (r.slots - row.at)), [-1])
        self.flags.append(done)

    def learn(self):
        while len(self.flags) > 1 + (self.rng.random() < 0.5):
            for r, attempt in self.flags.popleft():
                if r.status is Status.RUNNING and r.attempt == attempt:
                    assert self.rows[r.row].left <= 0, "a request ends that is not done"
                    self.leave(r, self.s.finish)
                else:
                    self.seen["late"] += 1

    def leave(self, r, how):
        before, status, row = len(self.s.running), r.status, r.row
        move = how(r)
        self.filling.pop(r, None)
        if status is Status.RUNNING:
            if move is not None:
                assert move == (before - 1, row)
                self.rows[move.target] = self.rows[move.source]
            self.rows[before - 1] = None
        self.seen[how.__name__, status.value] += 1
        if r.status is not Status.WAITING:
            assert r.status.ended and r.lease is None and r.row == -1
            del self.born[r], self.kind[r]

    def disturb(self):
        rng, s = self.rng, self.s
        if rng.random() < 0.1:
            r = rng.choice([*s.waiting, *s.prefilling * 4, *s.running] or [None])
            if r is not None:
                self.leave(r, s.abort if rng.random() < 0.7 else self.fail)
        if rng.random() < 0.05:
            r = rng.choice([*s.prefilling * 4, *s.running] or [None])
            if r is not None and r.attempt < 3:
                self.leave(r, s.preempt)

    def fail(self, r):
        """Something went wrong: what the request's own pages hold is not to be trusted."""
        for page in r.lease.pages[r.lease.shared :] if r.lease else ():
            if self.s.pool._count[page] == 1:
                self.memory[page][:] = [None] * PAGE
        return self.s.fail(r, "something went wrong")

    def cheap_checks(self):
        s = self.s
        assert s.pool.free_pages + s.pool.cached_pages + s.pool.used_pages == s.pool.capacity
        for place, r in enumerate(s.running):
            assert r.row == place and self.rows[place].request is r, "a row is not where it should be"
        assert len(s.running) + len(s.prefilling) <= ROWS and set(self.filling) == set(s.prefilling)
        assert not s.waiting or self.steps - self.born[s.waiting[0]] < WAIT, "a request starves"
