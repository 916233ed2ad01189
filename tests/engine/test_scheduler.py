"""The scheduler's rules by hand. All of them together: test_simulation.py."""

from __future__ import annotations

from collections import deque

import pytest

from unmask.cache.pages import PagePool, prefix_keys
from unmask.engine.request import Request, Status
from unmask.engine.scheduler import Chunk, Move, Scheduler
from unmask.errors import UnmaskError

PAGE = 4


def request(name="r", prompt=8, new=4):
    return Request(str(name), list(range(prompt)), new)


def scheduler(pages=11, rows=4, budget=100, patience=2):
    return Scheduler(PagePool(pages, PAGE), rows, budget, patience)


def add(s, name="r", prompt=8, new=4, **plan):
    r = request(name, prompt, new)
    s.add(r, plan.pop("slots", prompt + new), **plan)
    return r


def run(s, name="r", prompt=8, new=4, **plan):
    """Adds a request and brings it to its row."""
    r = add(s, name, prompt, new, **plan)
    assert s.admit() is r
    while not any(chunk.final for chunk in s.next_prefill()):
        pass
    s.started(r)
    return r


def chunks_of(s):
    out = []
    while not (out and out[-1].final):
        chunk = s.next_prefill()[0]
        assert chunk.first == (out[-1].stop if out else 0)
        out.append(chunk)
    return [chunk.stop for chunk in out]


def test_what_can_never_fit_is_refused_with_the_numbers():
    s = scheduler(pages=4)
    with pytest.raises(UnmaskError) as caught:
        add(s, "big", prompt=9, new=4, slots=13)
    text = "request big needs 4 cache pages (13 slots for a prompt of 9 and 4 new tokens, 4 a page), there are 3"
    assert str(caught.value) == text and s.idle
    add(s, prompt=8, new=4)
    for rows, budget in ((0, 1), (1, 0)):
        with pytest.raises(UnmaskError, match=f"{rows} rows and {budget}"):
            scheduler(rows=rows, budget=budget)


@pytest.mark.parametrize(
    ("plan", "stops"),
    [
        ({"prompt": 20, "grain": 1}, [7, 14, 20]),
        ({"prompt": 20, "grain": 4, "tokens": 20}, [4, 8, 12, 16, 20]),
        ({"prompt": 22, "grain": 8, "tokens": 16}, [8, 16]),  # a block is more than the budget
        ({"prompt": 20, "grain": 0}, [20]),
        ({"prompt": 20, "grain": 0, "tokens": 24}, [24]),
        ({"prompt": 14, "grain": 1, "tokens": 24}, [7, 13, 24]),  # the last prompt token stays with what follows
        ({"prompt": 15, "grain": 1}, [7, 14, 15]),
        ({"prompt": 3, "grain": 4, "tokens": 0}, [0]),
    ],
)
def test_chunks_end_at_multiples_of_the_grain_and_keep_to_the_budget(plan, stops):
    s = scheduler(budget=7)
    r = add(s, **plan)
    assert s.admit() is r
    assert chunks_of(s) == stops
    assert s.started(r) == 0 and r.status is Status.RUNNING


def test_a_budget_is_shared_by_several_and_the_first_always_advances():
    s = scheduler(budget=10)
    a, b, c = add(s, "a", prompt=6), add(s, "b", prompt=9, grain=0), add(s, "c", prompt=8)
    assert s.admit() is a and s.admit() is b and s.admit() is None  # 15 tokens are enough for an iteration
    assert s.next_prefill() == [Chunk(a, 0, 6)]  # b cannot be cut and waits
    s.started(a)
    assert s.admit() is c
    assert s.next_prefill() == [Chunk(b, 0, 9), Chunk(c, 0, 1)]
    s.started(b)
    assert s.next_prefill() == [Chunk(c, 1, 8)]
    assert [r.row for r in s.running] == [0, 1]


def test_rows_bound_what_is_admitted_and_order_is_that_of_arrival():
    s = scheduler(pages=100, rows=2)
    requests = [add(s, i) for i in range(3)]
    assert [s.admit(), s.admit(), s.admit()] == [*requests[:2], None]
    s.next_prefill()
    s.started(requests[0])
    assert s.admit() is None
    assert s.finish(requests[0]) is None and s.admit() is requests[2]


def blocked(patience):
    """A big request behind a small one that runs on, and how many small ones are admitted before it."""
    s = scheduler(pages=11, rows=3, patience=patience)
    first, big = run(s, "first"), add(s, "big", prompt=32, new=8)
    running = deque([first])
    for i in range(50):
        add(s, i)
        while s.admit():
            pass
        for chunk in s.next_prefill():
            s.started(chunk.request)
            running.append(chunk.request)
        if big.status is not Status.WAITING:
            return big
        if len(running) > 1 or big.overtaken >= patience:
            s.finish(running.popleft())
    return big


def test_a_big_request_is_overtaken_a_bounded_number_of_times():
    big = blocked(patience=2)
    assert big.status is Status.RUNNING and big.overtaken == 2
    assert blocked(patience=10**9).status is Status.WAITING  # without the bound it would starve


