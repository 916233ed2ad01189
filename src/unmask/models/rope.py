"""Rotary position embedding: frequencies by the config's scaling rule, angles from explicit positions.

Rules: plain, linear, llama3 (Llama 3.1), yarn (arXiv 2309.00071). "dynamic" and "longrope" are refused: their
frequencies change with the length of the text, so keys already cached would no longer fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig

Rule = Callable[[Tensor, ModelConfig, dict[str, Any]], tuple[Tensor, float]]


class Rope(nn.Module):
    """Cosine and sine of the rotation angles, float32 whatever the dtype of the model."""

    inv_freq: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._exact, self.attention_factor = frequencies(config)
        self.register_buffer("inv_freq", self._exact, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rope:
        # model.to(bfloat16) must not round them and to_empty must not lose them: only the device follows.
        super()._apply(fn, recurse)
        self.inv_freq = self._exact.to(self.inv_freq.device)
        return self

    def forward(self, positions_BW: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (int64 [B, W]) to cosines and signed sines, float32 [B, W, 1, rotated], for `rotate`."""
        angles = positions_BW[..., None, None].float() * self.inv_freq
        cos, sin = angles.cos(), angles.sin()
        if self.attention_factor != 1.0:
            cos, sin = cos * self.attention_factor, sin * self.attention_factor
        return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def rotate(x_BWHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates each pair (i, i + D/2); the minus of the half-split rotation sits in `sin`. Returns float32.

    Where the angles are of fewer dimensions, those behind stay as they are.
    """
    x, size = x_BWHD.float(), cos.shape[-1]
    if size < x.shape[-1]:
        return torch.cat([rotate(x[..., :size], cos, sin), x[..., size:]], -1)
    # Rounded as in the published code: a fused multiply-add moves float32 logits by 1e-4.
    return x * cos + x.roll(size // 2, -1) * sin


def frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """Inverse frequencies (float32 [rotated/2], CPU, radians per position) and the factor on cosine and sine.

    Raises:
        UnmaskError: a scaling rule that is not built, or one that lacks a number it needs.
    """
    # The device is named because models are built under torch.device("meta").
    exponents = torch.arange(0, config.rotated, 2, dtype=torch.int64, device="cpu").float() / config.rotated
    inv_freq = 1.0 / (config.rope_theta**exponents)
    if config.rope_scaling is None:
        return inv_freq, 1.0
    kind = config.rope_scaling["rope_type"]
    if kind not in RULES:
        raise UnmaskError(f"RoPE scaling {kind!r} is not supported (known: default, {', '.join(RULES)})")
    try:
        return RULES[kind](inv_freq, config, config.rope_scaling)
    except KeyError as missing:
        raise UnmaskError(f"config.json: RoPE scaling {kind!r} lacks {missing.args[0]!r}") from None


def _linear(inv_freq: Tensor, config: ModelConfig, scaling: dict[str, Any]) -> tuple[Tensor, float]:
    return inv_freq / scaling["factor"], 1.0


def _llama3(inv_freq: Tensor, config: ModelConfig, scaling: dict[str, Any]) -> tuple[Tensor, float]:
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * inv_freq / (2 * math.pi)
    # 0 for slow dimensions (interpolated), 1 for fast ones (kept), a ramp between.
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - keep) * inv_freq / scaling["factor"] + keep * inv_freq, 1.0


def _yarn(inv_freq: Tensor, config: ModelConfig, scaling: dict[str, Any]) -> tuple[Tensor, float]:
    original = scaling.get("original_max_position_embeddings") or config.max_positions
    factor = scaling.get("factor") or config.max_positions / original
    low = _yarn_dimension(config, original, scaling.get("beta_fast") or 32)
    high = _yarn_dimension(config, original, scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.rotated - 1)
    ramp = (torch.arange(len(inv_freq), dtype=torch.float32, device="cpu") - low) / max(high - low, 0.001)
    interpolate = ramp.clamp(0, 1)
    return inv_freq / factor * interpolate + inv_freq * (1 - interpolate), _yarn_attention(scaling, factor)


def _yarn_dimension(config: ModelConfig, original: int, turns: float) -> float:
    """The (fractional) dimension whose angle makes `turns` full turns over the original context."""
    return config.rotated * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))


def _yarn_attention(scaling: dict[str, Any], factor: float) -> float:
    given = scaling.get("attention_factor")
    if given is not None:
        return float(given)

    def magnitude(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    mscale, mscale_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return magnitude(mscale) / magnitude(mscale_all) if mscale and mscale_all else magnitude(1.0)


RULES: dict[str, Rule] = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}
