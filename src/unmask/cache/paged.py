"""Keys and values in pages: the cache of the engine. Who owns which page is the host's business (`cache.pages`).

What a forward reads and writes is what it is with the contiguous cache; only the place of a slot differs, which a
table says per row. Nothing here but `copy_page` needs the host, and shapes are fixed: a CUDA graph can hold it.

Shapes: see `layout`; besides S physical slots, T pages of a row, M slots to be moved.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from unmask.attention.paged import PagedView, paged_attention, physical, view
from unmask.layout import Layout


class PagedCache:
    """Pages of keys and values [L, S, G, D].

    Page 0 is spare: it belongs to no row, and takes the writes that are to go nowhere. So S is
    (pages + 1) * page_size, and rows own pages 1 to `pages`. A row that caches nothing has a table of spare pages.

    Args:
        layers, kv_heads, head_dim: L, G, D.
        pages: how many can be given to rows; 0 makes a cache that holds nothing.
        page_size: slots of a page.
    """

    def __init__(
        self,
        layers: int,
        pages: int,
        page_size: int,
        kv_heads: int,
        head_dim: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.page_size = page_size
        self.view = view
        shape = (layers, (pages + 1) * page_size, kv_heads, head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)

    def window(
        self, table_BT: Tensor, layout: Layout, visible_B: Tensor, store_BW: Tensor, tokens: int | None = None
    ) -> PagedWindow:
        """Attention for one forward.

        Args:
            table_BT: the physical page of each of a row's pages, 0 where it has none.
            layout: [B, W] of the window.
            visible_B: the number of leading slots each row may read.
            store_BW: the logical slot each token's key and value is written to, -1 for none.
            tokens: pack the rows into so many; the network then has to be given one row of them (`view.packed`).
        """
        return PagedWindow(self, self.view(table_BT, self.page_size, layout, visible_B, store_BW, tokens))

    def move(self, table_BT: Tensor, source_BM: Tensor, target_BM: Tensor) -> None:
        """Copies keys and values of each row between logical slots, all read before any is written; -1 moves
        nothing."""
        kept = (source_BM >= 0) & (target_BM >= 0)
        source = torch.where(kept, physical(table_BT, self.page_size, source_BM), 0).flatten()
        target = torch.where(kept, physical(table_BT, self.page_size, target_BM), 0).flatten()
        for held in (self.keys, self.values):
            held.index_copy_(1, target, held[:, source])

    def copy_page(self, source: int, target: int) -> None:
        """Copies a physical page: before a row writes into one that others read too."""
        old, new = (slice(p * self.page_size, (p + 1) * self.page_size) for p in (source, target))
        for held in (self.keys, self.values):
            held[:, new] = held[:, old]


class PagedWindow:
    """Attention of one forward (an `Attend`): writes keys and values to their slots, then attends.

    `view` and `cache` are for models that write to the cache themselves.
    """

    def __init__(self, cache: PagedCache, view: PagedView) -> None:
        self.cache, self.view = cache, view

    @cached_property
    def _slots(self) -> Tensor:
        # No window reads what it overwrites, so writing first changes nothing it sees.
        return self.view.store_M.clamp(min=0)

    def __call__(self, layer: int, q_BHWD: Tensor, k_BGWD: Tensor, v_BGWD: Tensor) -> Tensor:
        q_BWHD, k_BWGD, v_BWGD = (x.transpose(1, 2) for x in (q_BHWD, k_BGWD, v_BGWD))
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys.index_copy_(0, self._slots, k_BWGD.flatten(0, 1).to(keys.dtype))
        values.index_copy_(0, self._slots, v_BWGD.flatten(0, 1).to(values.dtype))
        return paged_attention(q_BWHD, k_BWGD, v_BWGD, keys, values, self.view).transpose(1, 2)
