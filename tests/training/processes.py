"""Several processes of one run, forked from the test: nothing is imported again, so they start at once."""

from __future__ import annotations

import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState

from unmask.training.log import read_log
from unmask.training.ranks import Ranks


def together(count: int, work: Callable[[], object], seconds: float = 60.0) -> None:
    """Does `work` in `count` processes that find each other as `torchrun` would let them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [_fork(work, rank, count, port) for rank in range(count)]
    end = time.monotonic() + seconds
    codes: dict[int, int] = {}
    while len(codes) < count and time.monotonic() < end:
        for child in children:
            if child not in codes:
                found, status = os.waitpid(child, os.WNOHANG)
                if found:
                    codes[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    for child in set(children) - set(codes):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert list(codes.values()) == [0] * count, f"exit codes {codes}"


def killed(work: Callable[[], object], log: Path, steps: int, count: int = 1) -> None:
    """Does `work` in `count` processes and kills them (SIGKILL) once the log has reached a step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [_fork(work, rank, count, port) for rank in range(count)]
    end = time.monotonic() + 60
    while time.monotonic() < end and not any(e.get("step", 0) >= steps for e in read_log(log)):
        time.sleep(0.005)
    for child in children:
        os.kill(child, signal.SIGKILL)
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def _fork(work: Callable[[], object], rank: int, count: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        PartialState._reset_state()
        if count > 1:
            os.environ.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(count),
                LOCAL_WORLD_SIZE=str(count),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
                OMP_NUM_THREADS="1",
            )
        work()
        Ranks.close()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
