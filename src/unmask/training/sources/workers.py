"""Work spread over processes, its results in order whatever their number."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def spread(work: Callable[[T], R], items: Sequence[T], workers: int = 0) -> list[R]:
    """`work` of each item in several processes (0: one for each core, at most 16).

    Call it before anything touches a GPU: the processes are forked.
    """
    workers = workers or min(os.cpu_count() or 1, 16)
    if workers == 1 or len(items) <= 1:
        return [work(item) for item in items]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        return list(pool.map(work, items))
