"""unmask: fast decoding and training of diffusion language models.

import unmask
lm = unmask.load("nano")
print(lm.generate("Tom has 3 boxes of 12 pens. How many pens does he have?").text)
"""

from unmask.errors import UnmaskError
from unmask.lm import LM, Generation, load

__version__ = "0.1.0"
__all__ = ["LM", "Generation", "UnmaskError", "load"]
