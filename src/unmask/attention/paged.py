"""Attention over a paged cache: what the layers of a forward share, the kernel's entry, and its reference in PyTorch.

A query sees the first `visible` slots of its row minus those that the window overwrites, plus the window under the
rule of `layout.visible`. Nothing here reads back to the host and all shapes are fixed, so a CUDA graph can hold it.

Shapes: see `layout`; besides P pages, S physical slots (P * page_size), T pages of a row, N = T * page_size its
logical slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.attention.dense import sdpa
from unmask.kernels import runs_kernels
from unmask.layout import Layout, visible


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
        store_BW: int64, the physical slot each token's key and value go to, -1 for none.
        layout: [B, W], int32, contiguous.
    """

    table_BT: Tensor
    page_size: int
    seen_B: Tensor
    clear_B: Tensor
    readable_BN: Tensor
    store_BW: Tensor
    layout: Layout


def view(table_BT: Tensor, page_size: int, layout: Layout, visible_B: Tensor, store_BW: Tensor) -> PagedView:
    """The view of one forward.

    Args:
        visible_B, store_BW: as in `Forward`: slots are logical, -1 for none.
    """
    rows, slots = table_BT.shape[0], table_BT.shape[1] * page_size
    seen_B = visible_B.clamp(0, slots)
    kept = store_BW >= 0
    # One slot more than there are takes the marks of tokens that are not stored.
    overwritten = torch.zeros(rows, slots + 1, dtype=torch.bool, device=table_BT.device)
    overwritten.scatter_(1, torch.where(kept, store_BW, slots), True)
    index = torch.arange(slots, device=table_BT.device)
    readable_BN = (index < seen_B[:, None]) & ~overwritten[:, :slots]
    return PagedView(
        table_BT=table_BT.int().contiguous(),
        page_size=page_size,
        seen_B=seen_B.int(),
        clear_B=torch.where(readable_BN, slots, index).amin(-1).int(),
        readable_BN=readable_BN.int(),
        store_BW=torch.where(kept, physical(table_BT, page_size, store_BW), -1),
        layout=layout.map(lambda x: x.int().contiguous()),
    )


def physical(table_BT: Tensor, page_size: int, slots_BM: Tensor) -> Tensor:
    """The physical slots (int64) of logical ones; anything for -1."""
    slots_BM = slots_BM.long().clamp(min=0)
    return table_BT.long().gather(1, slots_BM // page_size) * page_size + slots_BM % page_size


def paged_attention(
    q_BWHD: Tensor, k_BWGD: Tensor, v_BWGD: Tensor, keys_SGD: Tensor, values_SGD: Tensor, view: PagedView
) -> Tensor:
    """Attention of one layer: [B, W, H, D].

    Args:
        q_BWHD, k_BWGD, v_BWGD: of the window; may be strided views of one buffer, the last dimension contiguous. Keys
            and values of the window are read from here, whether they are stored or not.
        keys_SGD, values_SGD: one layer of the cache.

    Padded queries give something finite.
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
    )


def paged_reference(
    q_BWHD: Tensor, k_BWGD: Tensor, v_BWGD: Tensor, keys_SGD: Tensor, values_SGD: Tensor, view: PagedView
) -> Tensor:
    """The same as `paged_attention` in plain PyTorch: gathers the pages, then one dense attention."""
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
