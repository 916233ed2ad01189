"""Many random transformers in one: row i of a forward runs with the weights of model i, so that a property is tried on
hundreds of models in the time of a few forwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from random_models import EOS, random_lm
from unmask.decoding import build
from unmask.decoding.forward import Facts, State
from unmask.decoding.loop import Row, decode
from unmask.decoding.sampling import Draw
from unmask.models.config import ModelConfig
from unmask.models.families import Family
from unmask.models.transformer import Transformer

Weights = Callable[[str, Sequence[int]], Tensor]


class PerRow(nn.Module):
    """A linear layer with other weights [M, out, in] and biases [M, out] for each row; `models` are those of the
    rows."""

    def __init__(self, weights: Tensor, bias: Tensor | None, models: list[int]) -> None:
        super().__init__()
        self.weights, self.bias, self.models = weights, bias, models

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weights[self.models].transpose(1, 2)
        return y if self.bias is None else y + self.bias[self.models][:, None]


class Stacked(Transformer):
    """Transformers of one shape that share their norms; `models` are those of the rows at the moment.

    Args:
        weights: called with the name and shape of a tensor, gives that of all models, stacked: [M, ...].
    """

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        super().__init__(config)
        self.models: list[int] = []
        for path, parent in list(self.named_modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    full = f"{path}.{name}".removeprefix(".")
                    stack = weights(f"{full}.weight", child.weight.shape)
                    bias = None if child.bias is None else weights(f"{full}.bias", child.bias.shape)
                    setattr(parent, name, PerRow(stack, bias, self.models))
        self.table = weights(self.embedding_name, self.embedding.shape)
        self.count = len(self.table)
        self.every(1)
        self.eval()

    def every(self, times: int) -> None:
        """The rows are all models in order, `times` over."""
        self.models[:] = list(range(self.count)) * times

    def embed(self, tokens_BW: Tensor) -> Tensor:
        table = self.table[self.models]
        return table.gather(1, tokens_BW[..., None].expand(-1, -1, table.shape[-1]))

    def head(self, hidden: Tensor) -> Tensor:
        assert self.lm_head is not None
        return self.lm_head(hidden)

    def rows(
        self,
        method: str,
        family: Family,
        prompts: list[list[int]],
        new_tokens: int,
        temperature: float | list[float] = 0.0,
        top_p: float | list[float] = 1.0,
        top_k: int | list[int] = 0,
        **options: Any,
    ) -> list[Row]:
        """Prompt i decoded by model i, modulo their number, with seed i."""
        n = len(prompts)
        self.every(n // self.count)
        all_rows = list(self.models)

        def keep(numbers: list[int], state: State) -> None:
            self.models[:] = [all_rows[i] for i, done in zip(numbers, state.done.tolist()) if not done]

        heat, share, best = (torch.tensor(x).expand(n) for x in (temperature, top_p, top_k))
        bound = build(method, options).bind(family, new_tokens)
        facts = Facts(-1 if family.mask_id is None else family.mask_id, family.eos_ids, family.shift)
        draw = Draw(heat, share, best, torch.arange(n))
        return decode(self, bound, prompts, facts=facts, draw=draw, new_tokens=new_tokens, observe=keep)


class ManyModels(Stacked):
    """Models of `random_lm(first + i, ...)` for i < count, all of one family and depth."""

    def __init__(self, first: int, count: int, family: str, layers: int) -> None:
        singles = [random_lm(first + i, family, layers=layers) for i in range(count)]
        states = [lm.model.state_dict() for lm in singles]
        super().__init__(singles[0].model.config, lambda name, shape: torch.stack([s[name] for s in states]))
        self.singles, self.family = singles, singles[0].family

    def texts(
        self, method: str, prompts: list[list[int]], new_tokens: int, **more: Any
    ) -> tuple[list[list[int]], list[Row]]:
        """The texts up to their first end token, and all that was recorded. See `rows`."""
        out = self.rows(method, self.family, prompts, new_tokens, **more)
        texts = [row.canvas for row in out]
        return [t[: t.index(EOS) + 1] if EOS in t else t for t in texts], out
