"""Steps as captured CUDA graphs, one for each number of rows, width, tokens and way of sampling; plain calls
elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch

from unmask.engine.batch import Batch, Used
from unmask.engine.step import Parts, step
from unmask.engine.tuning import AWAKE, milliseconds

Key = tuple[int, int, int | None, Used]


class Runner:
    """Runs steps of the leading rows of a batch in place.

    Args:
        graphs: capture each kind of step at its first use and replay it; False calls it every time.
        prepare: called with rows, width and tokens before a kind of step is captured.
    """

    def __init__(
        self, parts: Parts, batch: Batch, *, graphs: bool, prepare: Callable[[int, int, int], object] | None = None
    ) -> None:
        self.parts, self.batch, self.graphs, self.prepare = parts, batch, graphs, prepare
        self.captured: dict[Key, torch.cuda.CUDAGraph] = {}
        self.costs: dict[tuple[int, int], float] = {}
        self.pool = torch.cuda.graph_pool_handle() if graphs else None

    def __call__(self, rows: int, width: int, used: Used, tokens: int | None = None) -> None:
        """One step of the rows [0, rows), of at most `width` columns and `tokens` in all (see `step`)."""
        key = (rows, width, tokens, used)
        if not self.graphs:
            self._once(*key)
            return
        if key not in self.captured:
            self.captured[key] = self._capture(key)
        self.captured[key].replay()

    @torch.inference_mode()
    def _once(self, rows: int, width: int, tokens: int | None, used: Used) -> None:
        state = self.batch.view(rows, used)
        step(self.parts, state, self.batch.status[:rows], self.batch.table[:rows], width, tokens)

    @torch.inference_mode()
    def _capture(self, key: Key) -> torch.cuda.CUDAGraph:
        rows, width, tokens, _ = key
        tokens = rows * width if tokens is None else tokens
        if self.prepare is not None:
            self.prepare(rows, width, tokens)
        # Kernels are compiled and libraries set up by a step in which nobody is in work, so that it changes nothing.
        done, status = self.batch.named["done"].clone(), self.batch.status.clone()
        self.batch.named["done"].fill_(True)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._once(*key)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            self._once(*key)
        self.costs[rows, tokens] = _cost(graph)
        self.batch.named["done"].copy_(done)
        self.batch.status.copy_(status)
        return graph

    def measured(self, rows: int, width: int, tokens: int) -> float:
        """Milliseconds of such a step in which nobody is in work, which is done for this; of greedy decoding."""
        used: Used = (False, frozenset())
        if self.graphs:
            self(rows, width, used, tokens)
            return self.costs[rows, tokens]
        self._once(rows, width, tokens, used)
        begun = perf_counter()
        self._once(rows, width, tokens, used)
        return 1000 * (perf_counter() - begun)

    def cost(self, rows: int, tokens: int) -> float:
        """Milliseconds of such a step as measured when it was captured; before that, and without graphs, a guess by the
        nearest number of tokens that was."""
        if (rows, tokens) in self.costs:
            return self.costs[rows, tokens]
        known = {t: c for (r, t), c in self.costs.items() if r == rows}
        near = min(known, key=lambda t: abs(t - tokens), default=tokens)
        # Up to some 256 tokens reading the weights is what a step costs.
        return known.get(near, 1.0) * max(tokens, 256) / max(near, 256)


def _cost(graph: torch.cuda.CUDAGraph) -> float:
    """Milliseconds of a replay in which nobody is in work: all products are done, little attention. The least of many,
    since the card, idle while kernels were compiled, comes to its clock only now."""
    begun, times = perf_counter(), []
    while len(times) < 3 or perf_counter() - begun < AWAKE:
        times.append(milliseconds(graph))
    return min(times)
