"""What an engine is made of on the device at hand, and whether it runs there at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from unmask.cache.paged import PagedCache
from unmask.engine.fused import fuse
from unmask.engine.step import Parts
from unmask.kernels import runs_kernels

if TYPE_CHECKING:
    from unmask.decoding import Method
    from unmask.lm import LM


def missing(device: torch.device) -> str:
    """What the engine lacks to run models on this device, "" for nothing."""
    if device.type != "cuda":
        return f"it needs a CUDA device, the model is on {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs a GPU of compute capability 8.0 or higher"
    return "" if runs_kernels(True) else "it needs Triton 3.4 or newer, which is not installed"


def parts_for(lm: LM, method: Method[Any], pages: int, page_size: int, quantise: str | None) -> Parts:
    """The parts of a step: on a GPU the fused network and its kernels, elsewhere the model as it is.

    Args:
        method: bound.
        pages: of the cache, `page_size` slots each.
        quantise: "fp8", or None.
    """
    config = lm.model.config
    cache = PagedCache(
        config.num_layers,
        pages,
        page_size,
        config.num_kv_heads,
        config.head_dim,
        device=lm.model.device,
        dtype=lm.model.dtype,
    )
    if lm.model.device.type != "cuda":
        return Parts(fuse(lm.model, quantise) if quantise else lm.model, method, cache)
    from unmask.engine.scoring import score, with_carry

    return Parts(fuse(lm.model, quantise), method, cache, score, lambda logits, f: with_carry(logits, f.rows, f.carry))
