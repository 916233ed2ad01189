"""Attention over paged keys and values plus the window itself, in Triton.

The queries of all heads that share a K/V head are rows of one tile, so a page is read once for them. Where there are
few tiles, each is split over the keys (flash decoding) and a second kernel merges the parts. Softmax is online, in
powers of two, and accumulates in float32.

Keys come in three runs: the leading slots of the row, all of which are read, without any mask; the slots from the first
one that is not read; the window. The first run is nearly all of the work, so nothing may stand between its loads and
its products: a row's page numbers are held in registers, since a table looked up in memory would stall the pipeline,
and where a block lies within one page the copy engine (TMA) fetches it whole. `kernels.pipelined` is the same for
Hopper; which is used is measured (`engine.tuning`).

Shapes: see `layout`; besides S physical slots (pages * page_size), T pages of a row, N = T * page_size its logical
slots.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from unmask.kernels.copies import copies, gluon_tiles, tiles
from unmask.kernels.overlap import follow, overlapped, release
from unmask.kernels.softmax import run_of, sees, weigh
from unmask.kernels.tiling import PROCESSORS, Tiling, shape_on, tiling_of
from unmask.layout import PAD

_PAD = tl.constexpr(PAD)
_LOWEST = tl.constexpr(-(2**31))
_SCAN = tl.constexpr(1024)
LOG2_E = 1.4426950408889634


def attend(
    q_BWHD: Tensor,
    k_BWGD: Tensor,
    v_BWGD: Tensor,
    keys_SGD: Tensor,
    values_SGD: Tensor,
    table_BT: Tensor,
    page_size: int,
    clear_B: Tensor,
    seen_B: Tensor,
    readable_BN: Tensor,
    order_BW: Tensor,
    lane_BW: Tensor,
    segment_BW: Tensor,
    packed: tuple[Tensor, Tensor] | None = None,
    tiling: Tiling | None = None,
) -> Tensor:
    """Mixed values [B, W, H, D]: each query sees the readable ones of its row's first `seen` slots, and the window
    under the rule of `layout.visible`; nothing seen gives zeros.

    Args:
        q_BWHD, k_BWGD, v_BWGD: any strides, last dimension contiguous; one dtype, that of the cache.
        table_BT, clear_B, seen_B, readable_BN: int32; slots below `clear` are all readable. order, lane, segment:
            contiguous, int32.
        packed: where the tokens of each row begin and how many there are, int32 [B]; queries, keys and values are then
            [1, M, ...], the result too, which is void where no row has a token.
        tiling: None: `tiling_of`.
    """
    _, _, heads, size = q_BWHD.shape
    (rows, width), tokens = order_BW.shape, q_BWHD.shape[0] * q_BWHD.shape[1]
    kv_heads, slots = keys_SGD.shape[1], readable_BN.shape[1]
    group, device = heads // kv_heads, q_BWHD.device
    if tiling is None:
        sizes = (rows, width, heads, kv_heads, size, slots, q_BWHD.element_size())
        tiling = tiling_of(shape_on(device, page_size, *sizes, packed=None if packed is None else tokens))
    out_BWHD = torch.empty(q_BWHD.shape, dtype=q_BWHD.dtype, device=device)
    splits, part, lse = tiling.splits, out_BWHD, out_BWHD
    if splits > 1:
        part = torch.empty(tokens * heads, splits, size, dtype=torch.float32, device=device)
        lse = torch.empty(tokens * heads, splits, dtype=torch.float32, device=device)
    kernel, blocks, own = _kernel(tiling, keys_SGD, values_SGD, page_size, width, table_BT.shape[1])
    kernel[triton.cdiv(width * group, tiling.block_m), rows * kv_heads, splits](
        q_BWHD,
        k_BWGD,
        v_BWGD,
        keys_SGD,
        values_SGD,
        *blocks,
        part,
        lse,
        table_BT,
        clear_B,
        seen_B,
        readable_BN,
        order_BW,
        lane_BW,
        segment_BW,
        *(packed or (clear_B, seen_B)),  # pointers that no program follows
        size**-0.5 * LOG2_E,
        width,
        table_BT.shape[1],
        *(step for x in (q_BWHD, k_BWGD, v_BWGD) for step in x.stride()[:3]),
        *(step for x in (keys_SGD, values_SGD) for step in x.stride()[:2]),
        KV_HEADS=kv_heads,
        GROUP=group,
        SIZE=size,
        PAGE=page_size,
        PACKED=packed is not None,
        BLOCK_M=tiling.block_m,
        BLOCK_N=tiling.block_n,
        STAGES=tiling.stages,
        num_warps=tiling.warps,
        **own,
        **overlapped(q_BWHD.is_cuda),
    )
    if splits > 1:
        _merge_parts(part, lse, out_BWHD)
    return out_BWHD


def _kernel(
    tiling: Tiling, keys_SGD: Tensor, values_SGD: Tensor, page_size: int, width: int, pages: int
) -> tuple[Any, list[Any], dict[str, Any]]:
    """The kernel of a tiling, its tiles of keys and values, and the constants that it alone has."""
    size, held = keys_SGD.shape[2], [x.flatten(1) for x in (keys_SGD, values_SGD)]
    if tiling.ahead:
        from unmask.kernels.pipelined import _attend_ahead

        assert page_size % tiling.block_n == 0
        return _attend_ahead, [gluon_tiles(x, tiling.block_n, size) for x in held], {"SPLITS": tiling.splits}
    block_d = max(16, triton.next_power_of_2(size))
    whole = page_size % tiling.block_n == 0 and size == block_d and copies(keys_SGD.device)
    blocks = [tiles(x, tiling.block_n, size) for x in held] if whole else [keys_SGD, values_SGD]
    own = {"SPLIT": tiling.splits > 1, "WHOLE": whole, "SKIP": width > tiling.block_n}
    return _attend, blocks, own | {"BLOCK_T": triton.next_power_of_2(pages), "BLOCK_D": block_d}


def _merge_parts(part: Tensor, lse: Tensor, out: Tensor) -> None:
    """Parts [queries, splits, D] with their softmax sums [queries, splits] into `out`, whose queries are as many."""
    queries, splits, size = part.shape
    block_s, block_d = triton.next_power_of_2(splits), max(16, triton.next_power_of_2(size))
    block_q = max(1, min(16, 4096 // (block_s * block_d), triton.next_power_of_2(queries // (4 * PROCESSORS))))
    _merge[(triton.cdiv(queries, block_q),)](
        part,
        lse,
        out,
        queries,
        splits,
        SIZE=size,
        BLOCK_Q=block_q,
        BLOCK_S=block_s,
        BLOCK_D=block_d,
        num_warps=max(1, min(4, block_q * block_s * block_d // 512)),
        **overlapped(out.is_cuda),
    )


@triton.jit(do_not_specialize=["width", "pages"])
def _attend(
    q_ptr: tl.tensor,  # [B, W, H, D], packed [1, M, H, D]; M = B * W if not
    k_ptr: tl.tensor,  # [B, W, G, D]
    v_ptr: tl.tensor,
    keys_ptr: tl.tensor,  # [S, G, D]
    values_ptr: tl.tensor,
    keys_block: tl.tensor_descriptor,  # [S, G * D]
    values_block: tl.tensor_descriptor,
    out_ptr: tl.tensor,  # [M * H, splits, D]: the result, or parts of it in float32
    lse_ptr: tl.tensor,  # [M * H, splits]: log2 of the softmax sum of each part
    table_ptr: tl.tensor,  # [B, T]
    clear_ptr: tl.tensor,  # [B]
    seen_ptr: tl.tensor,  # [B]
    readable_ptr: tl.tensor,  # [B, N]
    order_ptr: tl.tensor,  # [B, W]
    lane_ptr: tl.tensor,
    segment_ptr: tl.tensor,
    start_ptr: tl.tensor,  # [B], of packed rows
    count_ptr: tl.tensor,  # [B]
    scale: tl.tensor,  # to powers of two
    width: tl.tensor,
    pages: tl.tensor,  # T
    q_b: tl.tensor,
    q_w: tl.tensor,
    q_h: tl.tensor,
    k_b: tl.tensor,
    k_w: tl.tensor,
    k_g: tl.tensor,
    v_b: tl.tensor,
    v_w: tl.tensor,
    v_g: tl.tensor,
    keys_s: tl.tensor,
    keys_g: tl.tensor,
    values_s: tl.tensor,
    values_g: tl.tensor,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,  # heads of a K/V head
    SIZE: tl.constexpr,  # D
    PAGE: tl.constexpr,
    SPLIT: tl.constexpr,  # the keys are split
    PACKED: tl.constexpr,
    WHOLE: tl.constexpr,  # blocks lie within a page and are fetched whole
    SKIP: tl.constexpr,  # look for trailing window keys that no query of the tile sees
    BLOCK_T: tl.constexpr,  # at least T
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    release(OVERLAP)
    # Under a causal order the last tiles see the most keys: they start first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    row = (tl.program_id(1) // KV_HEADS).to(tl.int64)
    g = tl.program_id(1) % KV_HEADS
    split, splits = tl.program_id(2), tl.num_programs(2)

    # The row has `used` tokens, the first of which is number `start` of all.
    at = row * width
    if PACKED:
        start, used = tl.load(start_ptr + row).to(tl.int64), tl.load(count_ptr + row)
        if tile * BLOCK_M >= used * GROUP:
            follow(OVERLAP)  # whoever waits for this kernel has waited for all before it
            return
        q_ptr += start * q_w
    else:
        start, used = at, width
        q_ptr += row * q_b

    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    column = m // GROUP
    head = g * GROUP + m % GROUP
    real = column < used
    d = tl.arange(0, BLOCK_D)
    has_d = (d < SIZE)[None, :]
    order_q = tl.load(order_ptr + at + column, mask=real, other=0)
    lane_q = tl.load(lane_ptr + at + column, mask=real, other=0)
    segment_q = tl.load(segment_ptr + at + column, mask=real, other=_PAD)

    # Window keys [0, stop) hold all that any query of the tile sees. Padded queries may see less than their due.
    stop = used
    if SKIP:
        latest = tl.max(tl.where(segment_q == _PAD, _LOWEST, order_q), 0)
        stop = _window_end(order_ptr + at, segment_ptr + at, used, latest)

    seen, clear, cached, first, last = run_of(seen_ptr + row, clear_ptr + row, stop, split, splits, BLOCK_N)

    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    keys_ptr += g.to(tl.int64) * keys_g
    values_ptr += g.to(tl.int64) * values_g
    table_ptr += row * pages
    t = tl.arange(0, BLOCK_T)
    table = tl.load(table_ptr + t, mask=t < pages, other=0)
    # All that was read until here is of the step's plan, written long ago; queries and keys by the kernel ahead.
    follow(OVERLAP)
    q = tl.load(
        q_ptr + column[:, None] * q_w + head[:, None] * q_h + d[None, :],
        mask=real[:, None] & has_d,
        other=0.0,
    )
    best, total, acc = _over_clear(
        *(q, keys_ptr, values_ptr, keys_block, values_block, g, table_ptr, t, table, keys_s, values_s),
        *(first, tl.minimum(last, clear), scale, best, total, acc),
        *(SIZE, PAGE, WHOLE, BLOCK_N, BLOCK_D, STAGES),
    )
    best, total, acc = _over_marked(
        *(q, keys_ptr, values_ptr, table_ptr, readable_ptr + row * pages * PAGE, seen, keys_s, values_s),
        *(tl.maximum(first, clear), tl.minimum(last, cached), scale, best, total, acc),
        *(SIZE, PAGE, BLOCK_N, BLOCK_D),
    )
    if PACKED:
        k_ptr += start * k_w + g * k_g
        v_ptr += start * v_w + g * v_g
    else:
        k_ptr += row * k_b + g * k_g
        v_ptr += row * v_b + g * v_g
    best, total, acc = _over_window(
        *(q, k_ptr, v_ptr, order_ptr + at, lane_ptr + at, segment_ptr + at, order_q, lane_q, segment_q, k_w, v_w, used),
        *(tl.maximum(first - cached, 0), last - cached, scale, best, total, acc),
        *(SIZE, BLOCK_N, BLOCK_D, STAGES if SKIP else 1),
    )

    index = ((start + column) * (KV_HEADS * GROUP) + head) * splits + split
    acc = acc / tl.where(total == 0, 1.0, total)[:, None]
    out = out_ptr + index[:, None] * SIZE + d[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=real[:, None] & has_d)
    if SPLIT:
        lse = tl.where(total == 0, float("-inf"), best + tl.log2(tl.where(total == 0, 1.0, total)))
        tl.store(lse_ptr + index, lse, mask=real)


@triton.jit
def _over_clear(
    q: tl.tensor,  # [BLOCK_M, BLOCK_D]
    keys_ptr: tl.tensor,  # of the K/V head
    values_ptr: tl.tensor,
    keys_block: tl.tensor_descriptor,
    values_block: tl.tensor_descriptor,
    g: tl.tensor,
    table_ptr: tl.tensor,  # [T], of the row
    t: tl.tensor,
    table: tl.tensor,  # the same in registers
    keys_s: tl.tensor,
    values_s: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    scale: tl.tensor,
    best: tl.tensor,
    total: tl.tensor,
    acc: tl.tensor,
    SIZE: tl.constexpr,
    PAGE: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The online softmax over cached blocks [first, last), all of whose keys are read."""
    offset, d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)[None, :]
    for block in tl.range(first, last, num_stages=STAGES):
        if PAGE % BLOCK_N == 0:
            page = tl.sum(tl.where(t == block * BLOCK_N // PAGE, table, 0), 0)
            begin = page * PAGE + block * BLOCK_N % PAGE
            slot = begin.to(tl.int64) + offset
        else:
            n = block * BLOCK_N + offset
            page = tl.load(table_ptr + n // PAGE)
            slot = page.to(tl.int64) * PAGE + n % PAGE
        if WHOLE:
            k = keys_block.load([begin, g * SIZE])
            v = values_block.load([begin, g * SIZE])
        elif SIZE == BLOCK_D:
            k = tl.load(keys_ptr + slot[:, None] * keys_s + d)
            v = tl.load(values_ptr + slot[:, None] * values_s + d)
        else:
            k = tl.load(keys_ptr + slot[:, None] * keys_s + d, mask=d < SIZE, other=0.0)
            v = tl.load(values_ptr + slot[:, None] * values_s + d, mask=d < SIZE, other=0.0)
        best, total, acc = _absorb(q, k, v, None, scale, best, total, acc)
    return best, total, acc


@triton.jit
def _over_marked(
    q: tl.tensor,
    keys_ptr: tl.tensor,
    values_ptr: tl.tensor,
    table_ptr: tl.tensor,
    readable_ptr: tl.tensor,  # [N], of the row
    seen: tl.tensor,
    keys_s: tl.tensor,
    values_s: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    scale: tl.tensor,
    best: tl.tensor,
    total: tl.tensor,
    acc: tl.tensor,
    SIZE: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The same over cached blocks of which only the readable keys are read."""
    offset, d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)[None, :]
    for block in tl.range(first, last, num_stages=1):
        n = block * BLOCK_N + offset
        inside = n < seen
        page = tl.load(table_ptr + n // PAGE, mask=inside, other=0)
        slot = page.to(tl.int64) * PAGE + n % PAGE
        keep = tl.load(readable_ptr + n, mask=inside, other=0) != 0
        mask = inside[:, None] & (d < SIZE)
        k = tl.load(keys_ptr + slot[:, None] * keys_s + d, mask=mask, other=0.0)
        v = tl.load(values_ptr + slot[:, None] * values_s + d, mask=mask, other=0.0)
        best, total, acc = _absorb(q, k, v, keep[None, :], scale, best, total, acc)
    return best, total, acc


@triton.jit
def _over_window(
    q: tl.tensor,
    k_ptr: tl.tensor,  # of the row and K/V head
    v_ptr: tl.tensor,
    order_ptr: tl.tensor,  # [W], of the row
    lane_ptr: tl.tensor,
    segment_ptr: tl.tensor,
    order_q: tl.tensor,  # [BLOCK_M]
    lane_q: tl.tensor,
    segment_q: tl.tensor,
    k_w: tl.tensor,
    v_w: tl.tensor,
    used: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    scale: tl.tensor,
    best: tl.tensor,
    total: tl.tensor,
    acc: tl.tensor,
    SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The same over blocks of the window, under the rule of `layout.visible`."""
    offset, d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)[None, :]
    for block in tl.range(first, last, num_stages=STAGES):
        w = block * BLOCK_N + offset
        inside = w < used
        order_k = tl.load(order_ptr + w, mask=inside, other=0)
        lane_k = tl.load(lane_ptr + w, mask=inside, other=0)
        segment_k = tl.load(segment_ptr + w, mask=inside, other=_PAD)
        keep = sees(order_q, lane_q, segment_q, order_k, lane_k, segment_k) & inside[None, :]
        mask = inside[:, None] & (d < SIZE)
        k = tl.load(k_ptr + w[:, None] * k_w + d, mask=mask, other=0.0)
        v = tl.load(v_ptr + w[:, None] * v_w + d, mask=mask, other=0.0)
        best, total, acc = _absorb(q, k, v, keep, scale, best, total, acc)
    return best, total, acc


@triton.jit
def _window_end(order_ptr: tl.tensor, segment_ptr: tl.tensor, width: tl.tensor, latest: tl.tensor) -> tl.tensor:
    """One more than the last window key of a row whose order is at most `latest`."""
    stop = 0
    for start in range(0, width, _SCAN):
        w = start + tl.arange(0, _SCAN)
        order_k = tl.load(order_ptr + w, mask=w < width, other=0)
        segment_k = tl.load(segment_ptr + w, mask=w < width, other=_PAD)
        wanted = (segment_k != _PAD) & (order_k <= latest)
        stop = tl.maximum(stop, tl.max(tl.where(wanted, w + 1, 0), 0))
    return stop


@triton.jit
def _absorb(
    q: tl.tensor,  # [BLOCK_M, BLOCK_D]
    k: tl.tensor,  # [BLOCK_N, BLOCK_D]
    v: tl.tensor,
    keep: tl.tensor | None,  # broadcasts to [BLOCK_M, BLOCK_N]; None: all
    scale: tl.tensor,
    best: tl.tensor,  # [BLOCK_M]
    total: tl.tensor,
    acc: tl.tensor,  # [BLOCK_M, BLOCK_D]
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """One step of the online softmax: highest score, sum of weights and weighted values with these keys taken in."""
    score = tl.dot(q, tl.trans(k), input_precision="ieee")
    if keep is not None:
        score = tl.where(keep, score, float("-inf"))
    best, total, weight, shrink = weigh(score, scale, best, total, keep is None)
    acc = tl.dot(weight.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return best, total, acc


@triton.jit(do_not_specialize=["queries", "splits"])
def _merge(
    part_ptr: tl.tensor,  # [M * H, splits, D]
    lse_ptr: tl.tensor,  # [M * H, splits]
    out_ptr: tl.tensor,  # [M * H, D]
    queries: tl.tensor,  # M * H
    splits: tl.tensor,
    SIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """The parts of each query weighted by their softmax sums; a part that saw nothing has weight 0."""
    follow(OVERLAP)
    index = tl.program_id(0).to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    s = tl.arange(0, BLOCK_S)
    d = tl.arange(0, BLOCK_D)
    real = index < queries
    held = real[:, None] & (s < splits)[None, :]
    at = index[:, None] * splits + s[None, :]
    lse = tl.load(lse_ptr + at, mask=held, other=float("-inf"))
    best = tl.max(lse, 1)
    weight = tl.exp2(lse - tl.where(best == float("-inf"), 0.0, best)[:, None])
    total = tl.sum(weight, 1)
    weight = weight / tl.where(total == 0, 1.0, total)[:, None]
    mask = held[:, :, None] & (d < SIZE)[None, None, :]
    part = tl.load(part_ptr + at[:, :, None] * SIZE + d[None, None, :], mask=mask, other=0.0)
    out = tl.sum(part * weight[:, :, None], 1)
    mask = real[:, None] & (d < SIZE)[None, :]
    tl.store(out_ptr + index[:, None] * SIZE + d[None, :], out.to(out_ptr.dtype.element_ty), mask=mask)
