"""Several jobs at a time, each as soon as what it needs is done; one that fails leaves the others alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from unmask.errors import UnmaskError

PAUSE = 0.2
"""Seconds between two looks at the running jobs."""


@dataclass(frozen=True)
class Job:
    """A job.

    Args:
        name: unique.
        needs: jobs that have to be done before.
        minutes: it is thought to take.
        log: where its output goes.
        make: gives the mapping that `work.do` takes, once the job is begun, for a device.
    """

    name: str
    needs: tuple[str, ...]
    minutes: float
    log: Path
    make: Callable[[str], dict[str, Any]]


class Running(Protocol):
    """A job that was begun."""

    def poll(self) -> str | None:
        """None while it runs, "" when it is done, else why it failed."""
        ...

    def stop(self) -> None:
        """Ends it."""
        ...


Begin = Callable[[Job, str], Running]


@dataclass
class Pool:
    """Runs jobs.

    Args:
        devices: one entry for each job at a time.
        begin: starts a job on a device.
        within: minutes after which what runs is ended; no job begins that would take longer. None: no limit.
        say: told of each job what became of it.
        after: called with the name of each job that ended well.
    """

    devices: Sequence[str]
    begin: Begin
    within: float | None = None
    say: Callable[[str], None] = lambda text: None
    after: Callable[[str], None] = lambda name: None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    outcome: dict[str, str] = field(default_factory=dict)
    """Of each job that ended or cannot begin: "", or why there is nothing of it."""

    def run(self, jobs: Sequence[Job]) -> dict[str, str]:
        """All jobs; what became of each."""
        begun, waiting = self.clock(), list(jobs)
        running: dict[str, tuple[Running, str, float]] = {}
        free = list(self.devices)
        try:
            while waiting or running:
                self._collect(running, free)
                left = None if self.within is None else self.within - (self.clock() - begun) / 60
                if left is not None and left <= 0:
                    self._end(running, waiting)
                    break
                waiting = self._start(waiting, running, free, left)
                if any(job.poll() is None for job, _, _ in running.values()):
                    self.sleep(PAUSE)
        finally:
            for job, _, _ in running.values():
                job.stop()
        return self.outcome

    def _collect(self, running: dict[str, tuple[Running, str, float]], free: list[str]) -> None:
        for name, (job, device, since) in list(running.items()):
            result = job.poll()
            if result is None:
                continue
            del running[name]
            free.append(device)
            self.outcome[name] = result
            minutes = (self.clock() - since) / 60
            self.say(f"{name}: {'done' if not result else f'failed: {result}'} ({minutes:.1f} min)")
            if not result:
                self.after(name)

    def _start(
        self, waiting: list[Job], running: dict[str, tuple[Running, str, float]], free: list[str], left: float | None
    ) -> list[Job]:
        """Begins what can begin; the jobs that go on waiting."""
        still = []
        known = {job.name for job in waiting} | set(running) | {n for n, why in self.outcome.items() if not why}
        for job in waiting:
            lost = [need for need in job.needs if need not in known]
            if lost:
                self._leave(job, f"needs {lost[0]}, of which there is nothing")
                known.discard(job.name)
            elif left is not None and job.minutes > left:
                self._leave(job, f"takes {job.minutes:.1f} minutes, {left:.1f} are left")
                known.discard(job.name)
            elif free and all(self.outcome.get(need) == "" for need in job.needs):
                device = free.pop(0)
                self.say(f"{job.name}: begun")
                running[job.name] = (self.begin(job, device), device, self.clock())
            else:
                still.append(job)
        return still

    def _leave(self, job: Job, why: str) -> None:
        self.outcome[job.name] = why
        self.say(f"{job.name}: left out, {why}")

    def _end(self, running: dict[str, tuple[Running, str, float]], waiting: Sequence[Job]) -> None:
        for name, (job, _, _) in list(running.items()):
            job.stop()
            self.outcome[name] = "out of time"
            self.say(f"{name}: stopped, out of time")
        running.clear()
        for job in waiting:
            self._leave(job, "out of time")


@dataclass
class Inline:
    """A job done in this process, at once; for a CPU."""

    result: str

    @classmethod
    def begin(cls, job: Job, device: str) -> Inline:
        from unmask.bench.zoo.work import do

        job.log.parent.mkdir(parents=True, exist_ok=True)
        try:
            spec = job.make(device)
            with job.log.open("a") as log, redirect_stdout(log), redirect_stderr(log):
                do(spec)
        except UnmaskError as error:
            return cls(str(error))
        return cls("")

    def poll(self) -> str | None:
        return self.result

    def stop(self) -> None:
        return None


@dataclass
class Process:
    """A job in a process of its own."""

    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def begin(cls, job: Job, device: str, threads: int | None = None) -> Process | Inline:
        """Starts a job's process. `threads`: see `environment`."""
        try:
            spec = job.make("cuda" if device.startswith("cuda") else device)
        except UnmaskError as error:
            return Inline(str(error))
        job.log.parent.mkdir(parents=True, exist_ok=True)
        file = job.log.with_suffix(".json")
        file.write_text(json.dumps(spec, indent=1) + "\n")
        command = [sys.executable, "-m", "unmask.bench.zoo.work", str(file)]
        with job.log.open("ab") as log:
            made = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment(device, threads))
        return cls(made, job.log)

    def poll(self) -> str | None:
        code = self.process.poll()
        if code is None:
            return None
        return "" if code == 0 else f"{last_line(self.log)} (exit code {code}; see {self.log})"

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def environment(device: str, threads: int | None = None) -> Mapping[str, str]:
    """Of a process that is to see this device alone.

    Args:
        threads: that it may use on the CPU, unless OMP_NUM_THREADS says it already.
    """
    given = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    if device == "cpu":
        return {**given, **os.environ, "CUDA_VISIBLE_DEVICES": ""}
    kind, _, index = device.partition(":")
    if kind != "cuda" or not index:
        return {**given, **os.environ}
    seen = [i for i in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if i]
    return {**given, **os.environ, "CUDA_VISIBLE_DEVICES": seen[int(index)] if int(index) < len(seen) else index}


def last_line(log: Path) -> str:
    """The last line of a file that is not empty."""
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return lines[-1][:300] if lines else "no output"
