"""Many random transformers in one: each row of a batch runs one of them, so that hundreds of models can be tested in
the time of a few forwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from random_models import EOS, VOCAB, random_lm
from unmask.attention import Attend
from unmask.decoding import build
from unmask.decoding.forward import Facts
from unmask.decoding.loop import Row, decode
from unmask.decoding.sampling import Draw
from unmask.models.rope import Rope, rotate


class ManyModels:
    """Models of `random_lm(first + i, ...)` for i < count, all of one family and depth.

    Model i speaks the tokens [24 i, 24 i + 24); which one a row runs is read off its first token. So it takes the place
    of a `Transformer` in the loop.
    """

    def __init__(self, first: int, count: int, family: str, layers: int) -> None:
        self.singles = [random_lm(first + i, family, layers=layers) for i in range(count)]
        self.config = replace(self.singles[0].model.config, vocab_size=count * VOCAB)
        states = [lm.model.state_dict() for lm in self.singles]
        self.weights = {name: torch.stack([s[name] for s in states]) for name in states[0]}
        self.rope = Rope(self.config)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.eos = tuple(i * VOCAB + EOS for i in range(count))

    def _linear(self, x: Tensor, name: str, which: Tensor) -> Tensor:
        y = x @ self.weights[f"{name}.weight"][which].transpose(1, 2)
        bias = self.weights.get(f"{name}.bias")
        return y if bias is None else y + bias[which][:, None]

    def _norm(self, x: Tensor) -> Tensor:  # the weights of a random model are one
        return F.rms_norm(x, x.shape[-1:], None, self.config.rms_norm_eps)

    @torch.no_grad()
    def __call__(self, tokens: Tensor, positions: Tensor, attend: Attend, rows: Tensor) -> Tensor:
        which = tokens[:, 0] // VOCAB
        angles = self.rope(positions)
        x = self.weights["model.embed_tokens.weight"][which[:, None], tokens % VOCAB]
        for layer in range(self.config.num_layers):
            name = f"model.layers.{layer}"
            h = self._norm(x)
            q, k, v = (
                self._linear(h, f"{name}.self_attn.{part}_proj", which).unflatten(-1, (-1, self.config.head_dim))
                for part in "qkv"
            )
            q, k = rotate(q, *angles), rotate(k, *angles)
            mixed = attend(layer, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
            x = x + self._linear(mixed.transpose(1, 2).flatten(2), f"{name}.self_attn.o_proj", which)
            h = self._norm(x)
            gate = F.silu(self._linear(h, f"{name}.mlp.gate_proj", which))
            x = x + self._linear(gate * self._linear(h, f"{name}.mlp.up_proj", which), f"{name}.mlp.down_proj", which)
        x = self._norm(x).gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))
        own = self._linear(x, "lm_head", which)
        logits = torch.full((*own.shape[:2], len(self.singles), VOCAB), -1e4)
        logits[torch.arange(len(which)), :, which] = own
        return logits.flatten(2)

    def decode(
        self, method: str, prompts: list[list[int]], new_tokens: int, temperature: float = 0.0, **options: Any
    ) -> tuple[list[list[int]], list[Row]]:
        """Prompt i under model i, which are ids below 24: the texts up to their first end token, and all that was
        recorded."""
        rows = len(prompts)
        draw = Draw(torch.full((rows,), temperature), torch.ones(rows), torch.zeros(rows).long(), torch.arange(rows))
        bound = build(method, options).bind(self.singles[0].family, new_tokens)
        shifted = [[i * VOCAB + t for t in prompt] for i, prompt in enumerate(prompts)]
        facts = Facts(-1, self.eos, 1)
        out = decode(self, bound, shifted, facts=facts, draw=draw, new_tokens=new_tokens)  # type: ignore[arg-type]
        texts = [[t % VOCAB for t in row.canvas] for row in out]
        return [t[: t.index(EOS) + 1] if EOS in t else t for t in texts], out
