"""What a network is shown and answers while a request is really decoded; for `decoder_logits`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from unmask.decoding.forward import Forward, State
from unmask.decoding.loop import decode
from unmask.decoding.method import Method
from unmask.decoding.sampling import Draw
from unmask.lm import LM

Moment = tuple[State, Forward, Tensor]


def moments(lm: LM, method: Method[Any], prompts: list[list[int]], new_tokens: int) -> list[Moment]:
    """(state, forward, logits [B, R, V]) of every forward of a run through the eager loop, cache and all."""
    seen: list[Moment] = []

    @dataclass(frozen=True, kw_only=True)
    class Watched(type(method)):
        def adjust(self, state: Any, forward: Forward, logits: Tensor) -> tuple[Any, Tensor]:
            seen.append((state, forward, logits.clone()))
            return super().adjust(state, forward, logits)

    watched = Watched(**{f.name: getattr(method, f.name) for f in fields(method)})
    zero, one = torch.zeros(len(prompts)), torch.ones(len(prompts))
    draw = Draw(zero, one, zero.long(), zero.long())
    decode(lm.model, watched.bind(lm.family, new_tokens), prompts, facts=lm.facts, draw=draw, new_tokens=new_tokens)
    return seen
