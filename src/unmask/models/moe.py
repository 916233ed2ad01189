"""Mixture-of-experts feed-forward: router, stacked experts, shared expert.

The routers of LLaDA-MoE (arXiv 2509.24389: softmax over all experts, weights taken as they are) and of LLaDA2.0/2.1
(arXiv 2512.15745, 2602.08676: sigmoid, experts in groups, a bias that chooses but does not weigh) are one function of
the flags of `MoeConfig`. All of it is computed in float32.

The weights of a layer's experts lie in two tensors, so that a grouped matrix product runs all of them at once; the
loop over experts is the reference, and the path for whatever that product does not do. On a GPU that loop would read
counts back to the host, which a captured graph must not: there weights are gathered per pair where no gradient is due.

Shapes beyond the legend in `layout`: T tokens, E experts, K experts of a token, P = T * K pairs sorted by expert,
I inner width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.config_moe import MoeConfig
from unmask.models.mlp import MLP

Product = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

GATHERED = 256 << 20  # bytes of weights that `gathered` holds at once


def route(logits_TE: Tensor, bias_E: Tensor | None, moe: MoeConfig) -> tuple[Tensor, Tensor]:
    """Which experts each token goes to, and with what weight: int64 and float32, both [T, K].

    Args:
        logits_TE: the router's, float32.
        bias_E: added to the scores before the choice.
    """
    scores = logits_TE.softmax(-1) if moe.scores == "softmax" else logits_TE.sigmoid()
    ranked = scores if bias_E is None else scores + bias_E.float()
    expert = (_within_best_groups(ranked, moe) if moe.limited else ranked).topk(moe.per_token, -1).indices
    weight = (ranked if moe.weigh_bias else scores).gather(-1, expert)
    if moe.renormalise:
        weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
    return expert, weight * moe.scale


def _within_best_groups(ranked_TE: Tensor, moe: MoeConfig) -> Tensor:
    """-inf at the experts of all but the best groups; a group is worth the sum of its two best experts."""
    grouped = ranked_TE.unflatten(-1, (moe.groups, -1))
    kept = grouped.topk(2, -1).values.sum(-1).topk(moe.kept_groups, -1).indices
    is_kept = torch.zeros_like(grouped[..., 0], dtype=torch.bool).scatter_(-1, kept, True)
    return grouped.masked_fill(~is_kept.unsqueeze(-1), -torch.inf).flatten(-2)


class Router(nn.Linear):
    """Scores each token against each expert; see `route`."""

    expert_bias: Tensor | None

    def __init__(self, hidden: int, moe: MoeConfig) -> None:
        super().__init__(hidden, moe.experts, bias=False)
        self.moe = moe
        self.register_buffer("expert_bias", torch.zeros(moe.experts) if moe.bias else None)

    def forward(self, x_TC: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        with torch.autocast(x_TC.device.type, enabled=False):
            logits_TE = F.linear(x_TC.float(), self.weight.float())
        return route(logits_TE, self.expert_bias, self.moe)


class Experts(nn.Module):
    """SwiGLU experts, stacked: gate above up in [E, 2I, C], down in [E, C, I]."""

    def __init__(self, hidden: int, moe: MoeConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(moe.experts, 2 * moe.inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(moe.experts, hidden, moe.inner))
        for stack in self.parameters():
            nn.init.uniform_(stack, -(stack.shape[-1] ** -0.5), stack.shape[-1] ** -0.5)

    def forward(self, x_TC: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
        pairs = expert_TK.flatten()
        order_P = pairs.argsort(stable=True)
        every = torch.arange(len(self.down_proj), device=pairs.device)
        end_E = torch.searchsorted(pairs[order_P], every, right=True)
        y_PC = self._product(x_TC)(x_TC[order_P // expert_TK.shape[1]], self.gate_up_proj, self.down_proj, end_E)
        y_TKC = y_PC[order_P.argsort()].unflatten(0, expert_TK.shape)
        return (y_TKC.float() * weight_TK.unsqueeze(-1)).sum(1).to(x_TC.dtype)

    def _product(self, x: Tensor) -> Product:
        if can_group(x, self.gate_up_proj, self.down_proj):
            return grouped
        # Gradients would have to keep every gathered weight.
        return gathered if x.is_cuda and not torch.is_grad_enabled() else looped


def looped(x_PC: Tensor, gate_up_E: Tensor, down_E: Tensor, end_E: Tensor) -> Tensor:
    """Each expert on its own tokens [end of the expert before, own end), those without tokens skipped: [P, C]."""
    out, start = [], 0
    for expert, end in enumerate(end_E.tolist()):
        if end > start:
            gate, up = F.linear(x_PC[start:end], gate_up_E[expert]).chunk(2, -1)
            out.append(F.linear(F.silu(gate) * up, down_E[expert]))
        start = end
    return torch.cat(out)


def gathered(x_PC: Tensor, gate_up_E: Tensor, down_E: Tensor, end_E: Tensor) -> Tensor:
    """The same from a copy of each pair's weights: slow, but for any dtype and size without reading counts back to
    the host."""
    expert_P = torch.searchsorted(end_E, torch.arange(len(x_PC), device=end_E.device), right=True)
    expert = gate_up_E[0].numel() + down_E[0].numel()
    at_once = max(1, GATHERED // (expert * x_PC.element_size()))
    out = []
    for x_1C, index in zip(x_PC.unsqueeze(1).split(at_once), expert_P.split(at_once)):
        gate, up = torch.bmm(x_1C, gate_up_E[index].transpose(1, 2)).chunk(2, -1)
        out.append(torch.bmm(F.silu(gate) * up, down_E[index].transpose(1, 2)).squeeze(1))
    return torch.cat(out)


def grouped(x_PC: Tensor, gate_up_E: Tensor, down_E: Tensor, end_E: Tensor) -> Tensor:
    """The same in two grouped matrix products, without reading counts back to the host."""
    assert GROUPED_MM is not None
    ends = end_E.int()
    gate, up = GROUPED_MM(x_PC, gate_up_E.transpose(1, 2), offs=ends).chunk(2, -1)
    return GROUPED_MM(F.silu(gate) * up, down_E.transpose(1, 2), offs=ends)


def _grouped_mm() -> tuple[Callable[..., Any] | None, tuple[int, int]]:
    """This torch's grouped product, and the CUDA capability it needs."""
    if hasattr(F, "grouped_mm"):
        return F.grouped_mm, (8, 0)
    return getattr(torch, "_grouped_mm", None), (9, 0)


GROUPED_MM, CAPABILITY = _grouped_mm()


def can_group(x: Tensor, *stacks: Tensor) -> bool:
    """Whether `grouped` does these: bfloat16 on a recent CUDA device, rows of whole 16 bytes."""
    if GROUPED_MM is None or not x.is_cuda or torch.cuda.get_device_capability(x.device) < CAPABILITY:
        return False
    return all(t.dtype == torch.bfloat16 and t.shape[-1] % 8 == 0 for t in (x, *stacks))


class MoE(nn.Module):
    """What stands in a layer in the place of an MLP."""

    def __init__(self, hidden: int, moe: MoeConfig) -> None:
        super().__init__()
        self.gate = Router(hidden, moe)
        self.experts = Experts(hidden, moe)
        self.shared_experts = MLP(hidden, moe.shared_inner) if moe.shared_inner else None

    def forward(self, x_BWC: Tensor) -> Tensor:
        x_TC = x_BWC.flatten(0, -2)
        y_TC = self.experts(x_TC, *self.gate(x_TC))
        if self.shared_experts is not None:
            y_TC = y_TC + self.shared_experts(x_TC)
        return y_TC.view_as(x_BWC)
