"""Text from token ids that arrive bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unmask.lm import LM

Decode = Callable[[list[int]], str]
BROKEN = "\ufffd"  # what decoders put for an incomplete character


def decoder(lm: LM) -> Decode:
    """Ids to text; without a tokenizer the ids themselves."""
    tokenizer = lm.tokenizer
    if tokenizer is None:
        return lambda ids: " ".join(map(str, ids))
    return tokenizer.decode


class Detokenizer:
    """Decodes a growing sequence: each id is decoded a few times, whatever the length.

    A new piece is decoded behind the piece before it, as spaces and characters of several tokens depend on
    what stands before.
    """

    def __init__(self, decode: Decode) -> None:
        self.decode = decode
        self.ids: list[int] = []
        self._context = 0
        self._read = 0

    def push(self, ids: list[int]) -> str:
        """The text that these ids complete; an unfinished character waits for the next ids."""
        self.ids += ids
        text = self._rest()
        if not text or text.endswith(BROKEN):
            return ""
        self._context, self._read = self._read, len(self.ids)
        return text

    def flush(self) -> str:
        """What was held back."""
        text = self._rest()
        self._context, self._read = self._read, len(self.ids)
        return text

    def follow(self, ids: list[int]) -> str:
        """The text of ids that would come somewhere behind, not kept."""
        before = self.ids[-1:]
        return self.decode([*before, *ids])[len(self.decode(before)) :] if before else self.decode(ids)

    def _rest(self) -> str:
        known = self.decode(self.ids[self._context : self._read])
        return self.decode(self.ids[self._context :])[len(known) :]
