"""A training run of any recipe: one core, one GPU, or several processes on one machine or more.

    python -m unmask.training configs/nano/ar.yaml --set output=runs/nano-ar
    torchrun --nproc-per-node 8 -m unmask.training CONFIG.yaml           # or: accelerate launch -m unmask.training

Rows and noise depend on (seed, epoch, sample) alone and dropout on the number of the forward, so a run that was
stopped, or killed, goes on from its last saved state (`resume`) as if nothing had happened.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from unmask.errors import UnmaskError
from unmask.training.build import begin, make_objective
from unmask.training.config import TrainConfig
from unmask.training.data import Packed, load_data, make_format
from unmask.training.export import form_of, whole_weights, write_checkpoint
from unmask.training.guard import NotFiniteError, blame
from unmask.training.log import LOG, Log
from unmask.training.optimizer import rate
from unmask.training.ranks import Ranks
from unmask.training.resume import (
    Saved,
    best_figures,
    clear,
    load_state,
    load_weights,
    newest,
    save_best,
    save_state,
)
from unmask.training.setup import Start
from unmask.training.step import Share, Source, prefetch
from unmask.training.trainer import Trainer
from unmask.training.watch import Exam, better, measuring, serving, validate

PLOT = "curves.png"
SHOWN = 20
"""Samples that are listed when a run has to stop; the log has all."""


@dataclass
class Run:
    """A run that is under way. best: the figures of the best checkpoint so far; measured: the newest figures."""

    config: TrainConfig
    start: Start
    trainer: Trainer
    source: Source
    log: Log
    exam: Exam | None
    best: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        return Path(self.config.output)

    def train(self) -> None:
        """All updates from where the trainer stands."""
        trainer, config = self.trainer, self.config
        speed = Speed()
        for step in prefetch(self.source.steps(trainer.done), depth=4):
            progress = trainer.progress(step.number)
            if progress >= 1:
                break
            learning_rate = rate(config, step.number, progress)
            trainer.update(step, learning_rate)
            if trainer.clock is None:
                # The first update compiles, which a schedule of minutes must not pay for.
                trainer.guard.settle()
                trainer.go_on()
            speed.add(step.tokens * trainer.ranks.count)
            if trainer.done % config.log_every == 0 or trainer.done == 1:
                self._log(learning_rate, speed)
            if trainer.done % config.eval_every == 0:
                self.measure()
                speed.restart()
            if config.save_every and trainer.done % config.save_every == 0:
                self.save()
                speed.restart()
        trainer.pause()

    def _log(self, learning_rate: float, speed: Speed) -> None:
        numbers = self.trainer.guard.settle()
        entry: dict[str, Any] = {"loss": sum(numbers.terms)}
        if len(numbers.terms) > 1:
            entry["terms"] = dict(zip(self.trainer.term_names, numbers.terms))
        groups = self.trainer.optimizer.groups
        norms = {"gradient" if n == "network" else f"gradient_{n}": v for n, v in zip(groups, numbers.norms)}
        self.log.write(
            step=self.trainer.done, **entry, **norms, learning_rate=learning_rate, tokens_per_second=speed.rate()
        )

    def measure(self) -> None:
        """Loss on held-out rows and answers to held-out problems; the weights are kept if they are the best so far."""
        trainer = self.trainer
        if trainer.guard.waiting:
            trainer.guard.settle()
        with measuring(trainer):
            figures: dict[str, Any] = {"step": trainer.done, **validate(trainer, self.source.validation())}
            if self.exam is not None:
                figures |= self.exam.take(serving(self.start, trainer.raw.network), trainer)
            if self.config.keep == "best" and better(figures, self.best):
                self._attempt(lambda: save_best(trainer, self.output, asdict(self.config), figures))
                self.best = best_figures(self.output)
        self.measured = figures
        self.log.write(**figures, minutes=trainer.minutes)

    def save(self) -> None:
        """Writes the state."""
        self.trainer.guard.settle()
        self.trainer.pause()
        self._attempt(lambda: save_state(self.trainer, self.output, asdict(self.config)))
        self.trainer.go_on()

    def _attempt(self, write: Callable[[], object]) -> None:
        """A disk that is full for an hour must not end a run of days."""
        try:
            write()
        except UnmaskError as error:
            self.log.say(str(error))

    def finish(self) -> None:
        """Figures, state, checkpoint and curves of the end."""
        trainer, config = self.trainer, self.config
        if self.measured.get("step") != trainer.done:
            self.measure()
        if config.save_every and trainer.done % config.save_every:
            self.save()
        best = newest(self.output, "best") if config.keep == "best" else None
        if best is not None and self.best.get("step") != trainer.done:
            load_weights(trainer, Saved.open(best), "weight")
            self._write()
            self.log.say(f"the checkpoint is that of step {self.best['step']}, the best one")
        else:
            with measuring(trainer):
                self._write()
        if trainer.ranks.main and config.plot:
            self._draw()

    def _write(self) -> None:
        objective, main = self.trainer.raw, self.trainer.ranks.main
        weights = whole_weights(objective, keep=main)
        if main:
            write_checkpoint(self.start, objective, weights, self.output, form_of(self.start, objective))

    def _draw(self) -> None:
        try:
            from unmask.training.plot import draw

            draw([self.output / LOG], self.output / PLOT)
        except ModuleNotFoundError as error:
            self.log.say(f"no curves were drawn: {error.name} is not installed")

    def not_finite(self, error: NotFiniteError) -> UnmaskError:
        """What to tell of a step with numbers that are not finite."""
        numbers, ranks = error.numbers, self.trainer.ranks
        own = blame(self.source.samples(numbers.step), numbers.forwards, ranks)
        ids = sorted({n for found in ranks.gather(own) for n in found})
        entry = {"terms": dict(zip(self.trainer.term_names, numbers.terms)), "gradients": numbers.norms, "samples": ids}
        self.log.write(not_finite={"step": numbers.step + 1, **entry})
        listed = ", ".join(map(str, ids[:SHOWN])) + (f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")
        what = f"loss {sum(numbers.terms):g}, gradient {max(numbers.norms):g}"
        kept = newest(self.output)
        state = "no state was saved (save_every)" if kept is None else f"{kept} is kept"
        return UnmaskError(f"stopped at step {numbers.step + 1}: {what}; samples of its rows: {listed}; {state}")


@dataclass
class Speed:
    """Tokens per second since the last look."""

    tokens: int = 0
    clock: float = field(default_factory=time.monotonic)

    def add(self, tokens: int) -> None:
        self.tokens += tokens

    def restart(self) -> None:
        self.tokens, self.clock = 0, time.monotonic()

    def rate(self) -> float:
        """The rate; the count begins anew."""
        found = self.tokens / max(time.monotonic() - self.clock, 1e-9)
        self.restart()
        return found


def run(config: TrainConfig) -> dict[str, Any]:
    """Trains as the config says; writes checkpoint, log, states and curves to `config.output`.

    Returns:
        The last figures.

    Raises:
        UnmaskError: a mistake in the config or the data; a loss or gradient that is not finite; a checkpoint that
            cannot be written; not enough memory.
    """
    log = None
    try:
        run = prepare(config)
        log = run.log
        try:
            run.train()
            run.finish()
        except NotFiniteError as error:
            raise run.not_finite(error) from None
        return run.measured
    except torch.OutOfMemoryError as error:
        short = str(error).splitlines()[0]
        raise UnmaskError(f"{short} Lower rows_per_forward, or set recompute: true or shard: true") from None
    finally:
        if log is not None:
            log.close()


def prepare(config: TrainConfig) -> Run:
    """Everything that comes before the first update; a stopped run is put back to where it was."""
    began = time.monotonic()
    output = Path(config.output)
    state = newest(output)
    earlier = state or newest(output, "best")
    if earlier is not None and not config.resume:
        raise UnmaskError(
            f"{earlier} is of an earlier run: set resume: true to go on from it, or choose another output"
        )
    start, recipe, marks = begin(config)
    form = make_format(start.config, recipe, marks)
    # Data first: its worker processes are forked, which must not happen once a GPU is in use.
    train, held = load_data(start.config, recipe, form)
    ranks = Ranks.start()
    if ranks.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    share = Share.of(config.rows_per_step, config.rows_per_forward, ranks.index, ranks.count)
    packed = (Packed(train, form, config.rows_per_step, config.seed), Packed(held, form, 1, config.seed))
    source = Source(config.seed, recipe, *packed, share, pinned=ranks.device.type == "cuda")
    trainer = Trainer(config, ranks, make_objective(start, recipe))
    if ranks.main:
        clear(output)
    if state is not None:
        load_state(trainer, state, asdict(config))
    keep = None if state is None else trainer.done
    log = Log(output / LOG, ranks.main, keep, config.steps)
    log.write(config=asdict(config), **_facts(trainer))
    size = {"samples": len(train), "tokens": int(train.starts[-1]), "dropped": train.dropped, "cut": train.cut}
    log.write(data_seconds=time.monotonic() - began, **size)
    for said in (start.mask.said, "" if state is None else f"going on from {state}"):
        if said:
            log.say(said)
    exam = None
    try:
        exam = Exam.of(start, recipe, ranks.index, ranks.count)
    except UnmaskError as error:
        log.say(f"no answers are decoded while training: {error}")
    return Run(config, start, trainer, source, log, exam, {} if state is None else best_figures(output))


def _facts(trainer: Trainer) -> dict[str, Any]:
    device = trainer.ranks.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    count = sum(w.parameter.numel() for w in trainer.weights)
    whole = trainer.raw.network.count_parameters()
    return {"parameters": whole, "trained": count, "device": name, "processes": trainer.ranks.count}
