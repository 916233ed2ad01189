"""Keys and values in one contiguous tensor per layer: the reference cache, for any device.

What a forward reads is defined by `visible` and `store` alone (docs/architecture.md): slots [0, visible) of its row,
minus the slots that the window itself overwrites, plus the window under the rule of `layout`. Nothing is ever rolled
back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.attention import Attend
from unmask.attention.dense import DenseAttention, sdpa
from unmask.layout import Layout, visible


class ContiguousCache:
    """Slots for `rows` sequences: keys and values [L, B, G, S, D].

    Args:
        layers, rows, kv_heads, slots, head_dim: L, B, G, S, D. `slots` 0 makes a cache that holds nothing.
    """

    def __init__(
        self,
        layers: int,
        rows: int,
        kv_heads: int,
        slots: int,
        head_dim: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.slots = slots
        shape = (layers, rows, kv_heads, slots, head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)

    def select(self, rows: Tensor) -> None:
        """Keeps these rows (int64 indices), in this order."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copies keys and values of each row from slots `source` [B, M] to slots `target` [B, M]; -1 moves nothing."""
        row, column = (source >= 0).nonzero(as_tuple=True)
        old, new = source[row, column], target[row, column]
        for held in (self.keys, self.values):
            held[:, row, :, new] = held[:, row, :, old]

    def window(self, layout: Layout, seen: Tensor, store: Tensor) -> Attend:
        """Attention for one forward.

        Args:
            layout: [B, W] of the window.
            seen: [B], the number of leading slots each row may read.
            store: [B, W], the slot each token's key and value is written to, or -1 for none.
        """
        if self.slots == 0:
            return DenseAttention(layout)
        base = store[:1, :1]
        run = base + torch.arange(store.shape[1], device=store.device)
        if bool((store == run).all()) and int(base) >= 0:
            return _RunWindow(self, layout, seen, int(base))
        return _ScatterWindow(self, layout, seen, store)


def _or_none(mask: Tensor) -> Tensor | None:
    """No mask at all where everything is visible: the kernels without one are faster."""
    return None if mask.device.type == "cpu" and bool(mask.all()) else mask


class _RunWindow:
    """Every row stores its window in the same run of slots: write first, then attend to a view of the cache, nothing
    copied."""

    def __init__(self, cache: ContiguousCache, layout: Layout, seen: Tensor, base: int) -> None:
        self.cache, self.base = cache, base
        self.stop = base + layout.shape[1]
        self.extent = max(int(seen.max()), self.stop)
        mask = torch.arange(self.extent, device=seen.device) < seen[:, None, None]
        mask = mask.expand(-1, layout.shape[1], -1).clone()
        mask[:, :, base : self.stop] = visible(layout, layout)
        self.mask = _or_none(mask)

    def __call__(self, layer: int, q_BHWD: Tensor, k_BGWD: Tensor, v_BGWD: Tensor) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[:, :, self.base : self.stop] = k_BGWD
        values[:, :, self.base : self.stop] = v_BGWD
        return sdpa(q_BHWD, keys[:, :, : self.extent], values[:, :, : self.extent], self.mask)


class _ScatterWindow:
    """Rows at different places, or tokens that are not stored: attend to [cache ; window], then scatter."""

    def __init__(self, cache: ContiguousCache, layout: Layout, seen: Tensor, store: Tensor) -> None:
        self.cache = cache
        self.extent = int(seen.max())
        width = layout.shape[1]
        slot = torch.arange(cache.slots, device=seen.device)
        old = slot < seen[:, None]
        kept = store >= 0
        # One slot more than there are takes the writes of tokens that are not stored.
        overwritten = torch.zeros(old.shape[0], cache.slots + 1, dtype=torch.bool, device=seen.device)
        overwritten.scatter_(1, torch.where(kept, store, cache.slots), True)
        old &= ~overwritten[:, : cache.slots]
        prefix = old[:, None, : self.extent].expand(-1, width, -1)
        self.mask = _or_none(torch.cat([prefix, visible(layout, layout)], dim=2))
        self.row, self.column = kept.nonzero(as_tuple=True)
        self.slot = store[self.row, self.column]

    def __call__(self, layer: int, q_BHWD: Tensor, k_BGWD: Tensor, v_BGWD: Tensor) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        all_k = torch.cat([keys[:, :, : self.extent], k_BGWD], dim=2)
        all_v = torch.cat([values[:, :, : self.extent], v_BGWD], dim=2)
        out = sdpa(q_BHWD, all_k, all_v, self.mask)
        keys[self.row, :, self.slot] = k_BGWD.transpose(1, 2)[self.row, self.column].to(keys.dtype)
        values[self.row, :, self.slot] = v_BGWD.transpose(1, 2)[self.row, self.column].to(values.dtype)
        return out
