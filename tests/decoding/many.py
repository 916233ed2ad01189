"""FreeDave's oracles on many random models at once, written out: one token a forward, nothing batched away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from many_models import Stacked
from random_models import EOS, MASK, VOCAB
from unmask.attention.dense import DenseAttention
from unmask.decoding.loop import Row
from unmask.layout import block_causal
from unmask.models.config import ModelConfig
from unmask.models.families import Family


class Many(Stacked):
    """`count` models of the same shape with random weights."""

    def __init__(self, count: int, hidden: int, layers: int, std: float, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)

        def weights(name: str, shape: Sequence[int]) -> Tensor:
            return torch.randn(count, *shape, generator=random) * (1.0 if name == self.embedding_name else std)

        super().__init__(
            ModelConfig("sdar", VOCAB, hidden, 2 * hidden, layers, 2, 2, hidden // 2, 1e-6, 1e4, 512, qk_norm=True),
            weights,
        )

    def run(self, prompts: Tensor, new_tokens: int, attention: Any, shift: int = 0, **options: Any) -> list[Row]:
        """FreeDave's rows, one for each model; without its early exit."""
        family = Family("sdar", attention, attention, shift, True, VOCAB, MASK, (EOS,), 4)
        return self.rows("freedave", family, prompts.tolist(), new_tokens, **({"early_exit": False} | options))

    @torch.inference_mode()
    def block_text(self, prompts: Tensor, new_tokens: int, block: int, threshold: float = 2.0) -> Tensor:
        """One-token (or threshold) decoding of a block model, everything recomputed each time: [M, tokens]."""
        self.every(1)
        size = -(-(prompts.shape[1] + new_tokens) // block) * block
        canvas = F.pad(prompts, (0, size - prompts.shape[1]), value=MASK)
        waiting = torch.arange(size).expand_as(canvas) >= prompts.shape[1]
        place, attend = torch.arange(size).expand_as(canvas), DenseAttention(block_causal(size, block))
        while waiting.any():
            token, prob = best(self(canvas, place, attend))
            here = waiting & (place // block == (waiting.int().argmax(-1) // block)[:, None])
            canvas, waiting = reveal(canvas, waiting, here, token, prob, threshold)
        return canvas[:, prompts.shape[1] :]

    @torch.inference_mode()
    def full_text(
        self, prompts: Tensor, new_tokens: int, block: int, shift: int, dual: bool, threshold: float = 2.0
    ) -> Tensor:
        """The same under full attention with keys that are refreshed at each block: [M, tokens]."""
        self.every(1)
        start, end = prompts.shape[1], prompts.shape[1] + new_tokens
        canvas = F.pad(prompts, (0, new_tokens), value=MASK)
        place = torch.arange(end).expand_as(canvas)
        waiting = place >= start
        for first in range(start, end, block):
            here = (place >= first) & (place < first + block)
            frozen, attend = Frozen(0, end), None
            while (waiting & here).any():
                lo, hi = (0, end) if attend is None else (first, min(first + block, end) if dual else end)
                attend = frozen if attend is None else Frozen(lo, hi, frozen)
                z = self(canvas[:, lo:hi], place[:, lo:hi], attend)
                token, prob = best(torch.cat([z[:, :1], z[:, :-1]], 1) if shift else z)
                token, prob = (F.pad(x, (lo, end - hi)) for x in (token, prob))
                only = here & waiting & ((place == first) if shift and attend is frozen else True)
                canvas, waiting = reveal(canvas, waiting, only, token, prob, threshold)
        return canvas[:, start:]


class Frozen:
    """Full attention of window [lo, hi) over the keys and values another forward left outside of it."""

    def __init__(self, lo: int, hi: int, base: Frozen | None = None) -> None:
        self.lo, self.hi, self.base = lo, hi, base
        self.held: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.base is not None:
            old = self.base.held[layer]
            k, v = (torch.cat([o[:, :, : self.lo], x, o[:, :, self.hi :]], 2) for o, x in zip(old, (k, v)))
        self.held[layer] = k, v
        return F.scaled_dot_product_attention(q, k, v)


def best(z: Tensor) -> tuple[Tensor, Tensor]:
    """The best token but the mask, and its probability."""
    allowed = z.clone()
    allowed[..., MASK] = -torch.inf
    token = allowed.argmax(-1)
    return token, z.softmax(-1).gather(-1, token[..., None])[..., 0]


def reveal(
    canvas: Tensor, waiting: Tensor, here: Tensor, token: Tensor, prob: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """The canvas with the surest of the positions `here` written, and all that reach the threshold."""
    prob = prob.masked_fill(~here, -1.0)
    surest = F.one_hot(prob.argmax(-1), prob.shape[-1]).bool() & here
    chosen = surest | (prob >= threshold)
    return torch.where(chosen, token, canvas), waiting & ~chosen
