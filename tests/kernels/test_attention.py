"""Paged attention against a dense reference in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from unmask.attention.paged import PagedView, paged_attention, paged_reference, view
from unmask.layout import PAD, Layout, visible

pytest.importorskip("triton")
from unmask.cache.paged import PagedCache
from unmask.engine import tuning
from unmask.kernels import tiling as tiles
from unmask.kernels.attention import attend
from unmask.kernels.tiling import Shape, Tiling, candidates, choose, pipelines

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@dataclass
class Case:
    """Arguments of one call, and what they were made of."""

    q: Tensor
    k: Tensor
    v: Tensor
    keys: Tensor
    values: Tensor
    view: PagedView
    store: Tensor  # logical

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, PagedView]:
        return self.q, self.k, self.v, self.keys, self.values, self.view


def make(
    seed: int,
    device: str,
    *,
    rows: int = 3,
    width: int = 5,
    group: int = 2,
    kv_heads: int = 1,
    size: int = 16,
    page_size: int = 16,
    pages: int = 3,
    dtype: torch.dtype = torch.float32,
    layout: Layout | None = None,
    seen: list[int] | None = None,
) -> Case:
    """Random tables, orders, lanes, segments, lengths and slots; whatever must not be read is NaN."""
    g = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=g)

    heads, slots, every = group * kv_heads, page_size * pages, 1 + rows * pages
    table = 1 + torch.randperm(every - 1, generator=g).view(rows, pages)
    if layout is None:
        segment = integers(PAD, 2, rows, width)
        segment[0] = PAD
        zero = torch.zeros_like(segment)
        layout = Layout(integers(0, 4, rows, width), integers(0, 3, rows, width), segment, zero)
    length = integers(0, slots + 1, rows)
    length[0], length[-1] = 0, slots - 1
    if seen is not None:
        length = torch.tensor(seen)
    # Slots inside and outside of what is read, each at most once.
    store = torch.stack([torch.randperm(max(slots, width), generator=g)[:width] for _ in range(rows)])
    store[(integers(0, 3, rows, width) == 0) | (store >= slots) | (layout.segment == PAD)] = -1

    qkv = torch.randn(rows, width, heads + 2 * kv_heads, size, generator=g).to(dtype)
    held = torch.randn(2, every * page_size, kv_heads, size, generator=g)
    index = torch.arange(slots)
    physical = table[:, index // page_size] * page_size + index % page_size
    held[:, :page_size] = held[:, physical[index >= length[:, None]]] = torch.nan
    keys, values = held.to(device, dtype)
    on_device = view(table.int().to(device), page_size, layout.to(device), length.to(device), store.to(device))
    q, k, v = qkv.to(device).split([heads, kv_heads, kv_heads], 2)
    return Case(q, k, v, keys, values, on_device, store.to(device))


def reference(case: Case) -> Tensor:
    """Row by row, from lists of slots: [B, W, H, D] in float64."""
    out = []
    page_size, table = case.view.page_size, case.view.table_BT.tolist()
    mask_BWW = visible(case.view.layout, case.view.layout)
    group = case.q.shape[2] // case.k.shape[2]
    for b, seen in enumerate(case.view.seen_B.tolist()):
        written = set(case.store[b].tolist())
        slots = [table[b][n // page_size] * page_size + n % page_size for n in range(seen) if n not in written]
        k, v = (
            torch.cat([held[slots], window[b]]).double().repeat_interleave(group, 1)
            for held, window in ((case.keys, case.k), (case.values, case.v))
        )
        score = torch.einsum("whd,khd->hwk", case.q[b].double(), k) * case.q.shape[-1] ** -0.5
        prefix = torch.ones(len(mask_BWW[b]), len(slots), dtype=torch.bool, device=score.device)
        score = score.masked_fill(~torch.cat([prefix, mask_BWW[b]], 1), -torch.inf)
        out.append(torch.einsum("hwk,khd->whd", score.softmax(-1), v))
    return torch.stack(out)


def error(case: Case, out: Tensor) -> float:
    """Relative error of what valid queries get; padded ones must be finite."""
    assert bool(out.isfinite().all())
    assert out.dtype == case.q.dtype
    valid = (case.view.layout.segment != PAD)[..., None, None]
    expected = reference(case) * valid
    return float((out.double() * valid - expected).norm() / expected.norm().clamp(min=1e-9))


def run(case: Case, tiling: Tiling | None = None) -> Tensor:
    v, layout = case.view, case.view.layout
    shared = (v.table_BT, v.page_size, v.clear_B, v.seen_B, v.readable_BN, layout.order, layout.lane, layout.segment)
    return attend(*case.arguments[:-1], *shared, tiling=tiling)


@pytest.mark.parametrize(("group", "kv_heads"), [(1, 2), (4, 1), (7, 1)])
@pytest.mark.parametrize("size", [8, 16, 64, 80, 96, 128])
def test_heads_of_every_size_in_groups_of_every_size(device, size, group, kv_heads):
    case = make(size + group, device, size=size, group=group, kv_heads=kv_heads)
    assert error(case, paged_attention(*case.arguments)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("size", "width"), [(64, 5), (128, 20), (80, 9)])
def test_half_precision(device, dtype, size, width):
    if device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("the interpreter multiplies the bits of bfloat16 as whole numbers")
    case = make(0, device, size=size, width=width, group=7, dtype=dtype)
    assert error(case, paged_attention(*case.arguments)) < TOLERANCE[dtype]


@pytest.mark.parametrize("splits", [1, 2, 3, 9])
@pytest.mark.parametrize(("block_m", "block_n"), [(16, 16), (32, 64), (64, 32)])
def test_every_split_and_tile_gives_the_same(device, block_m, block_n, splits):
    """More splits than blocks, windows of several blocks, tiles that end within a group of heads."""
    case = make(splits, device, width=21, group=3, kv_heads=1, page_size=32, pages=2)
    assert error(case, run(case, Tiling(block_m, block_n, splits, 4, 2))) < TOLERANCE[torch.float32]


def packed(case: Case, tokens: int, tiling: Tiling | None) -> Tensor:
    """What the same rows get when they are packed, back in their places."""
    v = case.view
    shared = view(v.table_BT, v.page_size, v.layout, v.seen_B.long(), case.store, tokens)
    how = shared.packed
    assert how is not None
    q, k, v_ = (how.take(x) for x in (case.q, case.k, case.v))
    layout, starts = v.layout, (how.start_B, how.count_B)
    held = (v.table_BT, v.page_size, v.clear_B, v.seen_B, v.readable_BN, layout.order, layout.lane, layout.segment)
    out = attend(q, k, v_, case.keys, case.values, *held, starts, tiling)
    return how.spread(out, *layout.shape)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("block_m", [16, 64])
@pytest.mark.parametrize("group", [1, 7])
def test_packed_rows_of_different_widths(device, group, block_m, splits):
    """A row without tokens, one of a single token, one of several tiles; room for more."""
    segment = torch.full((4, 21), PAD)
    for row, count in enumerate((21, 0, 1, 9)):
        segment[row, :count] = 0
    index = torch.arange(21).expand(4, -1)
    case = make(group, device, rows=4, width=21, group=group, layout=Layout(index, index * 0, segment, index))
    for tokens in (31, 40):
        out = packed(case, tokens, Tiling(block_m, 16, splits, 4, 2))
        assert error(case, out) < TOLERANCE[torch.float32]
    assert error(case, packed(case, 32, None)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("page_size", [16, 32, 64, 128])
@pytest.mark.parametrize("block_n", [16, 64])
def test_pages_smaller_and_larger_than_a_block(device, page_size, block_n):
    case = make(page_size, device, kv_heads=2, page_size=page_size, pages=128 // page_size)
    assert error(case, run(case, Tiling(16, block_n, 2, 4, 3))) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("width", [1, 17])
def test_rows_that_see_nothing_are_finite(device, width, splits):
    zero = torch.zeros(2, width, dtype=torch.long)
    layout = Layout(zero, zero, torch.stack([zero[0] + PAD, zero[0]]), zero)
    case = make(0, device, rows=2, width=width, layout=layout, seen=[0, 0])
    assert error(case, run(case, Tiling(16, 16, splits, 4, 2))) < TOLERANCE[torch.float32]


def test_keys_behind_all_queries_of_a_tile_are_not_read(device):
    index = torch.arange(48)[None]
    causal = Layout(index, torch.zeros_like(index), torch.zeros_like(index), index)
    case = make(0, device, rows=1, width=48, group=1, layout=causal, seen=[10])
    expected = run(case, Tiling(16, 16, 1, 4, 2))
    case.v[:, 32:] = torch.nan
    out = run(case, Tiling(16, 16, 1, 4, 2))
    assert torch.equal(out[:, :32], expected[:, :32])
    assert bool(out[:, 32:].isnan().all())


def test_layouts_may_be_expanded_and_of_any_integer(device):
    case = make(1, device, width=9)
    one = case.view.layout.map(lambda x: x[1:2])
    seen, table = case.view.seen_B, case.view.table_BT
    outs = []
    for layout in (one.map(lambda x: x.expand(3, -1)), one.map(lambda x: x.expand(3, -1).int())):
        shared = view(table, case.view.page_size, layout, seen.long(), case.store)
        outs.append(paged_attention(*case.arguments[:-1], shared))
        assert error(replace(case, view=shared), outs[-1]) < TOLERANCE[torch.float32]
    assert torch.equal(*outs)


def test_tilings_follow_the_shape():
    """Qwen2.5-7B, 1024 slots: few tiles are split until the GPU is full, many are large and whole."""

    def of(rows: int, width: int) -> Tiling:
        return choose(Shape(rows, width, 28, 4, 128, 1024 + width, 2))

    assert of(1, 1).splits > 8
    assert of(32, 1).splits == 1
    assert of(32, 1).block_m == 16
    assert of(32, 128).block_m == 128
    for rows in (1, 2, 8, 32, 128):
        for width in (1, 8, 32, 128, 1024):
            tiling = of(rows, width)
            tiles = rows * 4 * -(-width * 7 // tiling.block_m)
            assert tiling.splits == 1 or tiles * tiling.splits <= 132
            assert tiling.splits <= 17 + -(-width // tiling.block_n) + 1


def test_candidates_are_few_and_begin_with_the_choice():
    for rows, width, packed in [(1, 1, None), (8, 32, None), (32, 8, None), (8, 32, 96), (64, 32, None)]:
        shape = Shape(rows, width, 28, 4, 128, 1280, 2, packed=packed)
        found = candidates(shape)
        assert found[0] == choose(shape) and 1 < len(found) <= 7 and len(set(found)) == len(found)
        assert all(1 <= tiling.splits <= shape.most(tiling.block_n) for tiling in found)
        ahead = candidates(replace(shape, ahead=True))
        assert ahead[: len(found)] == found and 0 < len(set(ahead[len(found) :])) == len(ahead) - len(found) <= 3
        assert all(tiling.ahead for tiling in ahead[len(found) :]) and not any(tiling.ahead for tiling in found)
    assert any(tiling.block_m == 128 and tiling.splits > 1 for tiling in candidates(Shape(8, 32, 28, 4, 128, 1280, 2)))
    whole = Shape(8, 32, 28, 4, 128, 1280, 4)
    assert candidates(whole) == [choose(whole)]


@pytest.mark.parametrize("pages", [0, 5])
@pytest.mark.parametrize("packed", [False, True])
def test_the_fastest_tiling_measured_is_taken(device, packed, pages, monkeypatch):
    def took(calls):
        assert all(bool(call().isfinite().all()) for call in calls)
        return next(times)

    times = iter(range(9, 0, -1))  # the last one tried is the fastest
    monkeypatch.setattr(tuning, "microseconds", took)
    monkeypatch.setattr(tiles, "fastest", {})
    cache = PagedCache(2, pages, 16, 1, 16, device=device, dtype=torch.float16)
    rows, width, per_row = 3, 20, 2
    tokens = 33 if packed else rows * width
    measured = tuning.tune_attention(cache, 4, rows, width, tokens, per_row)
    ((shape, tiling),) = tiles.fastest.items()
    assert list(measured) == candidates(shape) and tiling == candidates(shape)[-1] != choose(shape)
    assert not tuning.tune_attention(cache, 4, rows, width, tokens, per_row)
    monkeypatch.setattr(tiles, "choose", None)
    case = make(0, device, rows=rows, width=width, group=4, pages=per_row, dtype=torch.float16)
    if not packed:
        assert error(case, run(case)) < TOLERANCE[torch.float16]


def pipelined(splits: int, block_m: int = 64, stages: int = 4) -> Tiling:
    if not pipelines(torch.device("cuda"), 2, 128, 64):
        pytest.skip("needs a Hopper GPU and Gluon")
    return Tiling(block_m, 64, splits, block_m // 16, stages, ahead=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("splits", "block_m", "stages"), [(1, 64, 4), (3, 64, 4), (40, 64, 3), (2, 128, 3)])
@pytest.mark.parametrize(
    ("size", "page_size", "pages", "width", "group", "kv_heads"),
    [
        (128, 64, 12, 32, 7, 2),
        (128, 64, 3, 5, 7, 1),
        (64, 64, 4, 20, 4, 2),
        (128, 128, 3, 70, 7, 2),
        (128, 64, 9, 150, 2, 1),
    ],
)
def test_the_pipelined_kernel(dtype, splits, block_m, stages, size, page_size, pages, width, group, kv_heads):
    """Rows whose hidden slots lie anywhere, then rows without any: all blocks but the last are clear."""
    shape = {"rows": 4, "size": size, "page_size": page_size, "width": width, "group": group, "kv_heads": kv_heads}
    case = make(size + width, "cuda", pages=pages, dtype=dtype, **shape)
    tiling = pipelined(splits, block_m, stages)
    assert error(case, run(case, tiling)) < TOLERANCE[dtype]
    nowhere = torch.full_like(case.store, -1)
    v = case.view
    clear = replace(case, store=nowhere, view=view(v.table_BT, page_size, v.layout, v.seen_B.long(), nowhere))
    assert int(clear.view.clear_B.max()) > 64
    assert error(clear, run(clear, tiling)) < TOLERANCE[dtype]
    assert torch.equal(run(clear, tiling), run(clear, tiling))


@pytest.mark.gpu
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("group", [1, 7])
def test_the_pipelined_kernel_on_packed_rows(group, splits):
    segment = torch.full((4, 21), PAD)
    for row, count in enumerate((21, 0, 1, 9)):
        segment[row, :count] = 0
    index = torch.arange(21).expand(4, -1)
    layout = Layout(index, index * 0, segment, index)
    shape = {"rows": 4, "width": 21, "size": 128, "page_size": 64, "dtype": torch.bfloat16}
    case = make(group, "cuda", group=group, layout=layout, **shape)
    for tokens in (31, 40):
        assert error(case, packed(case, tokens, pipelined(splits))) < TOLERANCE[torch.bfloat16]


@pytest.mark.gpu
def test_the_pipelined_kernel_on_rows_that_see_nothing():
    zero = torch.zeros(2, 9, dtype=torch.long)
    layout = Layout(zero, zero, torch.stack([zero[0] + PAD, zero[0]]), zero)
    shape = {"rows": 2, "width": 9, "size": 128, "page_size": 64, "dtype": torch.bfloat16}
    case = make(0, "cuda", layout=layout, seen=[0, 0], **shape)
    for splits in (1, 4):
        assert error(case, run(case, pipelined(splits))) < TOLERANCE[torch.bfloat16]


SHAPES = [(1, 1), (8, 1), (32, 1), (128, 1), (1, 32), (1, 128), (8, 32), (32, 8), (32, 32), (8, 128), (2, 512)]


@pytest.mark.gpu
@pytest.mark.parametrize("page_size", [16, 64, 256])
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_the_shapes_that_count(rows, width, page_size):
    g = torch.Generator().manual_seed(rows)
    index = torch.arange(width).expand(rows, -1)
    zero = torch.zeros_like(index)
    for order in (zero, index, index // 32):
        case = make(
            width,
            "cuda",
            rows=rows,
            width=width,
            group=7,
            kv_heads=4,
            size=128,
            page_size=page_size,
            pages=1024 // page_size,
            dtype=torch.bfloat16,
            layout=Layout(order, zero, zero, index),
            seen=torch.randint(0, 1025, (rows,), generator=g).tolist(),
        )
        assert error(case, paged_attention(*case.arguments)) < TOLERANCE[torch.bfloat16]


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "width"), [(8, 32), (32, 32), (64, 32), (8, 128)])
def test_the_packed_shapes_that_count(rows, width):
    """One row in four is wide, the others have an eighth of its columns."""
    index = torch.arange(width).expand(rows, -1)
    wide = torch.arange(rows)[:, None] % 4 == 1
    segment = torch.where(wide | (index < width // 8), 0, PAD)
    layout = Layout(index * 0, index * 0, segment, index)
    pages = {"page_size": 64, "pages": 16, "seen": [1024 - row for row in range(rows)]}
    sizes = {"rows": rows, "width": width, "group": 7, "kv_heads": 4, "size": 128, **pages}
    case = make(rows, "cuda", dtype=torch.bfloat16, layout=layout, **sizes)
    assert error(case, packed(case, rows * width // 2, None)) < TOLERANCE[torch.bfloat16]


@pytest.fixture
def undetermined():
    """As in use: deterministic scatters are other kernels."""
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(True)


@pytest.mark.gpu
@pytest.mark.usefixtures("undetermined")
def test_a_captured_graph_follows_tables_and_lengths():
    cases = [make(seed, "cuda", width=9, group=7, dtype=torch.bfloat16, size=128, pages=8) for seed in range(3)]
    held = cases[0]
    table, seen, store = held.view.table_BT.clone(), held.view.seen_B.long(), held.store.clone()
    layout = held.view.layout.map(torch.clone)

    def step() -> Tensor:
        return paged_attention(*held.arguments[:-1], view(table, held.view.page_size, layout, seen, store))

    step()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for case in cases:
        for to, new in zip(held.arguments[:-1], case.arguments[:-1]):
            to.copy_(new)
        for to, new in (
            (table, case.view.table_BT),
            (seen, case.view.seen_B),
            (store, case.store),
            (layout.order, case.view.layout.order),
            (layout.lane, case.view.layout.lane),
            (layout.segment, case.view.layout.segment),
        ):
            to.copy_(new)
        graph.replay()
        assert error(case, out) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("seed", range(3))
def test_the_reference_on_the_device_agrees(device, seed):
    case = make(seed, device, width=7, group=4)
    assert error(case, paged_reference(*case.arguments)) < TOLERANCE[torch.float32]
