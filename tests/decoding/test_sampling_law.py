"""Sampled text has the law it should have: the joint distribution of several tokens against exact enumeration.

The law is computed from the model's own logits, one plain forward for each possible beginning, without any part of
the decoding code.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from chi_square import surprise
from random_models import MASK, VOCAB, random_lm
from unmask.attention.dense import DenseAttention
from unmask.layout import Layout, block_causal, causal, full
from unmask.lm import LM

PROMPT = [3, 7, 1, 12]
ROWS = 4000
LIMIT = 3.3  # standard deviations; a false alarm once in about 2000 fixed seeds

# Method, family, layout, options: those in which positions are decided one after the other, from left to right.
LEFT_TO_RIGHT = {
    "autoregressive": ("qwen2", causal, {}),
    "block_diffusion": ("sdar", lambda n: block_causal(n, 2), {"strategy": "sequential", "block_size": 2}),
    "block_diffusion-unfused": (
        "sdar",
        lambda n: block_causal(n, 1),
        {"strategy": "sequential", "block_size": 1, "fused_commit": False},
    ),
    "fast_dllm_v2": (
        "fast-dllm-v2",
        lambda n: block_causal(n, 2),
        {"block_size": 2, "sub_block_size": 2, "select": "sequential", "greedy_bridge": False},
    ),
    "masked": ("llada", full, {"select": "sequential"}),
    "masked-shift": ("dream", full, {"select": "sequential", "schedule": "even"}),
}


def distribution(logits: Tensor, banned: int | None, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Temperature, then top-k, then top-p (the token that crosses stays), then the mask token is out."""
    z = logits.double() / temperature
    if top_k:
        z = z.masked_fill(z < z.topk(top_k).values[-1], -torch.inf)
    if top_p < 1:
        values, order = z.sort(descending=True)
        before = values.softmax(-1).cumsum(-1) - values.softmax(-1)
        z = z.index_fill(0, order[before > top_p], -torch.inf)
    if banned is not None:
        z[banned] = -torch.inf
    return z.softmax(-1)


def law(lm: LM, layout_of, block: int, **settings) -> dict[tuple[int, ...], float]:
    """The exact probability of each text of two tokens, decided from left to right in blocks of `block`."""
    found: dict[tuple[int, ...], float] = {(): 1.0}
    masked = lm.family.mask_id is not None
    shift = lm.family.shift if masked else 1
    for _ in range(2):
        grown: dict[tuple[int, ...], float] = {}
        for begin, probability in found.items():
            ids = PROMPT + list(begin) + ([MASK] * (block - len(begin) % block) if masked else [])
            layout: Layout = layout_of(len(ids))
            with torch.inference_mode():
                z = lm.model(torch.tensor([ids]), torch.arange(len(ids))[None], DenseAttention(layout))[0]
            p = distribution(z[len(PROMPT) + len(begin) - shift].clone(), lm.family.mask_id, **settings)
            for token in range(VOCAB):
                if p[token] > 0:
                    grown[(*begin, token)] = probability * float(p[token])
        found = grown
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0, "top_k": 0, "top_p": 1.0},
        {"temperature": 1.3, "top_k": 5, "top_p": 1.0},
        {"temperature": 0.8, "top_k": 0, "top_p": 0.7},
    ],
    ids=["plain", "top-k", "top-p"],
)
@pytest.mark.parametrize("name", LEFT_TO_RIGHT)
def test_the_joint_law_of_two_tokens_is_that_of_ancestral_sampling(name, settings):
    family, layout_of, options = LEFT_TO_RIGHT[name]
    lm = random_lm(2, family, layers=1)
    expected = law(lm, layout_of, options.get("block_size", 2), **settings)
    rows = lm.generate(
        [PROMPT] * ROWS,
        method=name.split("-")[0],
        max_new_tokens=2,
        seed=list(range(ROWS)),
        early_exit=False,
        **settings,
        **options,
    )
    assert surprise([pair(lm, r) for r in rows], joined(lm, expected)) < LIMIT


def joined(lm: LM, expected: dict[tuple[int, ...], float]) -> dict[tuple[int, ...], float]:
    """Texts that the library cuts at their first end token are one outcome."""
    out: dict[tuple[int, ...], float] = {}
    for text, p in expected.items():
        key = cut(lm, text)
        out[key] = out.get(key, 0.0) + p
    return out


def cut(lm: LM, text: tuple[int, ...]) -> tuple[int, ...]:
    stop = next((i for i, t in enumerate(text) if t in lm.family.eos_ids), len(text) - 1)
    return text[: stop + 1]


def pair(lm: LM, row) -> tuple[int, ...]:
    return cut(lm, tuple(row.ids))


def test_the_statistic_tells_a_wrong_law_from_a_right_one():
    expected = dict.fromkeys(product(range(4), range(4)), 1 / 16)
    generator = torch.Generator().manual_seed(0)
    fair = torch.randint(16, (ROWS,), generator=generator)
    assert surprise([divmod(int(i), 4) for i in fair], expected) < LIMIT
    # Both tokens by themselves are uniform; only their joint distribution is wrong.
    tied = [(i, i if j == 0 else (i + j) % 4) for i, j in (divmod(int(k), 4) for k in fair)]
    tied[: ROWS // 8] = [(i, i) for i, _ in tied[: ROWS // 8]]
    assert surprise(tied, expected) > 2 * LIMIT
    assert surprise([(0, 9)], expected) == float("inf")