def test_rows_close_up_when_one_leaves():
    s = scheduler(pages=100)
    a, b, c, d = (run(s, name) for name in "abcd")
    assert s.finish(b) == Move(3, 1) and s.running == [a, d, c] and [r.row for r in s.running] == [0, 1, 2]
    assert s.abort(c) is None and s.preempt(a) == Move(1, 0) and s.running == [d]
    assert (b.status, c.status, a.status) == (Status.FINISHED, Status.ABORTED, Status.WAITING)
    assert b.row == -1 and b.lease is None and b.ended is not None and a.ended is None
    assert s.pool.used_pages == 3


@pytest.mark.parametrize("stage", ["waiting", "prefilling", "cut", "running"])
@pytest.mark.parametrize("leave", ["abort", "fail", "preempt"])
def test_leaving_at_any_stage_gives_everything_back(stage, leave):
    s = scheduler(budget=5)
    r = add(s)
    if stage != "waiting":
        s.admit()
    if stage in ("cut", "running"):
        s.next_prefill()
    if stage == "running":
        s.next_prefill()
        s.started(r)
    if leave == "preempt":
        if stage == "waiting":
            with pytest.raises(ValueError, match="cannot be preempted: it is waiting"):
                s.preempt(r)
            return
        assert s.preempt(r) is None and s.waiting == [r] and r.attempt == 1 and r.prefilled == 0
        assert s.admit() is r and s.next_prefill() == [Chunk(r, 0, 5)]
        s.abort(r)
    else:
        assert (s.abort(r) if leave == "abort" else s.fail(r, "layer 3 is not finite")) is None
        assert r.status is (Status.ABORTED if leave == "abort" else Status.FAILED)
        assert r.error == (None if leave == "abort" else "layer 3 is not finite")
    assert s.idle and s.pool.used_pages == 0 and s.pool.free_pages == 10
    s.pool.check()


def test_late_and_mistaken_calls():
    s = scheduler()
    r = run(s)
    s.finish(r)
    assert s.abort(r) is None and s.fail(r, "late") is None and r.status is Status.FINISHED and r.error is None
    for call in (s.finish, s.preempt, s.started, lambda x: s.add(x, 8)):
        with pytest.raises(ValueError, match="request r"):
            call(r)
    never = request()
    s.abort(never)
    with pytest.raises(ValueError, match="added or ended"):
        s.add(never, 8)
    early = add(s)
    s.admit()
    with pytest.raises(ValueError, match="0 of 8"):
        s.started(early)
    for grain, keys, tokens in ((1, "abc", 8), (1, "ab", 7), (0, "a", 8), (0, "ab", 7)):
        with pytest.raises(ValueError, match="keys"):
            add(s, grain=grain, keys=keys, tokens=tokens)


def test_a_preempted_request_comes_before_all_that_arrived_later():
    s = scheduler(pages=100, rows=2)
    a, b = run(s, "a"), run(s, "b")
    c = add(s, "c")
    s.preempt(b)
    s.preempt(a)
    assert s.waiting == [a, b, c] and s.admit() is a


def test_a_prefix_is_shared_and_only_the_rest_is_run():
    s = scheduler(pages=20)
    keys = prefix_keys(list(range(11)), PAGE, "m")
    a = run(s, "a", prompt=12, keys=keys)
    b = add(s, "b", prompt=12, keys=keys)
    assert s.admit() is b and b.prefilled == 8 and b.lease.shared == 2 and b.lease.pages[:2] == a.lease.pages[:2]
    assert s.next_prefill() == [Chunk(b, 8, 12)]
    s.finish(a)
    s.pool.check()


def test_sharing_ends_where_a_block_ends():
    s = scheduler(pages=30)
    keys = prefix_keys(list(range(24)), PAGE, "m", 6)
    assert len(keys) == 6
    run(s, "a", prompt=24, grain=6, keys=keys)
    for known, begin in ((6, 24), (5, 12), (3, 12), (2, 0)):
        b = add(s, known, prompt=24, grain=6, keys=keys[:known])
        assert s.admit() is b and b.prefilled == begin and b.lease.shared * PAGE == begin
        assert s.next_prefill() == [Chunk(b, begin, 24)]
        s.abort(b)


def test_a_bidirectional_prompt_is_shared_whole_with_its_last_page_copied():
    s = scheduler(pages=14)
    keys = prefix_keys(list(range(10)), PAGE, "m", 0)
    a = run(s, "a", prompt=10, grain=0, keys=keys, tokens=14)
    b = add(s, "b", prompt=10, grain=0, keys=keys, tokens=14)
    assert s.admit() is b and b.lease.shared == 2 and b.lease.source == a.lease.pages[2]
    assert s.next_prefill() == [Chunk(b, 9, 14)]
    s.started(b)
    assert b.lease.source is None
    s.pool.check()
    s.finish(a)
    s.finish(b)
    big = run(s, "big", prompt=10, new=42, grain=0, keys=keys, tokens=14)  # all 13 pages: none left for the source
    assert big.lease.shared == 0 and len(big.lease.pages) == 13


def test_pages_of_a_failed_request_are_not_shared():
    s = scheduler(pages=20)
    keys = prefix_keys(list(range(8)), PAGE, "m")
    s.fail(run(s, "a", prompt=9, keys=keys), "logits are not finite")
    b = add(s, "b", prompt=9, keys=keys)
    assert s.admit() is b and b.prefilled == 0 and s.pool.cached_pages == 0


def test_time_to_first_token():
    s = scheduler()
    r = run(s)
    assert r.time_to_first_token is None
    r.first_token = r.added + 0.5
    assert r.time_to_first_token == pytest.approx(0.5)
