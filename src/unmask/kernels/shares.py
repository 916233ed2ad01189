"""How `even` shares out the outputs of a product."""

from __future__ import annotations

STEP = 64
"""Inputs of a step where weights have 16 bits."""
GROUP = 128
"""The same, and inputs with one scale, where they are float8."""


def tile_tokens(tokens: int) -> int:
    """Tokens of a program: 64, the fewest that Hopper's matrix units take, or 128."""
    return 64 if tokens <= 64 else 128


def shares(outputs: int, programs: int) -> tuple[int, int] | None:
    """`block_n` and `rest` of the smallest tile with which so many programs have all outputs; None if none is as
    large."""
    least = -(-outputs // programs)
    fit = [(n, rest) for n in (64, 128, 256) for rest in (0, 16, 32, 64, 128) if rest < n and n + rest >= least]
    return min(fit, key=sum, default=None)
