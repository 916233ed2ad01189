"""The many small tensor operations of a step, joined into few kernels by torch.compile.

The functions stay the ones the eager loop runs; only their kernels change. What they compute are whole numbers and
comparisons, so that nothing is rounded otherwise.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch._dynamo import config

from unmask.engine.fused import FusedTransformer
from unmask.engine.step import Parts, begin, finish_in_place, pack

KINDS_OF_STEPS = 1024
"""Kinds of steps (methods, rows, widths) that may be compiled in one process; then torch.compile would give up."""


def compiled(parts: Parts) -> Parts:
    """The same parts with plan and commit, packing, the cache's view, the angles and the choice of rows compiled."""
    config.recompile_limit = max(config.recompile_limit, KINDS_OF_STEPS)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 4 * KINDS_OF_STEPS)
    # Prefills run these three as well, of as many lengths as there are prompts: any length by one compilation.
    parts.cache.view = torch.compile(parts.cache.view, fullgraph=True)
    if isinstance(parts.model, FusedTransformer):
        parts.model.angles = torch.compile(parts.model.angles, fullgraph=True)
        parts.model.asked = torch.compile(parts.model.asked, fullgraph=True)
    return replace(
        parts,
        begin=torch.compile(begin, fullgraph=True, dynamic=False),
        pack=torch.compile(pack, fullgraph=True, dynamic=False),
        finish=torch.compile(finish_in_place, fullgraph=True, dynamic=False),
    )
