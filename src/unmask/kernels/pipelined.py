"""The attention of `kernels.attention` for Hopper, in Gluon, which says when things are asked for.

Cached keys are on their way before the kernel ahead, which makes queries and keys of the window, has ended. While a
softmax is made, the matrix units score the next block and mix the one before. The ends of a row, cached blocks of which
not all is read and those of the window, come last; they are fetched while the others are worked on, with zeros where
nothing may be read.

Shapes: as there. Sizes of heads are 64 or 128, pages whole blocks, numbers of 16 bits.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier, tma

from unmask.kernels.attention import _PAD
from unmask.kernels.overlap import release, wait
from unmask.kernels.softmax import run_of, sees, weigh

ENDS = gl.constexpr(2)  # blocks at the end of a row that are on their way at once


@gluon.jit(do_not_specialize=["width", "pages"])
def _attend_ahead(
    q_ptr: gl.tensor,  # [B, W, H, D], packed [1, M, H, D]; M = B * W if not
    k_ptr: gl.tensor,  # [B, W, G, D]
    v_ptr: gl.tensor,
    keys_ptr: gl.tensor,  # [S, G, D]
    values_ptr: gl.tensor,
    keys_block: tma.tensor_descriptor,  # [S, G * D]
    values_block: tma.tensor_descriptor,
    out_ptr: gl.tensor,  # [M * H, SPLITS, D]: the result, or parts of it in float32
    lse_ptr: gl.tensor,  # [M * H, SPLITS]
    table_ptr: gl.tensor,  # [B, T]
    clear_ptr: gl.tensor,  # [B]
    seen_ptr: gl.tensor,  # [B]
    readable_ptr: gl.tensor,  # [B, N]
    order_ptr: gl.tensor,  # [B, W]
    lane_ptr: gl.tensor,
    segment_ptr: gl.tensor,
    start_ptr: gl.tensor,  # [B], of packed rows
    count_ptr: gl.tensor,  # [B]
    scale: gl.tensor,  # to powers of two
    width: gl.tensor,
    pages: gl.tensor,  # T
    q_b: gl.tensor,
    q_w: gl.tensor,
    q_h: gl.tensor,
    k_b: gl.tensor,
    k_w: gl.tensor,
    k_g: gl.tensor,
    v_b: gl.tensor,
    v_w: gl.tensor,
    v_g: gl.tensor,
    keys_s: gl.tensor,
    keys_g: gl.tensor,
    values_s: gl.tensor,
    values_g: gl.tensor,
    KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,  # heads of a K/V head
    SIZE: gl.constexpr,  # D
    PAGE: gl.constexpr,
    SPLITS: gl.constexpr,
    PACKED: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
    OVERLAP: gl.constexpr,
    num_warps: gl.constexpr,
) -> None:
    release(OVERLAP)
    dtype: gl.constexpr = keys_block.dtype
    of_score: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, BLOCK_N, 16])
    of_load: gl.constexpr = gl.BlockedLayout([1, 8], [256 // SIZE, SIZE // 8], [num_warps, 1], [1, 0])
    tile, split = gl.program_id(0), gl.program_id(2)
    row, g = (gl.program_id(1) // KV_HEADS).to(gl.int64), gl.program_id(1) % KV_HEADS

    # The row has `used` tokens, the first of which is number `start` of all.
    at = row * width
    start, used, step = at, width, row
    q_step, k_step, v_step = q_b, k_b, v_b
    if PACKED:
        start, used = gl.load(start_ptr + row).to(gl.int64), gl.load(count_ptr + row)
        if tile * BLOCK_M >= used * GROUP:
            wait(OVERLAP)  # whoever waits for this kernel has waited for all before it
            return
        step = start
        q_step, k_step, v_step = q_w, k_w, v_w
    q_ptr += step * q_step
    k_ptr += step * k_step + g * k_g
    v_ptr += step * v_step + g * v_g

    seen, clear, cached, first, last = run_of(seen_ptr + row, clear_ptr + row, used, split, SPLITS, BLOCK_N)
    count = gl.maximum(gl.minimum(last, clear) - first, 0)
    table_ptr += row * pages

    tile_of: gl.constexpr = keys_block.layout
    keys = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, SIZE], tile_of)
    values = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, SIZE], tile_of)
    bars = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(bars.index(stage), count=1)
    hopper.fence_async_shared()
    # All that is read until the wait is of the step's plan, or was cached by earlier steps.
    tiles = (keys_block, values_block, keys, values, bars, table_ptr, g)
    begins = ()  # all pages first: a copy that is asked for lets no load behind it go ahead
    for stage in gl.static_range(STAGES):
        begins = begins + (_begin(table_ptr, first + stage, stage < count, PAGE, BLOCK_N),)
    for stage in gl.static_range(STAGES):
        _fetch(tiles, begins[stage], stage, stage < count, BLOCK_N, SIZE)
    m = tile * BLOCK_M + gl.arange(0, BLOCK_M, gl.SliceLayout(1, of_score))
    real = m // GROUP < used
    order_q = gl.load(order_ptr + at + m // GROUP, mask=real, other=0)
    lane_q = gl.load(lane_ptr + at + m // GROUP, mask=real, other=0)
    segment_q = gl.load(segment_ptr + at + m // GROUP, mask=real, other=_PAD)
    of_queries = (order_q, lane_q, segment_q)

    ends_k = gl.allocate_shared_memory(dtype, [ENDS, BLOCK_N, SIZE], tile_of)
    ends_v = gl.allocate_shared_memory(dtype, [ENDS, BLOCK_N, SIZE], tile_of)
    marks = gl.allocate_shared_memory(gl.int32, [4 * ENDS, BLOCK_N], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    wide_g = g.to(gl.int64)
    of_cache = (keys_ptr + wide_g * keys_g, values_ptr + wide_g * values_g, keys_s, values_s, table_ptr)
    of_window = (k_ptr, v_ptr, k_w, v_w, order_ptr + at, lane_ptr + at, segment_ptr + at)
    bounds = (seen, used, cached, last)
    ends = (ends_k, ends_v, marks, of_cache, of_window, readable_ptr + row * pages * PAGE, bounds)
    q = gl.allocate_shared_memory(dtype, [BLOCK_M, SIZE], tile_of)
    i = tile * BLOCK_M + gl.arange(0, BLOCK_M, gl.SliceLayout(1, of_load))
    d = gl.arange(0, SIZE, gl.SliceLayout(0, of_load))
    q_at = q_ptr + ((i // GROUP) * q_w + (g * GROUP + i % GROUP) * q_h)[:, None] + d[None, :]
    wait(OVERLAP)
    async_copy.async_copy_global_to_shared(q, q_at, (i // GROUP < used)[:, None])
    async_copy.commit_group()
    for place in range(ENDS):
        _fetch_end(ends, first + count + place, place, PAGE, BLOCK_N, SIZE, of_load)
    async_copy.wait_group(ENDS)
    hopper.fence_async_shared()

    best = gl.full([BLOCK_M], float("-inf"), gl.float32, gl.SliceLayout(1, of_score))
    total = gl.zeros([BLOCK_M], gl.float32, gl.SliceLayout(1, of_score))
    of_mixed: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, SIZE, 16])
    mixed = gl.zeros([BLOCK_M, SIZE], gl.float32, of_mixed)
    if count > 0:
        best, total, mixed = _over_clear(tiles, q, first, count, scale, best, total, mixed, PAGE, STAGES, of_score)
    best, total, mixed = _over_ends(
        ends, q, of_queries, first + count, scale, best, total, mixed, PAGE, BLOCK_N, SIZE, of_score, of_load
    )

    index = ((start + m // GROUP) * (KV_HEADS * GROUP) + g * GROUP + m % GROUP) * SPLITS + split
    divisor = gl.where(total == 0, 1.0, total)
    if SPLITS > 1:
        gl.store(lse_ptr + index, gl.where(total == 0, float("-inf"), best + gl.log2(divisor)), mask=real)
    of_rows: gl.constexpr = gl.SliceLayout(1, of_mixed)
    out = mixed / gl.convert_layout(divisor, of_rows)[:, None]
    index = gl.convert_layout(gl.where(real, index, -1), of_rows)[:, None]
    out_at = out_ptr + index * SIZE + gl.arange(0, SIZE, gl.SliceLayout(0, of_mixed))[None, :]
    gl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=index >= 0)


@gluon.jit
def _begin(
    table_ptr: gl.tensor, block: gl.tensor, real: gl.tensor, PAGE: gl.constexpr, BLOCK_N: gl.constexpr
) -> gl.tensor:
    """The physical slot at which a cached block begins, which lies within one page."""
    page = gl.load(table_ptr + block * BLOCK_N // PAGE, mask=real, other=0)
    return page * PAGE + block * BLOCK_N % PAGE


@gluon.jit
def _fetch(
    tiles: gl.tuple, begin: gl.tensor, stage: gl.tensor, real: gl.tensor, BLOCK_N: gl.constexpr, SIZE: gl.constexpr
) -> None:
    """Asks for the keys and values of a cached block, where it is `real`."""
    keys_block, values_block, keys, values, bars, _, g = tiles
    bar = bars.index(stage)
    BYTES: gl.constexpr = 2 * BLOCK_N * SIZE * (keys_block.dtype.primitive_bitwidth // 8)
    mbarrier.expect(bar, BYTES, real)
    tma.async_copy_global_to_shared(keys_block, [begin, g * SIZE], bar, keys.index(stage), real)
    tma.async_copy_global_to_shared(values_block, [begin, g * SIZE], bar, values.index(stage), real)


@gluon.jit
def _over_clear(
    tiles: gl.tuple,
    q: gl.shared_memory_descriptor,
    first: gl.tensor,
    count: gl.tensor,
    scale: gl.tensor,
    best: gl.tensor,
    total: gl.tensor,
    mixed: gl.tensor,
    PAGE: gl.constexpr,
    STAGES: gl.constexpr,
    of_score: gl.constexpr,
) -> gl.tuple:
    """The online softmax over `count` cached blocks from `first` on, all of whose keys are read; at least one."""
    _, _, keys, values, bars, table_ptr, _ = tiles
    BLOCK_M: gl.constexpr = mixed.shape[0]
    BLOCK_N: gl.constexpr = keys.shape[1]
    of_weight: gl.constexpr = gl.DotOperandLayout(0, mixed.type.layout, 2)
    none = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, of_score)
    weight = gl.zeros([BLOCK_M, BLOCK_N], q.dtype, of_weight)
    mbarrier.wait(bars.index(0), 0)
    score = hopper.warpgroup_mma(q, keys.index(0).permute((1, 0)), none, use_acc=False, is_async=True)
    score = hopper.warpgroup_mma_wait(0, deps=[score])
    begin = _begin(table_ptr, first + STAGES, count > STAGES, PAGE, BLOCK_N)
    for index in range(count):
        # What is scored behind the last block is of no use, and what is mixed before the first has weights of zero.
        after, before = (index + 1) % STAGES, gl.maximum(index - 1, 0) % STAGES
        mbarrier.wait(bars.index(after), (index + 1) // STAGES & 1, index + 1 < count)
        following = hopper.warpgroup_mma(q, keys.index(after).permute((1, 0)), none, use_acc=False, is_async=True)
        mixing = hopper.warpgroup_mma(weight, values.index(before), mixed, is_async=True)
        best, total, now, shrink = weigh(score, scale, best, total, False)
        now = gl.convert_layout(now.to(q.dtype), of_weight)
        # With the weights among what it gives, the wait stays behind them.
        score, mixed, weight, now = hopper.warpgroup_mma_wait(0, deps=[following, mixing, weight, now])
        ahead = index - 1 + STAGES
        _fetch(tiles, begin, before, (index > 0) & (ahead < count), BLOCK_N, keys.shape[2])
        begin = _begin(table_ptr, first + ahead + 1, ahead + 1 < count, PAGE, BLOCK_N)
        mixed = _shrunk(mixed, shrink)
        weight = now
    mixing = hopper.warpgroup_mma(weight, values.index((count - 1) % STAGES), mixed, is_async=True)
    mixed, weight = hopper.warpgroup_mma_wait(0, deps=[mixing, weight])
    return best, total, mixed


@gluon.jit
def _over_ends(
    ends: gl.tuple,
    q: gl.shared_memory_descriptor,
    of_queries: gl.tuple,
    first: gl.tensor,
    scale: gl.tensor,
    best: gl.tensor,
    total: gl.tensor,
    mixed: gl.tensor,
    PAGE: gl.constexpr,
    BLOCK_N: gl.constexpr,
    SIZE: gl.constexpr,
    of_score: gl.constexpr,
    of_load: gl.constexpr,
) -> gl.tuple:
    """The same over the blocks from `first` to the last, under the rule of `layout.visible` and what is readable."""
    ends_k, ends_v, marks, _, _, _, bounds = ends
    _, used, cached, last = bounds
    order_q, lane_q, segment_q = of_queries
    across: gl.constexpr = gl.SliceLayout(0, of_score)
    of_weight: gl.constexpr = gl.DotOperandLayout(0, mixed.type.layout, 2)
    none = gl.zeros([mixed.shape[0], BLOCK_N], gl.float32, of_score)
    n = gl.arange(0, BLOCK_N, across)
    for block in range(first, last):
        place = (block - first) % ENDS
        async_copy.wait_group(ENDS - 1)
        hopper.fence_async_shared()
        score = hopper.warpgroup_mma(q, ends_k.index(place).permute((1, 0)), none, use_acc=False, is_async=True)
        order_k = marks.index(4 * place).load(across)
        lane_k = marks.index(4 * place + 1).load(across)
        segment_k = marks.index(4 * place + 2).load(across)
        readable = marks.index(4 * place + 3).load(across)
        in_cache = block < cached
        seen_by = sees(order_q, lane_q, segment_q, order_k, lane_k, segment_k)
        keep = gl.where(in_cache, readable != 0, (block - cached) * BLOCK_N + n < used)
        score = hopper.warpgroup_mma_wait(0, deps=[score])
        score = gl.where((seen_by | in_cache) & keep[None, :], score, float("-inf"))
        best, total, weight, shrink = weigh(score, scale, best, total, False)
        weight = gl.convert_layout(weight.to(q.dtype), of_weight)
        mixing = hopper.warpgroup_mma(weight, ends_v.index(place), _shrunk(mixed, shrink), is_async=True)
        mixed, weight = hopper.warpgroup_mma_wait(0, deps=[mixing, weight])
        _fetch_end(ends, block + ENDS, place, PAGE, BLOCK_N, SIZE, of_load)
    return best, total, mixed


@gluon.jit
def _fetch_end(
    ends: gl.tuple,
    block: gl.tensor,
    place: gl.tensor,
    PAGE: gl.constexpr,
    BLOCK_N: gl.constexpr,
    SIZE: gl.constexpr,
    of_load: gl.constexpr,
) -> None:
    """Asks for a block that is not clear, if there is such a one: keys and values, zeros where they may not be read;
    with them order, lane and segment of keys of the window, or which of the cached ones are readable."""
    ends_k, ends_v, marks, of_cache, of_window, readable_ptr, bounds = ends
    seen, used, cached, last = bounds
    if block < last:
        k_ptr, v_ptr, k_s, v_s, order_ptr, lane_ptr, segment_ptr = of_window
        n = gl.arange(0, BLOCK_N, gl.SliceLayout(1, of_load))
        i = gl.arange(0, BLOCK_N, gl.BlockedLayout([1], [32], [gl.num_warps()], [0]))
        begin = (block - cached) * BLOCK_N
        keep = begin + n < used
        if block < cached:
            index = block * BLOCK_N
            keep = gl.load(readable_ptr + index + n, mask=index + n < seen, other=0) != 0
            line = marks.index(4 * place + 3)
            async_copy.async_copy_global_to_shared(line, readable_ptr + index + i, index + i < seen)
            k_ptr, v_ptr, k_s, v_s, table_ptr = of_cache
            begin = _begin(table_ptr, block, True, PAGE, BLOCK_N)
        else:
            inside = begin + i < used
            async_copy.async_copy_global_to_shared(marks.index(4 * place), order_ptr + begin + i, inside)
            async_copy.async_copy_global_to_shared(marks.index(4 * place + 1), lane_ptr + begin + i, inside)
            async_copy.async_copy_global_to_shared(marks.index(4 * place + 2), segment_ptr + begin + i, inside)
        d = gl.arange(0, SIZE, gl.SliceLayout(0, of_load))[None, :]
        wide = begin.to(gl.int64)
        k_at = k_ptr + wide * k_s + n[:, None] * k_s + d
        v_at = v_ptr + wide * v_s + n[:, None] * v_s + d
        async_copy.async_copy_global_to_shared(ends_k.index(place), k_at, keep[:, None])
        async_copy.async_copy_global_to_shared(ends_v.index(place), v_at, keep[:, None])
    async_copy.commit_group()


@gluon.jit
def _shrunk(mixed: gl.tensor, shrink: gl.tensor) -> gl.tensor:
    """The mixed values, which another layout holds than the scores."""
    return mixed * gl.convert_layout(shrink, gl.SliceLayout(1, mixed.type.layout))[:, None]
