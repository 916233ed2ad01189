"""The attention of a forward from its layout; for layouts that come again it is made once.

Rows of one sample each have the same layout in every step, [W]. Such a layout is kept on the device, and its dense mask
or block mask with it. Packed rows have one of their own, [N, W]: their mask is made once for a forward, on the device.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import get_args

import torch

from unmask.attention import Attend
from unmask.attention.dense import DenseAttention
from unmask.attention.flex import FlexAttention
from unmask.errors import UnmaskError, unknown
from unmask.layout import Layout
from unmask.training.config import AttentionKind
from unmask.training.recipes.base import Supervised

KEPT = 16
"""Layouts that are remembered."""


@dataclass
class _Known:
    layout: Layout
    attends: dict[bool, Attend] = field(default_factory=dict)


class Attending:
    """Makes attentions.

    Args:
        kind: "dense" or "flex".

    Raises:
        UnmaskError: another kind.
    """

    def __init__(self, kind: str) -> None:
        if kind not in get_args(AttentionKind):
            raise unknown("attention", kind, get_args(AttentionKind))
        self.kind = kind
        self._known: OrderedDict[bytes, _Known] = OrderedDict()

    def place(self, batch: Supervised, device: torch.device) -> Supervised:
        """The batch on the device; a layout [W] that was there before is the same tensors again."""
        layout = batch.layout
        if layout.order.dim() == 2 or layout.order.device.type != "cpu":
            return batch.to(device)
        parts = (layout.order, layout.lane, layout.segment, layout.positions)
        key = b"".join(part.contiguous().numpy().tobytes() for part in parts)
        if key not in self._known:
            self._known[key] = _Known(layout.to(device))
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return replace(batch, layout=self._known[key].layout).to(device)

    def attend(self, layout: Layout, compiled: bool) -> Attend:
        """The attention for this layout. `compiled`: the layers that call it are compiled."""
        for known in self._known.values():
            if _same(known.layout, layout):
                if compiled not in known.attends:
                    known.attends[compiled] = self._make(layout, compiled)
                return known.attends[compiled]
        return self._make(layout, compiled)

    def _make(self, layout: Layout, compiled: bool) -> Attend:
        if self.kind == "dense":
            return DenseAttention(layout)
        if layout.order.device.type == "cpu":
            raise UnmaskError("attention 'flex' needs a GPU; use 'dense' on a CPU")
        return FlexAttention(layout, inside_compile=compiled)


def _same(one: Layout, other: Layout) -> bool:
    """Whether both are the same tensors, as far as attention goes."""
    return one.order is other.order and one.lane is other.lane and one.segment is other.segment
