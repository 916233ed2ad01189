"""The form of each family that decides one token a forward: what the others are measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unmask.models.families import Family


def sequential(family: Family) -> tuple[str, dict[str, Any]]:
    """Method and options of the family's form that decides one token, the surest, a forward.

    Full attention: `masked` with a step for each token. Blocks: static `block_diffusion`, or with token shift
    `fast_dllm_v2` at threshold 1. Causal attention: autoregressive decoding itself.
    """
    if family.attention == "causal":
        return "autoregressive", {}
    if family.attention == "full":
        return "masked", {"schedule": "even"}
    return ("fast_dllm_v2", {"threshold": 1.0}) if family.shift else ("block_diffusion", {"strategy": "static"})
