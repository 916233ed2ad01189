"""Page pool, scheduler and requests together: 100,000 random requests on a toy GPU, and bugs that it must find."""

from __future__ import annotations

import pytest
from toy_engine import WAIT, Simulation

import unmask.cache.pages as pages_module
import unmask.engine.scheduler as scheduler_module
from unmask.cache.pages import PagePool
from unmask.engine.scheduler import Scheduler


def test_a_hundred_thousand_random_requests_share_a_small_cache_and_nothing_is_lost():
    sim = Simulation(100_000, seed=1).run()
    assert sim.longest < WAIT and sim.overtaken == 6  # the patience
    left = [(how, stage) for how in ("abort", "fail") for stage in ("waiting", "prefilling", "running")]
    preempted = [("preempt", "prefilling"), ("preempt", "running")]
    for event in ["hit", "copy", "late", ("finish", "running"), *left, *preempted]:
        assert sim.seen[event] > 100, (event, sim.seen)  # all of it has happened


def around(monkeypatch, owner, name, change):
    """Replaces the method `name` by change(the method, self, arguments...)."""
    own = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **options: change(own, *args, **options))


def freed_too_early(patch):
    def started(own, self, r):
        self.pool._free.append(r.lease.pages[-1])
        return own(self, r)

    around(patch, Scheduler, "started", started)


def first_one_to_leave_frees_all(patch):
    def drop(own, self, page):
        self._count[page] = 1
        own(self, page)

    around(patch, PagePool, "_drop", drop)


def shared_instead_of_copied(patch):
    around(patch, PagePool, "take", lambda own, self, count, keys=(), copy_last=False: own(self, count, keys))


def named_before_it_is_written(patch):
    def admit(own, self):
        r = own(self)
        if r is not None:
            self.pool.register(r.lease, r.keys)
        return r

    around(patch, Scheduler, "admit", admit)


def named_by_its_own_tokens(patch):
    def names(own, tokens, size, salt, grain=1):
        return tuple((grain, *tokens[i * size : (i + 1) * size]) for i in range(len(own(tokens, size, salt, grain))))

    around(patch, pages_module, "prefix_keys", names)


def bidirectional_named_as_causal(patch):
    def names(own, tokens, size, salt, grain=1):
        return (
            own(tokens, size, salt, grain) if grain else own(list(tokens) + [0] * (-len(tokens) % size), size, "0", 1)
        )

    around(patch, pages_module, "prefix_keys", names)


def evicted_but_still_named(patch):
    around(patch, PagePool, "_forget", lambda own, self, page: None)


def block_cut_by_sharing(patch):
    patch.setattr(scheduler_module, "lcm", lambda grain, size: size)


def move_lost(patch):
    around(patch, Scheduler, "_release", lambda own, self, *args, **options: own(self, *args, **options) and None)


def leak(patch):
    def free(own, self, lease, **options):
        if len(lease.pages) != 9:
            own(self, lease, **options)

    around(patch, PagePool, "free", free)


def failed_content_is_shared(patch):
    around(patch, PagePool, "free", lambda own, self, lease, forget=False: own(self, lease))


BUGS = [
    freed_too_early,
    first_one_to_leave_frees_all,
    shared_instead_of_copied,
    named_before_it_is_written,
    named_by_its_own_tokens,
    bidirectional_named_as_causal,
    evicted_but_still_named,
    block_cut_by_sharing,
    move_lost,
    failed_content_is_shared,
    leak,
]


@pytest.mark.parametrize("bug", BUGS)
def test_the_simulation_finds_a_bug(bug, monkeypatch):
    bug(monkeypatch)
    with pytest.raises(AssertionError):  # by what the toy GPU holds, not by the pool's own accounts
        Simulation(20_000, seed=2, checked=False).run()


def test_the_simulation_finds_a_request_that_starves():
    with pytest.raises(AssertionError, match="starves"):
        Simulation(20_000, seed=3, patience=10**9).run()
