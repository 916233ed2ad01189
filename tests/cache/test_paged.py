"""The paged cache holds and gives what the contiguous one does, whatever pages a row got."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmask.attention.dense import DenseAttention
from unmask.attention.paged import paged_attention, paged_reference
from unmask.cache.contiguous import ContiguousCache
from unmask.cache.paged import PagedCache
from unmask.layout import PAD, Layout, causal

LAYERS, GROUPS, HEADS, SIZE = 2, 2, 4, 4


def random_layout(rows: int, width: int) -> Layout:
    order, lane = torch.randint(0, 4, (2, rows, width))
    return Layout(order, lane, torch.randint(PAD, 2, (rows, width)), torch.zeros_like(order))


def random_slots(rows: int, slots: int, count: int) -> Tensor:
    """Distinct slots of each row [B, count], -1 for some; sometimes the same run of slots in every row."""
    if count <= slots and torch.rand(()) < 0.3:
        return (torch.randint(slots - count + 1, ()) + torch.arange(count)).expand(rows, -1)
    picked = torch.stack([torch.randperm(max(slots, count))[:count] for _ in range(rows)])
    return torch.where((picked >= slots) | (torch.rand(rows, count) < 0.3), -1, picked)


def inputs(rows: int, width: int) -> list[Tensor]:
    return [torch.randn(rows, n, width, SIZE) for n in (HEADS, GROUPS, GROUPS)]


def filled(rows: int, pages: int, page_size: int, slots: int) -> tuple[PagedCache, ContiguousCache, Tensor]:
    """Both caches with the same random contents, and the table. What belongs to no row is NaN."""
    plain = ContiguousCache(LAYERS, rows, GROUPS, slots, SIZE)
    paged = PagedCache(LAYERS, rows * pages + 2, page_size, GROUPS, SIZE)
    table = (1 + torch.randperm(rows * pages + 2)[: rows * pages]).view(rows, pages).int()
    for held, pool in ((plain.keys, paged.keys), (plain.values, paged.values)):
        held.normal_()
        pool.fill_(torch.nan)
        pool[:, places(table, page_size, slots)] = held.transpose(2, 3)
    return paged, plain, table


def places(table: Tensor, page_size: int, slots: int) -> Tensor:
    """The physical slots of the logical ones [0, slots)."""
    return torch.tensor([[int(row[n // page_size]) * page_size + n % page_size for n in range(slots)] for row in table])


def assert_same(paged: PagedCache, plain: ContiguousCache, table: Tensor) -> None:
    where = places(table, paged.page_size, plain.slots)
    for held, pool in ((plain.keys, paged.keys), (plain.values, paged.values)):
        assert torch.equal(pool[:, where], held.transpose(2, 3))
        # Nothing was written outside of the rows' slots and the spare page.
        outside = torch.ones(pool.shape[1], dtype=torch.bool)
        outside[where.flatten()] = False
        outside[: paged.page_size] = False
        assert bool(pool[:, outside].isnan().all())


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.sampled_from([2, 4, 8]), st.integers(1, 3), st.integers(0, 2**31))
def test_any_sequence_of_forwards_equals_the_contiguous_cache(rows, width, page_size, pages, seed):
    torch.manual_seed(seed)
    slots = pages * page_size - int(torch.randint(page_size, ()))  # the last page need not be full
    paged, plain, table = filled(rows, pages, page_size, slots)
    for _ in range(3):
        layout, store = random_layout(rows, width), random_slots(rows, slots, width)
        seen = torch.randint(0, slots + 1, (rows,))
        ours, theirs = paged.window(table, layout, seen, store), plain.window(layout, seen, store)
        valid = (layout.segment != PAD)[:, None, :, None]
        for layer in range(LAYERS):
            arguments = inputs(rows, width)
            out, expected = ours(layer, *arguments), theirs(layer, *arguments)
            assert bool(out.isfinite().all())
            assert torch.allclose(out * valid, expected * valid, atol=1e-5)
        source, target = random_slots(rows, slots, 3), random_slots(rows, slots, 3)
        source = torch.where(target < 0, -1, source)
        paged.move(table, source, torch.where(source < 0, -1, target))
        plain.move(source, target)
        assert_same(paged, plain, table)


def test_moves_read_everything_before_they_write():
    paged, plain, table = filled(2, 2, 4, 8)
    source, target = torch.tensor([[0, 1, 2], [5, -1, 4]]), torch.tensor([[1, 2, 0], [4, -1, 5]])
    paged.move(table, source, target)
    plain.move(source, target)
    assert_same(paged, plain, table)


@pytest.mark.parametrize("source", [-1, 3])
@pytest.mark.parametrize("target", [-1, 5])
def test_a_move_that_lacks_one_end_does_nothing(source, target):
    paged, plain, table = filled(1, 2, 4, 8)
    paged.move(table, torch.tensor([[source]]), torch.tensor([[target]]))
    if source == 3 and target == 5:
        plain.move(torch.tensor([[3]]), torch.tensor([[5]]))
    assert_same(paged, plain, table)


def test_a_cache_without_pages_is_attention_within_the_window():
    cache = PagedCache(1, 0, 16, GROUPS, SIZE)
    layout = random_layout(3, 5)
    none = torch.full((3, 5), -1)
    arguments = inputs(3, 5)
    window = cache.window(torch.zeros(3, 1, dtype=torch.int32), layout, torch.zeros(3, dtype=torch.long), none)
    out, expected = window(0, *arguments), DenseAttention(layout)(0, *arguments)
    valid = (layout.segment != PAD)[:, None, :, None]
    assert torch.allclose(out * valid, expected * valid, atol=1e-6)
    assert bool(out.isfinite().all())


def test_a_copied_page_serves_another_row():
    """Copy on write: the copy reads as the original did, and writing to it leaves the original alone."""
    paged, _, table = filled(2, 2, 4, 8)
    before = paged.keys.clone()
    shared, own = int(table[0, 0]), int(table[1, 0])
    paged.copy_page(shared, own)
    assert torch.equal(paged.keys[:, own * 4 : own * 4 + 4], before[:, shared * 4 : shared * 4 + 4])
    layout = causal(2).batch(2)
    store = torch.tensor([[-1, -1], [0, 3]])
    paged.window(table, layout, torch.tensor([4, 4]), store)(0, *inputs(2, 2))
    assert torch.equal(paged.keys[:, shared * 4 : shared * 4 + 4], before[:, shared * 4 : shared * 4 + 4])
    assert not torch.equal(paged.keys[0, own * 4], before[0, shared * 4])


def test_rows_may_read_the_same_pages():
    paged, plain, table = filled(1, 3, 4, 12)
    both = table.expand(2, -1)
    layout = causal(3).batch(2)
    none = torch.full((2, 3), -1)
    seen = torch.tensor([12, 7])
    arguments = inputs(2, 3)
    out = paged.window(both, layout, seen, none)(0, *arguments)
    plain.select(torch.tensor([0, 0]))
    assert torch.allclose(out, plain.window(layout, seen, none)(0, *arguments), atol=1e-6)


def test_views_of_one_buffer_are_taken_as_they_are():
    """What a fused projection gives: queries, keys and values side by side."""
    paged, _, table = filled(2, 2, 4, 8)
    layout = random_layout(2, 3)
    window = paged.window(table, layout, torch.tensor([8, 5]), random_slots(2, 8, 3))
    buffer = torch.randn(2, 3, (HEADS + 2 * GROUPS) * SIZE)
    parts = buffer.unflatten(-1, (-1, SIZE)).split([HEADS, GROUPS, GROUPS], 2)
    held = (paged.keys[1], paged.values[1])
    out = paged_attention(*parts, *held, window.view)
    assert torch.equal(out, paged_attention(*(x.contiguous() for x in parts), *held, window.view))
    assert torch.allclose(out, paged_reference(*parts, *held, window.view), atol=1e-6)


def test_reads_and_writes_of_a_window_are_named_by_its_view():
    paged, _, _ = filled(1, 2, 4, 8)
    table = torch.tensor([[3, 1]])
    layout = causal(3).batch(1)
    view = paged.window(table, layout, torch.tensor([7]), torch.tensor([[6, -1, 1]])).view
    assert view.readable_BN.tolist() == [[1, 0, 1, 1, 1, 1, 0, 0]]
    assert view.store_M.tolist() == [4 + 2, -1, 12 + 1]
    assert view.seen_B.tolist() == [7]


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 5), st.integers(0, 2**31))
def test_packed_rows_read_and_write_as_they_do_apart(rows, width, spare, seed):
    """Rows of different widths, some with nothing at all, and more room than there are tokens."""
    torch.manual_seed(seed)
    apart, _, table = filled(rows, 2, 4, 8)
    together = PagedCache(LAYERS, rows * 2 + 2, 4, GROUPS, SIZE)
    together.keys.copy_(apart.keys)
    together.values.copy_(apart.values)
    used = torch.randint(0, width + 1, (rows, 1))
    layout = random_layout(rows, width).with_padding(torch.arange(width) < used)
    seen, store = torch.randint(0, 9, (rows,)), random_slots(rows, 8, width)
    store = torch.where(layout.segment == PAD, -1, store)
    tokens = int(used.sum()) + spare + 1
    plain, packed = apart.window(table, layout, seen, store), together.window(table, layout, seen, store, tokens)
    how = packed.view.packed
    assert how is not None
    index = torch.arange(1, width + 1)
    assert how.count_B.tolist() == torch.where(layout.segment == PAD, 0, index).amax(-1).tolist()
    arguments = inputs(rows, width)
    expected = plain(1, *arguments)
    found = packed(1, *(how.take(x.transpose(1, 2)).transpose(1, 2) for x in arguments))
    back = how.spread(found.transpose(1, 2), rows, width).transpose(1, 2)
    valid = (layout.segment != PAD)[:, None, :, None]
    assert torch.allclose(back * valid, expected * valid, atol=1e-6)
    # The spare page takes what is not stored, and padding differs.
    for held, other in ((apart.keys, together.keys), (apart.values, together.values)):
        assert torch.equal(held[:, 4:].nan_to_num(7), other[:, 4:].nan_to_num(7))
