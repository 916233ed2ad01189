"""Jacobi Forcing: an autoregressive model learns to guess several of its own tokens at once.

Paper: "Fast and Accurate Causal Parallel Decoding using Jacobi Forcing" (arXiv 2512.14681; official code
hao-ai-lab/JacobiForcing). The data are Jacobi decoding's own trajectories: for each block its fixed point, and a state
on the way there. One forward sees both, [clean ; noisy], under a causal mask; from the first wrong token of a block on,
the noisy row learns what the clean row of the same place says (the same network, no gradient), and the clean half goes
on to learn the next token. Which state is taken, and a second round with larger blocks, are matters of the data.

What differs from the official code, on purpose:
- several samples in a row and in a batch: each is averaged as the official code averages its batch of one;
- rows behind the end of the text are in neither loss (official: the last block's stay in the consistency loss);
- noisy and clean tokens stand in two halves, not block by block: the same network input in another order.

    unmask distil MODEL --trajectories --set block_size=32 --count 20000 --out FILE.jsonl
    python -m unmask.training CONFIG.yaml --set recipe.name=jacobi_forcing data=FILE.jsonl
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.errors import UnmaskError, unknown
from unmask.layout import PAD, Layout, jacobi_rows
from unmask.training.noise import Noise
from unmask.training.recipes.base import (
    IGNORE,
    Batch,
    Recipe,
    Supervised,
    Terms,
    View,
    previous_row_targets,
    token_losses,
)
from unmask.training.states import Models, score_rows

Average = Literal["rows", "blocks"]


@dataclass(frozen=True, slots=True)
class JacobiForcing(Recipe):
    """The recipe's options."""

    anchored: ClassVar[bool] = True
    needs_drafts: ClassVar[bool] = True

    block_size: int = 32
    """Tokens of a block of the trajectories (official: 16 in the first round, 32 in the second)."""
    window: int = 0
    """Blocks whose noisy tokens see each other, with clean ones before them. 0: all (noise-conditioned, the method);
    1: clean context (the paper's CLLM*); more: the windowed ablation."""
    ar_weight: float = 10.0
    """Weight of the next-token loss on the clean half (official: 1 in the windowed trainer)."""
    ar_prompt: bool = True
    """The next-token loss includes the prompt, as in the official code."""
    temperature: float = 1.0
    """Divides both sides' logits in the consistency loss, which is then multiplied by its square."""
    average: Average = "rows"
    """Of a sample's consistency terms: "rows", their mean divided by the number of blocks (official code); "blocks",
    their sum divided by the number of blocks (the paper's formula)."""
    last_rows: bool = True
    """The row of a block's last token learns the next block's first one; the official clean-context trainer leaves
    it out."""

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise UnmaskError(f"block_size must be at least 1, got {self.block_size}")
        if self.window < 0:
            raise UnmaskError(f"window must be at least 0 (0: all blocks), got {self.window}")
        if self.temperature <= 0:
            raise UnmaskError(f"temperature must be above 0, got {self.temperature}")
        if self.average not in get_args(Average):
            raise unknown("average", self.average, get_args(Average))

    @property
    def block(self) -> int:
        return self.block_size

    @property
    def decoder(self) -> dict[str, Any]:
        return {"method": "jacobi", "block_size": self.block_size}

    def views(self, batch: Batch, noise: Noise) -> View:
        del noise  # it is in the data: the state of the trajectory that was chosen
        if batch.drafts is None:
            raise UnmaskError("recipe 'jacobi_forcing' needs data that hold Jacobi trajectories")
        kept = self.kept(batch, batch.drafts)
        clean = previous_row_targets(batch, self._learnt(batch))
        targets = torch.cat([clean, self._noisy_targets(batch, kept)], dim=1)
        blocks = (-(-batch.answer // self.block_size)).clamp(min=1)
        rows = _count_of_sample(kept, batch.segment) if self.average == "rows" else 1
        pairs = _count_of_sample(clean != IGNORE, batch.segment)
        samples = int(((batch.positions == 0) & (batch.segment != PAD)).sum())
        half = (torch.arange(targets.shape[1]) // kept.shape[1]).expand_as(targets)[targets != IGNORE]
        return View(
            tokens=torch.cat([batch.tokens, batch.drafts], dim=1),
            layout=self._layout(batch),
            targets=targets,
            weights=torch.cat([1 / pairs, 1 / (blocks * rows)], dim=1),
            normalisers={"consistency": samples, "ar": samples},
            extra={"clean": (half == 0).nonzero().squeeze(1), "noisy": (half == 1).nonzero().squeeze(1)},
        )

    def kept(self, batch: Batch, drafts: Tensor) -> Tensor:
        """The noisy rows of the consistency loss, bool [B, L]: from each block's first wrong token to its end, none
        behind the end of the text."""
        inside = batch.positions - batch.prompt
        offset = torch.where(inside >= 0, inside % self.block_size, 0)
        wrong = F.pad(((drafts != batch.tokens) & (inside >= 0)).long().cumsum(1), (1, 0))
        before_block = wrong.gather(1, torch.arange(inside.shape[1]) - offset)
        kept = (wrong[:, 1:] > before_block) & (inside >= 0) & (inside < batch.answer)
        return kept if self.last_rows else kept & (offset < self.block_size - 1)

    def _learnt(self, batch: Batch) -> Tensor:
        """Tokens of the next-token loss, bool [B, L]."""
        answer = batch.labels != IGNORE
        return answer | (batch.positions < batch.prompt) if self.ar_prompt else answer

    def _noisy_targets(self, batch: Batch, kept: Tensor) -> Tensor:
        """The token behind each kept row. The loss does not read it; a row at the very end stands for itself."""
        following = previous_row_targets(batch, batch.segment != PAD)
        return torch.where(kept, torch.where(following == IGNORE, batch.tokens, following), IGNORE)

    def _layout(self, batch: Batch) -> Layout:
        """Noisy places of prompts are padding: the clean half's prompt serves both."""
        window = self.window * self.block_size or batch.tokens.shape[1]
        noisy = torch.where(batch.positions < batch.prompt, PAD, batch.segment)
        layout = jacobi_rows(batch.positions, batch.prompt, window)
        return replace(layout, segment=torch.cat([batch.segment, noisy], dim=1))

    def loss(self, models: Models, view: Supervised) -> Terms:
        """`right` of a noisy row: its best token is the one of the clean row."""
        clean, noisy = view.extra["clean"], view.extra["noisy"]
        states = models.student(view.tokens, view.layout)
        ar = score_rows(token_losses, [states[view.index[clean]]], view.targets[clean])
        student = view.index[noisy]
        # The clean row of the same place stands half a row before.
        teacher = states[student - view.tokens.shape[1] // 2].detach()
        pair = score_rows(partial(consistency, temperature=self.temperature), [states[student], teacher])
        right = torch.empty_like(view.targets, dtype=torch.bool)
        right[clean], right[noisy] = ar["right"], pair["right"]
        sums = {
            "consistency": (pair["loss"] * view.weights[noisy]).sum(),
            "ar": self.ar_weight * (ar["loss"] * view.weights[clean]).sum(),
        }
        return Terms(sums, right)


def consistency(student_SV: Tensor, teacher_SV: Tensor, temperature: float) -> dict[str, Tensor]:
    """Cross-entropy of each row against the teacher's distribution (KL up to a constant), and whether both have the
    same best token."""
    target = (teacher_SV / temperature).softmax(-1)
    loss = -(target * (student_SV / temperature).log_softmax(-1)).sum(-1)
    right = student_SV.detach().argmax(-1) == teacher_SV.argmax(-1)
    return {"loss": loss * temperature**2, "right": right}


def _count_of_sample(chosen: Tensor, segment: Tensor) -> Tensor:
    """How many places (bool [B, L]) of its sample are chosen, at each place [B, L]; at least 1."""
    number = segment.clamp(min=0)
    counts = torch.zeros_like(number).scatter_add(1, number, chosen.long())
    return counts.gather(1, number).clamp(min=1)
