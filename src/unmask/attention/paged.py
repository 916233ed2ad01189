"""Attention over a paged cache: what the layers of a forward share, the kernel's entry, and its reference in PyTorch.

A query sees the first `visible` slots of its row minus those that the window overwrites, plus the window under the
rule of `layout.visible`. Nothing here reads back to the host and all shapes are fixed, so a CUDA graph can hold it.

Rows may be packed: the network then runs on one row of M tokens, those of all rows one behind the other without most
of their padding, and only attention knows where each row lies.

Shapes: see `layout`; besides P pages, S physical slots (P * page_size), T pages of a row, N = T * page_size its
logical slots.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmask.attention.dense import sdpa
from unmask.kernels import runs_kernels
from unmask.layout import PAD, Layout, visible


@dataclass(frozen=True)
class Packing:
    """Where the tokens of each row stand among M packed ones.

    Attributes:
        start_B, count_B: int32, the first packed token of each row, and how many it has.
        place_M: int64, where each packed token stands in the flattened [B * W]; behind the last one anywhere.
        real_M: bool, which packed tokens there are.
    """

    start_B: Tensor
    count_B: Tensor
    place_M: Tensor
    real_M: Tensor

    def take(self, x_BW: Tensor) -> Tensor:
        """What the packed tokens have of [B, W, ...]: [1, M, ...]."""
        return x_BW.flatten(0, 1)[self.place_M][None]

    def spread(self, x_1M: Tensor, rows: int, width: int) -> Tensor:
        """[B, W, ...] from [1, M, ...]; zeros where no packed token stands."""
        out = x_1M.new_zeros(rows * width + 1, *x_1M.shape[2:])
        out.index_copy_(0, torch.where(self.real_M, self.place_M, rows * width), x_1M[0])
        return out[:-1].unflatten(0, (rows, width))


def packing(valid_BW: Tensor, tokens: int) -> Packing:
    """Packs the leading columns of each row, up to its last valid one.

    Args:
        valid_BW: bool; rows in which it is False throughout are left out.
        tokens: M; no fewer than that.
    """
    rows, width = valid_BW.shape
    device = valid_BW.device
    count_B = torch.where(valid_BW, torch.arange(1, width + 1, device=device), 0).amax(-1)
    end_B = count_B.cumsum(0)
    index_M = torch.arange(tokens, device=device)
    row_M = (index_M[:, None] >= end_B).sum(-1).clamp(max=rows - 1)
    start_B = end_B - count_B
    real_M = index_M < end_B[-1]
    place_M = torch.where(real_M, row_M * width + index_M - start_B[row_M], 0)
    return Packing(start_B.int(), count_B.int(), place_M, real_M)


@dataclass(frozen=True)
class PagedView:
    """What all layers of one forward share.

    Attributes:
        table_BT: int32, the physical page of each logical page of each row.
        page_size: slots of a page.
        seen_B: int32, the leading logical slots each row reads.
        clear_B: int32, how many of these come before the first one that is hidden.
        readable_BN: int32, 1 where a slot is among those and the window does not overwrite it. (Not bytes: Triton's
            pipeline does not fetch loads that narrow ahead.)
        store_M: int64, the physical slot that the key and value of each token of the network go to, -1 for none; the
            tokens are those of [B, W] flattened, or the packed ones.
        layout: [B, W], int32, contiguous.
        packed: where rows lie if they are packed.
    """

    table_BT: Tensor
    page_size: int
    seen_B: Tensor
    clear_B: Tensor
    readable_BN: Tensor
    store_M: Tensor
    layout: Layout
    packed: Packing | None = None


def view(
    table_BT: Tensor,
    page_size: int,
    layout: Layout,
    visible_B: Tensor,
    store_BW: Tensor,
    tokens: int | None = None,
) -> PagedView:
    """The view of one forward.

    Args:
        visible_B, store_BW: as in `Forward`: slots are logical, -1 for none.
        tokens: pack the rows into so many (M).
    """
    rows, slots = table_BT.shape[0], table_BT.shape[1] * page_size
    seen_B = visible_B.clamp(0, slots)
    kept = store_BW >= 0
    # One slot more than there are takes the marks of tokens that are not stored.
    overwritten = torch.zeros(rows, slots + 1, dtype=torch.bool, device=table_BT.device)
    overwritten.scatter_(1, torch.where(kept, store_BW, slots), True)
    index = torch.arange(slots, device=table_BT.device)
    readable_BN = (index < seen_B[:, None]) & ~overwritten[:, :slots]
    store_M = torch.where(kept, physical(table_BT, page_size, store_BW), -1).flatten()
    packed = None if tokens is None else packing(layout.segment != PAD, tokens)
    if packed is not None:
        store_M = torch.where(packed.real_M, store_M[packed.place_M], -1)
    return PagedView(
        table_BT=table_BT.int().contiguous(),
        page_size=page_size,
        seen_B=seen_B.int(),
        clear_B=torch.where(readable_BN, slots, index).amin(-1).int(),
        readable_BN=readable_BN.int(),
        store_M=store_M,
        layout=layout.map(lambda x: x.int().contiguous()),
        packed=packed,
    )


def physical(table_BT: Tensor, page_size: int, slots_BM: Tensor) -> Tensor:
    """The physical slots (int64) of logical ones; anything for -1."""
    slots_BM = slots_BM.long().clamp(min=0)
    return table_BT.long().gather(1, slots_BM // page_size) * page_size + slots_BM % page_size


def paged_attention(
    q_BWHD: Tensor, k_BWGD: Tensor, v_BWGD: Tensor, keys_SGD: Tensor, values_SGD: Tensor, view: PagedView
) -> Tensor:
    """Attention of one layer: [B, W, H, D], or [1, M, H, D] of packed rows.

    Args:
        q_BWHD, k_BWGD, v_BWGD: of the window, [1, M, ...] of packed rows; may be strided views of one buffer, the last
            dimension contiguous. Keys and values of the window are read from here, whether they are stored or not.
        keys_SGD, values_SGD: one layer of the cache.

    Padded queries give something finite, places behind the last packed token anything.
    """
    if not runs_kernels(q_BWHD.is_cuda):
        return paged_reference(q_BWHD, k_BWGD, v_BWGD, keys_SGD, values_SGD, view)
    from unmask.kernels.attention import attend

    return attend(
        q_BWHD,
        k_BWGD,
        v_BWGD,
        keys_SGD,
        values_SGD,
        view.table_BT,
        view.page_size,
        view.clear_B,
        view.seen_B,
        view.readable_BN,
        view.layout.order,
        view.layout.lane,
        view.layout.segment,
        view.packed and (view.packed.start_B, view.packed.count_B),
    )


def paged_reference(
    q_BWHD: Tensor, k_BWGD: Tensor, v_BWGD: Tensor, keys_SGD: Tensor, values_SGD: Tensor, view: PagedView
) -> Tensor:
    """The same as `paged_attention` in plain PyTorch: gathers the pages, then one dense attention."""
    if view.packed is not None:
        q, k, v = (view.packed.spread(x, *view.layout.shape) for x in (q_BWHD, k_BWGD, v_BWGD))
        return view.packed.take(paged_reference(q, k, v, keys_SGD, values_SGD, replace(view, packed=None)))
    width, slots = q_BWHD.shape[1], view.readable_BN.shape[1]
    readable_BN = view.readable_BN.bool()
    index = torch.arange(slots, device=q_BWHD.device).expand(len(q_BWHD), -1)
    slot_BN = physical(view.table_BT, view.page_size, index)
    # A slot that nobody may read may hold anything, and 0 * NaN is NaN.
    hidden = ~readable_BN[:, :, None, None]
    k_BKGD = torch.cat([keys_SGD[slot_BN].masked_fill(hidden, 0), k_BWGD], 1)
    v_BKGD = torch.cat([values_SGD[slot_BN].masked_fill(hidden, 0), v_BWGD], 1)
    cached = readable_BN[:, None].expand(-1, width, -1)
    mask_BWK = torch.cat([cached, visible(view.layout, view.layout)], 2)
    q_BHWD, k_BGKD, v_BGKD = (x.transpose(1, 2) for x in (q_BWHD, k_BKGD, v_BKGD))
    return sdpa(q_BHWD, k_BGKD, v_BGKD, mask_BWK).transpose(1, 2)
