"""The contiguous cache: any sequence of windows equals attention over everything at once."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.attention.dense import DenseAttention, sdpa
from unmask.cache.contiguous import ContiguousCache
from unmask.layout import PAD, Layout, block_causal, visible

SLOTS, HEADS, SIZE = 24, 2, 4


def cache(rows: int = 1) -> ContiguousCache:
    return ContiguousCache(1, rows, 1, SLOTS, SIZE)


def layout_of(order: torch.Tensor, segment: torch.Tensor | None = None) -> Layout:
    zero = torch.zeros_like(order)
    return Layout(order, zero, zero if segment is None else segment, zero)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**31))
def test_block_by_block_equals_one_block_causal_forward(blocks, size, seed):
    torch.manual_seed(seed)
    n = blocks * size
    q, k, v = torch.randn(1, HEADS, n, SIZE), torch.randn(1, 1, n, SIZE), torch.randn(1, 1, n, SIZE)
    whole = DenseAttention(block_causal(n, size))(0, q, k, v)
    store = cache()
    for b in range(blocks):
        at = torch.arange(b * size, (b + 1) * size)
        window = store.window(layout_of(torch.zeros(1, size).long()), torch.tensor([b * size]), at[None])
        # Scratch keys of an unfinished block are overwritten by the next forward and leave no trace.
        window(0, torch.randn(1, HEADS, size, SIZE), torch.randn(1, 1, size, SIZE), torch.randn(1, 1, size, SIZE))
        out = window(0, q[:, :, at], k[:, :, at], v[:, :, at])
        assert torch.allclose(out, whole[:, :, at], atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31))
def test_both_window_kinds_follow_the_written_contract(seed):
    """Random slots: reads are [0, visible) minus what the window overwrites, plus the window under the rule."""
    torch.manual_seed(seed)
    rows, width = 3, 4
    store = cache(rows)
    store.keys.normal_()
    store.values.normal_()
    seen = torch.randint(0, SLOTS - width, (rows,))
    slots = torch.stack([torch.randperm(SLOTS)[:width] for _ in range(rows)])
    slots[0, 0] = -1
    if seed % 3 == 0:
        slots = torch.arange(5, 5 + width).expand(rows, -1).clone()
    order = torch.randint(0, 3, (rows, width))
    segment = torch.zeros_like(order)
    segment[1, -1] = PAD
    layout = layout_of(order, segment)
    q, k, v = (
        torch.randn(rows, HEADS, width, SIZE),
        torch.randn(rows, 1, width, SIZE),
        torch.randn(rows, 1, width, SIZE),
    )
    keys, values = store.keys[0].clone(), store.values[0].clone()
    out = store.window(layout, seen, slots)(0, q, k, v)
    for b in range(rows):
        kept = [s for s in range(int(seen[b])) if s not in slots[b].tolist()]
        all_k = torch.cat([keys[b : b + 1, :, kept], k[b : b + 1]], 2)
        all_v = torch.cat([values[b : b + 1, :, kept], v[b : b + 1]], 2)
        mask = torch.cat([torch.ones(width, len(kept), dtype=torch.bool), visible(layout, layout)[b]], 1)
        assert torch.allclose(out[b : b + 1], sdpa(q[b : b + 1], all_k, all_v, mask[None]), atol=1e-5)
        for i, slot in enumerate(slots[b].tolist()):
            if slot >= 0:
                assert torch.equal(store.keys[0, b, :, slot], k[b, :, i])
        untouched = [s for s in range(SLOTS) if s not in slots[b].tolist()]
        assert torch.equal(store.keys[0, b][:, untouched], keys[b][:, untouched])


def test_select_keeps_rows_in_order():
    store = cache(3)
    store.keys[:, 2] = 7
    store.select(torch.tensor([2, 0]))
    assert store.keys.shape[1] == 2
    assert bool((store.keys[:, 0] == 7).all())
    assert bool((store.keys[:, 1] == 0).all())


def test_moved_slots_take_the_place_of_others_and_nothing_else_changes():
    store = cache(rows=2)
    store.keys.copy_(torch.arange(store.keys.numel()).view_as(store.keys).float())
    store.values.copy_(-store.keys)
    before = store.keys.clone()
    # Row 0 moves 20, 21 to 3, 4; row 1 moves 22 to 0; overlapping moves read what was there before.
    store.move(torch.tensor([[20, 21], [22, -1]]), torch.tensor([[3, 4], [0, -1]]))
    expected = before.clone()
    expected[:, 0, :, 3:5] = before[:, 0, :, 20:22]
    expected[:, 1, :, 0] = before[:, 1, :, 22]
    assert torch.equal(store.keys, expected)
    assert torch.equal(store.values, -expected)
    store.move(torch.tensor([[3, 4], [-1, -1]]), torch.tensor([[4, 5], [-1, -1]]))
    assert torch.equal(store.keys[:, 0, :, 4:6], expected[:, 0, :, 3:5])
