"""Rows that are seen as [noisy ; clean], so that one forward trains every block: shared by the recipes that do so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unmask.layout import Layout, doubled, doubled_rows
from unmask.training.recipes.base import IGNORE, Batch, View, previous_row_targets, same_row_targets


def as_fast_dllm_v2(family: str, block: int) -> dict[str, Any]:
    """`Recipe.published_as` of a model that is decoded in blocks with token shift: weights as of Qwen2."""
    if family not in ("qwen2", "fast-dllm-v2"):
        return {}
    return {"architectures": ["Fast_dLLM_QwenForCausalLM"], "model_type": "Fast_dLLM_Qwen", "bd_size": block}


def doubled_view(
    batch: Batch,
    masks: Sequence[Tensor],
    wanted: Tensor,
    weights: Sequence[Tensor],
    *,
    mask_id: int,
    block: int,
    shift: bool,
    isolate: bool = True,
) -> View:
    """[noisy ; clean] rows, one set of B rows for each way to mask them, normalised by the number of targets.

    Args:
        masks: bool [B, L] each, the tokens that are masked.
        wanted: bool [B, L], the tokens that are targets where they are masked.
        weights: [B, L] each, of every token's term.
        block: tokens a block, counted from the start of each sample.
        shift: row i-1 predicts token i.
        isolate: packed samples do not see each other and positions restart; False: one running row.
    """
    aim = previous_row_targets if shift else same_row_targets
    targets = torch.cat([aim(batch, masked & wanted) for masked in masks])
    weight = torch.cat([torch.roll(w, -1, dims=1) if shift else w for w in weights])
    noisy = torch.cat([torch.where(masked, mask_id, batch.tokens) for masked in masks])
    return View(
        tokens=torch.cat([noisy, batch.tokens.repeat(len(masks), 1)], dim=1),
        layout=_layout(batch, block, len(masks)) if isolate else doubled(batch.tokens.shape[1], block),
        targets=torch.cat([targets, torch.full_like(targets, IGNORE)], dim=1),
        weights=torch.cat([weight, torch.zeros_like(weight)], dim=1),
        normalisers={"loss": int((targets != IGNORE).sum())},
    )


def _layout(batch: Batch, block: int, views: int) -> Layout:
    layout = doubled_rows(batch.positions, block)
    layout = replace(layout, segment=batch.segment.repeat(1, 2))
    return layout.map(lambda x: x.repeat(views, 1))


def complemented(
    masked: Tensor, p: Tensor, maskable: Tensor, floor: float, complementary: bool
) -> list[tuple[Tensor, Tensor]]:
    """What each view masks, with the mask probability [B, L]: `masked` with p, and if wanted the rest of what may be
    masked with 1 - p, but not less than `floor`."""
    rest = [(~masked & maskable, (1 - p).clamp_min(floor))] if complementary else []
    return [(masked, p), *rest]
