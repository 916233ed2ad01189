"""Tiny models with random weights, for properties that must hold whatever the weights are."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from unmask.lm import LM
from unmask.models.checkpoint import Checkpoint
from unmask.models.config import ModelConfig
from unmask.models.families import TABLE, Family
from unmask.models.transformer import Transformer

VOCAB = 24
MASK, EOS = VOCAB - 1, VOCAB - 2


def random_lm(seed: int, family: str, *, layers: int = 2, block: int | None = None) -> LM:
    """A random model that behaves like `family`: vocabulary 24, mask 23, EOS 22, hidden size 16, two heads.

    The weights are large enough for attention to matter and for confidences to spread over (0, 1).
    """
    entry = TABLE[family]
    config = ModelConfig(family, VOCAB, 16, 32, layers, 2, 2, 8, 1e-6, 1e4, 256, qkv_bias=True)
    model = Transformer(config)
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(0.5, generator)
    mask = MASK if entry.attention != "causal" or family == "wedlm" else None
    facts = Family(
        family,
        entry.attention,
        entry.prompt,
        entry.shift,
        entry.next_token,
        VOCAB,
        mask,
        (EOS,),
        block or entry.block_size,
    )
    return LM(Checkpoint(model.eval(), config, facts, {}, None, Path("random")), None)


def random_prompts(seed: int, count: int, longest: int = 9) -> list[list[int]]:
    """Prompts of ordinary tokens, of different lengths."""
    rng = random.Random(seed)
    return [[rng.randrange(EOS) for _ in range(rng.randint(1, longest))] for _ in range(count)]
