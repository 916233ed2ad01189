"""A model without weights: what it says of a position is a table. Catches every off-by-one in windows, shifts and
caches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unmask.decoding import build
from unmask.decoding.forward import Facts
from unmask.decoding.loop import Row, decode
from unmask.decoding.sampling import Draw
from unmask.models.config import ModelConfig
from unmask.models.families import Family

VOCAB, MASK, EOS = 64, 63, 62


class Oracle:
    """Says token `text[p]` of position p with confidence `sure[p]`, from the row at p - shift."""

    def __init__(self, text: list[int], shift: int, sure: list[float] | None = None) -> None:
        self.text = torch.tensor(text)
        self.sure = torch.tensor(sure or [0.99] * len(text))
        self.shift = shift
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.config = ModelConfig("qwen2", VOCAB, 8, 8, 1, 1, 1, 4, 1e-6, 1e4, 4096)
        self.seen: list[Tensor] = []

    def __call__(self, tokens: Tensor, positions: Tensor, attend: Any, rows: Tensor) -> Tensor:
        self.seen.append(tokens.clone())
        at = positions.gather(1, rows) + self.shift
        at = at.clamp(max=len(self.text) - 1)
        p = self.sure[at]
        rest = torch.log((1 - p) / (VOCAB - 1))
        logits = rest[..., None].expand(*at.shape, VOCAB).clone()
        return logits.scatter_(-1, self.text[at][..., None], torch.log(p)[..., None])


def family(shift: int, attention: Any = "block", block: int | None = None) -> Family:
    return Family("qwen2", attention, attention, shift, True, VOCAB, MASK, (EOS,), block)


def run(
    oracle: Oracle,
    method: str,
    options: dict[str, Any],
    lengths: list[int],
    new_tokens: int,
    attention: Any = "block",
) -> list[Row]:
    """Decodes prompts that are the first tokens of the oracle's text."""
    n = len(lengths)
    draw = Draw(torch.zeros(n), torch.ones(n), torch.zeros(n).long(), torch.zeros(n).long())
    bound = build(method, options).bind(family(oracle.shift, attention), new_tokens)
    prompts = [oracle.text[:k].tolist() for k in lengths]
    facts = Facts(MASK, (EOS,), oracle.shift)
    return decode(oracle, bound, prompts, facts=facts, draw=draw, new_tokens=new_tokens, trace=True)  # type: ignore[arg-type]
