"""The layout of a forward: three integers per token, and the one rule that turns them into attention.

Every token carries an `order` and a `lane`, and a `segment` where several documents share a row. A query q sees a key
k when

    segment[k] == segment[q]  and  order[k] <= order[q]  and  lane[k] in (0, lane[q])

so lane 0 is seen by everyone and any other lane only by itself. Every attention pattern of every method, in training
and in decoding, is a choice of these integers, built by the functions below; nothing else in the package writes a
mask.

Padding is a segment of its own (`PAD`): padded queries see padding only, so no softmax row is ever empty.

Shape legend of the package: B rows, W window tokens, Q queries, K keys, S cache slots, R logits rows, H query heads,
G K/V heads, D head size, C hidden size, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

PAD = -1


@dataclass(frozen=True, slots=True)
class Layout:
    """Order, lane, segment and RoPE position of each token: int64 tensors of one shape, [W] or [B, W]."""

    order: Tensor
    lane: Tensor
    segment: Tensor
    positions: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.order.shape

    def batch(self, rows: int) -> Layout:
        """The same layout for each of `rows` rows: [W] becomes [rows, W]."""
        return self.map(lambda x: x.expand(rows, -1))

    def map(self, change: Callable[[Tensor], Tensor]) -> Layout:
        """The layout with the same change made to each of its tensors."""
        return Layout(change(self.order), change(self.lane), change(self.segment), change(self.positions))

    def to(self, device: torch.device | str) -> Layout:
        return self.map(lambda x: x.to(device))

    def with_padding(self, valid: Tensor) -> Layout:
        """Moves the tokens where `valid` (bool, broadcastable) is False to the padding segment."""
        return replace(self, segment=torch.where(valid, self.segment, PAD))


def visible(query: Layout, key: Layout) -> Tensor:
    """The rule: bool [..., Q, K], True where the query sees the key."""
    order = key.order.unsqueeze(-2) <= query.order.unsqueeze(-1)
    lane_k = key.lane.unsqueeze(-2)
    lane = (lane_k == 0) | (lane_k == query.lane.unsqueeze(-1))
    return order & lane & (key.segment.unsqueeze(-2) == query.segment.unsqueeze(-1))


def _layout(order: Tensor, lane: Tensor | None = None, positions: Tensor | None = None) -> Layout:
    zeros = torch.zeros_like(order)
    index = torch.arange(order.shape[-1], device=order.device)
    return Layout(order, zeros if lane is None else lane, zeros, index if positions is None else positions)


def full(length: int) -> Layout:
    """Every token sees every token (LLaDA, Dream, MDLM)."""
    return _layout(torch.zeros(length, dtype=torch.long))


def causal(length: int) -> Layout:
    """Token i sees tokens 0..i (AR, Jacobi, a WeDLM window in physical order)."""
    return _layout(torch.arange(length))


def block_index(positions: Tensor, block: int, anchor: Tensor | int = 0) -> Tensor:
    """The block number of each position: 0 before `anchor`, counted from 1 after it; counted from 0 when anchor is
    0."""
    if isinstance(anchor, int) and anchor == 0:
        return positions // block
    return torch.where(positions < anchor, 0, 1 + torch.div(positions - anchor, block, rounding_mode="floor"))


def block_causal(length: int, block: int, anchor: int = 0) -> Layout:
    """Blocks see themselves and earlier blocks.

    With `anchor` 0 blocks lie at absolute multiples of `block` (Fast-dLLM v2, SDAR, LLaDA2). With `anchor` = prompt
    length the prompt is one bidirectional block and the grid starts behind it (D2F).
    """
    return _layout(block_index(torch.arange(length), block, anchor))


def doubled(length: int, block: int) -> Layout:
    """[noisy ; clean] training row of 2 * length tokens (BD3-LM, Fast-dLLM v2, SDAR).

    A noisy block sees itself and the clean blocks before it; clean blocks are block-causal; nothing clean sees
    anything noisy.
    """
    return doubled_rows(torch.arange(length), block)


def doubled_rows(index: Tensor, block: int) -> Layout:
    """The same for packed samples; `index` [..., L] counts the tokens of each sample from 0."""
    j = index // block
    order, lane = torch.cat([2 * j, 2 * j + 1], dim=-1), torch.cat([j + 1, torch.zeros_like(j)], dim=-1)
    return _layout(order, lane, torch.cat([index, index], dim=-1))


def wedlm_streams(length: int, block: int) -> Layout:
    """[memory ; prediction] training row of WeDLM, the prediction stream in physical order inside each block.

    `positions` are those of the identity order; the caller permutes them together with the tokens of each block.
    """
    return wedlm_rows(torch.arange(length), block)


def wedlm_rows(index: Tensor, block: int) -> Layout:
    """The same for packed samples; `index` [..., L] counts the tokens of each sample from 0."""
    b, i, stride = index // block, index % block, block + 1
    order = torch.cat([index * stride, (b * block - 1) * stride + 1 + i], dim=-1)
    return _layout(order, torch.cat([torch.zeros_like(b), b + 1], dim=-1), torch.cat([index, index], dim=-1))


def jacobi_noise(prompt: int, length: int) -> Layout:
    """[prompt ; student ; teacher] row of Jacobi Forcing, noise-conditioned: both copies causal, blind to each
    other."""
    tail = torch.arange(prompt, prompt + length)
    index = torch.cat([torch.arange(prompt), tail, tail])
    lane = torch.cat([torch.zeros(prompt), torch.ones(length), torch.full((length,), 2)]).long()
    return _layout(index, lane, index)


def jacobi_clean(length: int, starts: list[int], block: int) -> Layout:
    """[clean ; noisy block 0 ; noisy block 1 ; ...] row of Jacobi Forcing, clean context: noisy block j of `block`
    tokens begins at position starts[j] and sees the clean tokens before it and its own earlier tokens."""
    stride = block + 1
    clean = torch.arange(length)
    offset = torch.arange(block)
    order = [clean * stride] + [(s - 1) * stride + 1 + offset for s in starts]
    lane = [torch.zeros_like(clean)] + [torch.full((block,), j + 1) for j in range(len(starts))]
    positions = [clean] + [s + offset for s in starts]
    return _layout(torch.cat(order), torch.cat(lane), torch.cat(positions))


def jacobi_rows(index: Tensor, prompt: Tensor, window: int) -> Layout:
    """[clean ; noisy] row of Jacobi Forcing for packed samples, 2 L tokens.

    Clean tokens are causal. Noisy ones see the noisy tokens of their own window before them, and the clean tokens
    before that window. Windows of one block give clean context, windows as long as the row the noise-conditioned
    pattern, where the clean half is the teacher's row and the noisy half the student's.

    Args:
        index: [..., L], counts the tokens of each sample from 0.
        prompt: [..., L], the length of the sample's prompt; noisy tokens before it must be moved to the padding.
        window: noisy tokens that see each other; windows are counted from the prompt's end.
    """
    number = torch.div(index - prompt, window, rounding_mode="floor").clamp(min=0)
    start, stride = prompt + number * window, window + 1
    order = torch.cat([index * stride, (start - 1) * stride + 1 + index - start], dim=-1)
    lane = torch.cat([torch.zeros_like(number), number + 1], dim=-1)
    return _layout(order, lane, torch.cat([index, index], dim=-1))


def copies(base: Layout, count: int) -> Layout:
    """`count` copies of a window that do not see each other: FreeDave's drafts, LoPA's branches, Jacobi's candidate
    rows."""

    def tile(x: Tensor) -> Tensor:
        return x.repeat(*([1] * (x.dim() - 1)), count)

    lane = torch.arange(1, count + 1, device=base.order.device).repeat_interleave(base.shape[-1])
    return Layout(tile(base.order), lane.expand_as(tile(base.order)), tile(base.segment), tile(base.positions))


def packed(documents: list[Layout]) -> Layout:
    """Several documents in one row: each as alone, with a segment of its own."""
    segment = [torch.full_like(d.segment, i) for i, d in enumerate(documents)]
    return Layout(
        torch.cat([d.order for d in documents]),
        torch.cat([d.lane for d in documents]),
        torch.cat(segment),
        torch.cat([d.positions for d in documents]),
    )
