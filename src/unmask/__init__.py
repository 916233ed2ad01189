"""unmask: fast decoding and training of diffusion language models.

import unmask
lm = unmask.load("nano")
print(lm.generate("Tom has 3 boxes of 12 pens. How many pens does he have?").text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.lm import LM, Generation, load

__version__ = "0.1.0"
__all__ = ["LM", "Generation", "UnmaskError", "load"]


def __getattr__(name: str) -> Any:
    """Imports torch only when something that needs it is asked for, so that `unmask --help` is quick."""
    if name in ("LM", "Generation", "load"):
        from unmask import lm

        return getattr(lm, name)
    raise AttributeError(f"module 'unmask' has no attribute {name!r}")
