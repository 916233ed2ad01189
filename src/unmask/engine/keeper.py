"""The engine behind `LM.generate`: made at the first call that wants one, kept for later calls of the same kind."""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any

from unmask.decoding.counters import Counters
from unmask.decoding.loop import Row
from unmask.errors import UnmaskError, UnmaskWarning

if TYPE_CHECKING:
    from unmask.decoding import Method
    from unmask.engine.engine import Engine
    from unmask.lm import LM
    from unmask.streaming import Streamer


class Keeper:
    """One engine at most, and what has been said of why there is none."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self._made: dict[str, Any] = {}
        self.told: set[str] = set()

    def can(self, lm: LM, trace: bool) -> bool:
        """Whether the engine can decode this; if not, says why, once."""
        from unmask.engine.parts import missing

        why = "traces are made by the eager loop alone" if trace else missing(lm.model.device)
        if why and why not in self.told:
            self.told.add(why)
            warnings.warn(f"no engine: {why}; the eager loop decodes instead", UnmaskWarning, stacklevel=3)
        return not why

    def decode(
        self,
        lm: LM,
        method: Method[Any],
        prompts: list[list[int]],
        new_tokens: int,
        settings: dict[str, list[Any]],
        streamers: list[Streamer] | None,
        made: dict[str, Any],
    ) -> tuple[list[Row], float]:
        """What `decoding.loop.decode` gives, and the seconds it took.

        Args:
            method: bound to the checkpoint.
            settings: of sampling, a value for each prompt.
            made: arguments of `Engine`.

        Raises:
            UnmaskError: a request failed.
        """
        engine = self._suiting(lm, method, max(map(len, prompts)), new_tokens, made)
        begun = time.perf_counter()
        requests = []
        for i, prompt in enumerate(prompts):
            own = {name: values[i] for name, values in settings.items()}
            requests.append(engine.add(prompt, id=str(i), streamer=streamers[i] if streamers else None, **own))
        engine.run()
        seconds = time.perf_counter() - begun
        for request in requests:
            if request.error is not None:
                raise UnmaskError(request.error)
        return [Row(r.canvas, r.open, r.counters or Counters()) for r in requests], seconds

    def _suiting(self, lm: LM, method: Method[Any], longest: int, new_tokens: int, made: dict[str, Any]) -> Engine:
        from unmask.engine.engine import Engine

        if self.engine is not None and made == self._made and self.engine.suits(method, longest, new_tokens):
            return self.engine
        # A power of two, so that the next call of a little longer prompts finds it large enough.
        room = 1 << max(6, (longest - 1).bit_length())
        while room > longest and method.limit(room, new_tokens) > lm.model.config.max_positions:
            room -= 1
        self.engine = None  # its memory is free before the next one is made
        sizes: dict[str, Any] = {"max_prompt": room, "max_new_tokens": new_tokens}
        self.engine, self._made = Engine(lm, method, **(sizes | made)), made
        return self.engine
