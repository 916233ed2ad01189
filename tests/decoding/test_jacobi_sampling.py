"""Sampled text of Jacobi decoding has exactly the law of ancestral sampling."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from chi_square import surprise
from random_models import VOCAB, random_lm
from unmask.attention.dense import DenseAttention
from unmask.decoding.jacobi import Jacobi
from unmask.decoding.loop import decode
from unmask.decoding.method import build
from unmask.decoding.sampling import Draw
from unmask.layout import causal
from unmask.lm import LM

PROMPT = [3, 7, 1, 12]
ROWS, TOKENS = 3000, 3
LIMIT = 3.3  # standard deviations
SETTINGS = {
    "plain": {"temperature": 1.0, "top_k": 0, "top_p": 1.0},
    "hot": {"temperature": 1.5, "top_k": 6, "top_p": 1.0},
    "cut": {"temperature": 0.9, "top_k": 5, "top_p": 0.8},
}


def no_eos(seed: int) -> LM:
    lm = random_lm(seed, "qwen2")
    return LM(replace(lm.checkpoint, family=replace(lm.family, eos_ids=())), None)


def distribution(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """[N, V]: temperature, then top-p (the token that crosses stays), then top-k."""
    z = logits.double() / temperature
    kept = torch.ones_like(z, dtype=torch.bool)
    values, order = z.sort(-1, descending=True)
    mass = values.softmax(-1)
    if top_p < 1:
        kept.scatter_(1, order, mass.cumsum(-1) - mass <= top_p)
    if top_k:
        kept &= torch.zeros_like(kept).scatter_(1, order[:, :top_k], True)
    return z.masked_fill(~kept, -torch.inf).softmax(-1)


def law(lm: LM, **settings: Any) -> dict[Hashable, float]:
    """The exact probability of each text of three tokens, from one forward a length over all texts of that length."""
    texts = torch.tensor([PROMPT])
    total = torch.ones(1, dtype=torch.float64)
    for _ in range(TOKENS):
        layout = causal(texts.shape[1])
        with torch.inference_mode():
            z = lm.model(texts, layout.positions.expand_as(texts), DenseAttention(layout))[:, -1]
        p = total[:, None] * distribution(z, **settings)
        texts = torch.cat([texts.repeat_interleave(VOCAB, 0), torch.arange(VOCAB).repeat(len(texts))[:, None]], 1)
        texts, total = texts[p.flatten() > 0], p.flatten()[p.flatten() > 0]
    return dict(zip(map(tuple, texts[:, len(PROMPT) :].tolist()), total.tolist()))


def drawn(lm: LM, method: Any, temperature: float, top_k: int, top_p: float) -> list[tuple[int, ...]]:
    full = (torch.full((ROWS,), temperature), torch.full((ROWS,), top_p), torch.full((ROWS,), top_k))
    rows = decode(
        lm.model,
        method.bind(lm.family, TOKENS),
        [PROMPT] * ROWS,
        facts=lm.facts,
        draw=Draw(*full, torch.arange(ROWS)),
        new_tokens=TOKENS,
    )
    return [tuple(row.canvas) for row in rows]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["window", "blocks"])
def test_the_joint_law_of_three_tokens_is_that_of_ancestral_sampling(name, setting):
    lm = no_eos(21)
    options = {"window": {"block_size": 3}, "blocks": {"block_size": 2, "spawn_ratio": 0.0, "pool_size": 3}}[name]
    method = build("jacobi" if name == "window" else "jacobi_blocks", options)
    assert surprise(drawn(lm, method, **SETTINGS[setting]), law(lm, **SETTINGS[setting])) < LIMIT


@dataclass(frozen=True, kw_only=True)
class Lenient(Jacobi):
    """Keeps a draft that is likely, whatever was drawn: not what sampling would have given."""

    def commit(self, state, forward, scores):
        p = scores.logits.softmax(-1)
        guesses = state.line[:, 1 : scores.token.shape[1]]
        likely = p[:, :-1].gather(2, guesses[..., None])[..., 0] > 0.1
        token = scores.token.clone()
        token[:, :-1] = torch.where(likely, guesses, token[:, :-1])
        return super().commit(state, forward, replace(scores, token=token))


@dataclass(frozen=True, kw_only=True)
class Twice(Jacobi):
    """Draws what replaces a rejected draft without taking the draft out: it gets two chances."""

    def commit(self, state, forward, scores):
        again = scores.logits.softmax(-1).flatten(0, 1)
        generator = torch.Generator().manual_seed(int(state.step[0]))
        other = again.multinomial(1, generator=generator).view_as(scores.token)
        token = torch.where(scores.token == scores.greedy, scores.token, other)
        return super().commit(state, forward, replace(scores, token=token))


@pytest.mark.parametrize("wrong", [Lenient, Twice])
def test_a_wrong_rule_is_caught_by_the_same_statistic(wrong):
    lm = no_eos(21)
    assert surprise(drawn(lm, wrong(block_size=3), **SETTINGS["plain"]), law(lm, **SETTINGS["plain"])) > 3 * LIMIT


@pytest.mark.parametrize("method", ["jacobi", "jacobi_blocks"])
def test_at_a_vanishing_temperature_the_text_is_greedy(method):
    lm = no_eos(22)
    greedy = lm.generate(PROMPT, method="autoregressive", max_new_tokens=16)
    cold = lm.generate([PROMPT] * 4, method=method, max_new_tokens=16, temperature=1e-4, seed=[1, 2, 3, 4])
    assert all(row.ids == greedy.ids for row in cold)
