"""Page accounting: names of prefixes, leases, sharing, eviction. See also engine/test_simulation.py."""

from __future__ import annotations

import random

import pytest

from unmask.cache.pages import PagePool, prefix_keys
from unmask.errors import UnmaskError

PAGE = 4


def keys_of(tokens, grain=1, salt="m"):
    return prefix_keys(tokens, PAGE, salt, grain)


def named(pool, count, keys):
    """A lease of `count` pages with names, already given back."""
    lease = pool.take(count)
    pool.register(lease, keys)
    pool.free(lease)
    return lease


@pytest.mark.parametrize("grain", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 12, 23, 24])
def test_a_page_is_named_when_all_that_its_tokens_see_is_there(grain, length):
    keys = keys_of(list(range(length)), grain)
    seen = [-(-end // grain) * grain for end in range(PAGE, length + 1, PAGE)]
    assert len(keys) == sum(end <= length for end in seen)
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("grain", [1, 4, 6, 8])
def test_a_changed_token_changes_the_names_of_the_pages_that_see_it(grain):
    tokens = list(range(100, 124))
    names = keys_of(tokens, grain)
    for place in range(24):
        changed = keys_of([*tokens[:place], 7, *tokens[place + 1 :]], grain)
        for page, (old, new) in enumerate(zip(names, changed)):
            sees = place < -(-(page + 1) * PAGE // grain) * grain
            assert (old != new) == sees, (place, page)


def test_names_of_a_longer_prompt_begin_with_those_of_a_shorter_one():
    tokens = [random.Random(1).randrange(1 << 40) for _ in range(40)]
    for grain in (1, 4, 6):
        for length in range(40):
            short = keys_of(tokens[:length], grain)
            assert short == keys_of(tokens, grain)[: len(short)]


def test_a_bidirectional_prompt_is_named_as_a_whole_with_its_last_partial_page():
    tokens = list(range(10))
    names = keys_of(tokens, 0)
    assert len(names) == len(set(names)) == 3
    for other in (tokens[:-1], tokens + [10], [*tokens[:-1], 99]):
        assert not set(keys_of(other, 0)) & set(names)


def test_names_depend_on_salt_and_grain_and_on_token_boundaries():
    tokens = [1, 2, 3, 4]
    variants = [keys_of(tokens, grain, salt) for grain in (0, 1, 2, 4) for salt in ("a", "b", "", "1:a")]
    assert len(set(variants)) == len(variants)
    assert keys_of([1, 256, 0, 0]) != keys_of([257, 0, 0, 0]) and keys_of([0] * 4) != keys_of([0] * 8)[1:]


def test_pages_are_given_out_once_and_page_zero_never():
    pool = PagePool(6, PAGE)
    first, second = pool.take(2), pool.take(3)
    assert sorted(first.pages + second.pages) == [1, 2, 3, 4, 5]
    assert pool.take(1) is None and pool.take(0).pages == ()
    assert (pool.free_pages, pool.cached_pages, pool.used_pages, pool.capacity) == (0, 0, 5, 5)
    pool.check()
    pool.free(first)
    assert pool.take(3) is None
    assert sorted(pool.take(2).pages) == sorted(first.pages)
    pool.check()


def test_pages_for_rounds_up():
    assert [PagePool(3, PAGE).pages_for(n) for n in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]


def test_registered_pages_are_shared_while_held_and_after():
    pool = PagePool(10, PAGE)
    a = pool.take(3)
    pool.register(a, ["k0", "k1"])
    b = pool.take(4, ["k0", "k1", "k2"])
    assert b.pages[:2] == a.pages[:2] and b.shared == 2 and b.source is None and not set(b.pages[2:]) & set(a.pages)
    pool.check()
    pool.free(a)
    assert (pool.free_pages, pool.cached_pages, pool.used_pages) == (5, 0, 4)
    pool.free(b)
    assert (pool.free_pages, pool.cached_pages, pool.used_pages) == (7, 2, 0)
    assert pool.take(2, ["k0", "x", "k1"][:2]).pages[0] == a.pages[0]
    assert pool.hits(["k1"]) == 1 and pool.hits(["x", "k1"]) == 0  # leading ones only
    pool.check()


def test_least_recently_used_goes_first_and_of_a_prefix_its_end():
    pool = PagePool(7, PAGE)
    old = named(pool, 3, ["a0", "a1", "a2"])
    new = named(pool, 3, ["b0", "b1", "b2"])
    pool.free(pool.take(1, ["a0"]))  # used again
    order = [old.pages[2], old.pages[1], new.pages[2], new.pages[1], new.pages[0], old.pages[0]]
    assert [pool.take(1).pages[0] for _ in range(6)] == order
    assert pool.hits(["a0"]) == pool.hits(["b0"]) == 0
    pool.check()


def test_what_is_to_be_shared_is_not_evicted_to_make_room():
    pool = PagePool(5, PAGE)
    held = named(pool, 4, ["a", "b", "c", "d"])
    lease = pool.take(4, ["a", "b", "c"])
    assert lease.pages == held.pages and lease.shared == 3 and pool.hits(["a", "b", "c", "d"]) == 3
    pool.free(lease)
    busy = pool.take(2)  # evicts from the end
    assert pool.take(3, ["a", "b"]) is None  # the two that are left are wanted themselves
    assert pool.take(2, ["a", "b"]).pages == held.pages[:2] and busy is not None
    pool.check()
    pool = PagePool(5, PAGE)
    old, new = named(pool, 2, ["a", "b"]), named(pool, 2, ["x", "y"])
    assert pool.take(4, ["a", "b"]).pages == (*old.pages, new.pages[1], new.pages[0])  # not its own, though oldest
    pool.check()


def test_a_failed_take_changes_nothing():
    pool = PagePool(5, PAGE)
    named(pool, 2, ["a", "b"])
    pool.take(1)
    before = (list(pool._free), list(pool._cached), list(pool._count), dict(pool._page))
    assert pool.take(5) is None and pool.take(4, ["a"]) is None and pool.take(4, ["a", "b"], copy_last=True) is None
    assert before == (pool._free, list(pool._cached), pool._count, pool._page)


def test_the_source_of_a_copy_is_held_until_it_is_copied():
    pool = PagePool(5, PAGE)
    held = named(pool, 2, ["a", "b"])
    lease = pool.take(2, ["a", "b"], copy_last=True)
    assert lease.pages[0] == held.pages[0] and lease.shared == 1 and lease.pages[1] != lease.source == held.pages[1]
    pool.check()
    assert pool.take(2) is None and pool.used_pages == 3  # one page is free, the source is not
    pool.copied(lease)
    assert lease.source is None and pool.cached_pages == 1 and pool.take(2) is not None
    pool.copied(lease)  # nothing more to do
    pool.check()


def test_freeing_gives_the_source_back_too_and_a_copy_needs_a_page_more():
    pool = PagePool(3, PAGE)
    named(pool, 2, ["a", "b"])
    assert pool.take(2, ["a", "b"], copy_last=True) is None
    assert pool.take(2, ["a", "b"]).shared == 2
    pool = PagePool(4, PAGE)
    named(pool, 2, ["a", "b"])
    pool.free(pool.take(2, ["a", "b"], copy_last=True))
    assert (pool.used_pages, pool.cached_pages, pool.free_pages) == (0, 2, 1)
    pool.check()


def test_equal_content_is_named_once_and_a_name_is_kept():
    pool = PagePool(9, PAGE)
    a, b = pool.take(2), pool.take(2)
    pool.register(a, ["a", "b"])
    pool.register(b, ["a", "b"])
    pool.register(a, ["x", "y"])
    assert pool.hits(["a", "b"]) == 2 and pool.hits(["x"]) == 0
    pool.free(b)
    assert pool.cached_pages == 0 and pool.take(1, ["a"]).pages == a.pages[:1]
    pool.check()


def test_forgotten_pages_are_found_no_more_and_others_keep_them():
    pool = PagePool(9, PAGE)
    a = pool.take(3)
    pool.register(a, ["a", "b"])
    b = pool.take(3, ["a", "b"])
    pool.free(a, forget=True)
    assert pool.hits(["a"]) == 0 and pool.used_pages == 3
    pool.check()
    pool.free(b)
    assert (pool.free_pages, pool.cached_pages) == (8, 0)
    pool.check()


def test_mistakes_raise():
    pool, other = PagePool(5, PAGE), PagePool(5, PAGE)
    lease = pool.take(2)
    with pytest.raises(ValueError, match="another pool"):
        other.free(lease)
    with pytest.raises(ValueError, match="names"):
        pool.register(lease, ["a", "b", "c"])
    with pytest.raises(ValueError, match="do not fit"):
        pool.take(1, ["a", "b"])
    pool.free(lease)
    for again in (pool.free, pool.copied, lambda x: pool.register(x, ["a"])):
        with pytest.raises(ValueError, match="not held"):
            again(lease)
    for pages, size in ((1, 4), (4, 0)):
        with pytest.raises(UnmaskError, match=f"{pages} pages of {size}"):
            PagePool(pages, size)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda p: p._free.pop(),
        lambda p: p._free.append(p._free[0]),
        lambda p: p._free.append(0),
        lambda p: p._drop(next(iter(p._leases)).pages[2]),
        lambda p: p._hold(next(iter(p._leases)).pages[0]),
        lambda p: p._cached.popitem(),
        lambda p: p._page.clear(),
        lambda p: p._key.__setitem__(p._free[0], "z"),
        lambda p: [setattr(lease, "shared", 0) for lease in p._leases],
        lambda p: p._leases.pop(),
    ],
)
def test_check_finds_what_is_wrong(break_it):
    pool = PagePool(12, PAGE)
    named(pool, 3, ["a", "b", "c"])
    pool.take(3, ["a"])
    pool.take(3, ["a"])
    pool.check()
    break_it(pool)
    with pytest.raises(AssertionError):
        pool.check()
