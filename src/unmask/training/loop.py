"""The training loop of all recipes, on accelerate: one core, one GPU or several processes.

    python -m unmask.training configs/nano/ar.yaml --set output=runs/nano-ar
    accelerate launch -m unmask.training CONFIG.yaml           # several GPUs

Every step divides its summed loss by the number of supervised tokens of the whole step, over all forwards and
processes, so 1 x 8, 2 x 4 and 8 x 1 rows give the same update. Rows and noise depend on (seed, epoch, sample)
alone, so a resumed run continues as if it had not stopped.
"""

from __future__ import annotations

import json
import math
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from unmask.training.config import TrainConfig
from unmask.training.data import Format, Packed, Samples, load_samples, pack
from unmask.training.noise import Noise
from unmask.training.objective import Objective
from unmask.training.recipes import make_recipe
from unmask.training.recipes.base import Recipe, Supervised, Terms
from unmask.training.setup import build_network, load_tokenizer, save_checkpoint

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
STATE = "state.pt"
LOG = "log.jsonl"


@dataclass(frozen=True, slots=True)
class Step:
    """The rows of one update that fall to this process: one `Supervised` a forward, and their summed normalisers."""

    number: int
    forwards: list[Supervised]
    normalisers: dict[str, float]
    tokens: int


class Source:
    """Makes the steps of this process, and the batches of the validation set."""

    def __init__(self, config: TrainConfig, recipe: Recipe, data: Packed, held: Packed) -> None:
        self.config, self.recipe, self.data, self.held = config, recipe, data, held

    def steps(self, first: int, rank: int, ranks: int) -> Iterator[Step]:
        """Steps `first` and on. Each process takes a run of neighbouring rows."""
        share = self.config.rows_per_step // ranks
        for number, (epoch, rows) in enumerate(self.data.steps(first), first):
            noise = Noise(self.config.seed, epoch)
            mine = rows[rank * share : (rank + 1) * share]
            size = self.config.rows_per_forward
            groups = [mine[i : i + size] for i in range(0, share, size)]
            views = [self.recipe.views(self.data.batch(group), noise) for group in groups]
            forwards = [Supervised.of(view) for view in views]
            tokens = sum(view.tokens.numel() for view in views)
            yield Step(number, forwards, sums(view.normalisers for view in views), tokens)

    def validation(self) -> Iterator[Supervised]:
        """The validation rows, always with the same noise; the last batch is filled with empty rows."""
        size = self.config.rows_per_forward
        rows = pack(self.held.padded, self.held.form.length, 0, 0)
        rows += [[] for _ in range(-len(rows) % size)]
        for at in range(0, len(rows), size):
            noise = Noise(self.config.seed + 1)
            yield Supervised.of(self.recipe.views(self.held.batch(rows[at : at + size]), noise))


def sums(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The values of each name added up."""
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def prefetch(items: Iterable[T], depth: int) -> Iterator[T]:
    """The same items, made by a thread that runs up to `depth` ahead. An error in the thread is raised here."""
    ready: queue.Queue[T | BaseException | None] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: T | BaseException | None) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.2)
            except queue.Full:
                continue
            break

    def work() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:  # handed to the consumer
            put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()


def rate(config: TrainConfig, step: int, progress: float) -> float:
    """Learning rate of an update: linear warm-up by steps, then constant or cosine by progress (0 to 1)."""
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    if config.schedule == "constant":
        return config.learning_rate * warm
    falling = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return config.learning_rate * warm * (config.final_rate + (1 - config.final_rate) * falling)


def make_optimizer(objective: Objective, config: TrainConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [p for p in objective.parameters() if p.dim() >= 2]
    others = [p for p in objective.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=device.type == "cuda")


class Trainer:
    """The state of a run: network, optimiser, number of updates done."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator, objective: Objective) -> None:
        self.config, self.accelerator = config, accelerator
        optimizer = make_optimizer(objective, config, accelerator.device)
        self.raw = objective
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)
        self.done = 0
        self.started = time.monotonic()

    def progress(self, step: int) -> float:
        """How much of the schedule is over when this update begins, in 0 .. 1; the same in all processes."""
        by_steps = step / self.config.steps
        if not self.config.max_minutes:
            return by_steps
        minutes = self._total((time.monotonic() - self.started) / 60) / self.accelerator.num_processes
        return max(by_steps, minutes / self.config.max_minutes)

    def update(self, step: Step, learning_rate: float) -> tuple[Tensor, Tensor]:
        """One optimiser step. Returns (this process's part of the loss, norm of the gradient), still on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        # DDP averages gradients over the processes; the sum is wanted.
        ranks = self.accelerator.num_processes
        scale = {name: ranks / max(self._total(value), 1e-8) for name, value in step.normalisers.items()}
        loss = torch.zeros((), device=self.accelerator.device)
        for index, forward in enumerate(step.forwards):
            batch = forward.to(self.accelerator.device)
            if index < len(step.forwards) - 1:
                with self.accelerator.no_sync(self.objective):
                    loss += self._backward(batch, scale)
            else:
                loss += self._backward(batch, scale)
        norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done = step.number + 1
        return loss, torch.as_tensor(norm)

    def _backward(self, batch: Supervised, scale: Mapping[str, float]) -> Tensor:
        terms: Terms = self.objective(batch)
        loss = torch.stack([value * scale[name] for name, value in terms.sums.items()]).sum()
        self.accelerator.backward(loss)
        return loss.detach()

    def mean_loss(self, loss: Tensor) -> float:
        """The loss of a step from this process's part of it."""
        return self._total(float(loss)) / self.accelerator.num_processes

    def _total(self, value: float) -> float:
        """The sum over the processes. One process needs no tensor, and so never waits for its GPU."""
        if self.accelerator.num_processes == 1:
            return value
        total = self.accelerator.reduce(torch.tensor(value, device=self.accelerator.device), reduction="sum")
        assert isinstance(total, Tensor)
        return float(total)

    def evaluate(self, batches: Iterable[Supervised]) -> dict[str, float]:
        """Loss, share of right tokens, and share of samples without a wrong token (AR: greedy decoding's).

        In training mode and with gradients on, which changes nothing (no dropout): one compiled graph serves.
        """
        right = count = samples = wrong = 0.0
        losses: list[dict[str, float]] = []
        normalisers: list[Mapping[str, float]] = []
        for batch in batches:
            batch = batch.to(self.accelerator.device)
            terms: Terms = self.objective(batch)
            losses.append({name: float(value.detach()) for name, value in terms.sums.items()})
            normalisers.append(batch.normalisers)
            right, count = right + int(terms.right.sum()), count + len(terms.right)
            sample = _sample_of(batch)
            samples, wrong = samples + len(sample.unique()), wrong + len(sample[~terms.right].unique())
        over = sums(normalisers)
        return {
            "validation_loss": sum(value / max(over[name], 1e-8) for name, value in sums(losses).items()),
            "token_accuracy": right / max(count, 1),
            "sample_accuracy": 1 - wrong / max(samples, 1),
        }

    def save_state(self, path: Path) -> None:
        """Writes everything a resumed run needs."""
        state = {
            "network": self.raw.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "done": self.done,
        }
        draft = path.with_suffix(".tmp")
        torch.save(state, draft)
        draft.replace(path)

    def load_state(self, path: Path) -> None:
        state: dict[str, Any] = torch.load(path, map_location=self.accelerator.device, weights_only=True)
        self.raw.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = state["done"]


def _sample_of(batch: Supervised) -> Tensor:
    """A number for the sample of each supervised row, [S]."""
    width = batch.tokens.shape[1]
    segment = batch.layout.segment.expand(batch.tokens.shape).flatten()[batch.index]
    return batch.index // width * width + segment


class Log:
    """One JSON object a line, in the file and (short) on the terminal; only the main process writes."""

    def __init__(self, path: Path, active: bool, keep: bool) -> None:
        self.path, self.active = path, active
        if active:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not keep:
                path.unlink(missing_ok=True)

    def write(self, **entry: Any) -> None:
        if not self.active:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        if "step" in entry:
            shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in entry.items())
            print(", ".join(shown), flush=True)


def run(config: TrainConfig) -> dict[str, Any]:
    """Trains as the config says, writes checkpoint and log to `config.output`, returns the last figures."""
    began = time.monotonic()
    tokenizer = load_tokenizer(Path(config.tokenizer))
    recipe = make_recipe(config.recipe, mask_id=tokenizer.mask_token_id)
    form = Format(
        length=config.row_tokens,
        block=recipe.block,
        pad_id=tokenizer.pad_token_id if tokenizer.mask_token_id is None else tokenizer.mask_token_id,
        end_id=tokenizer.eos_token_id,
        fill_end=config.fill_end,
    )
    # Data first: its worker processes are forked, which must not happen once a GPU is in use.
    train, held = _samples(config, "train", config.problems), _samples(config, "validation", config.eval_problems)
    source = Source(
        config, recipe, Packed(train, form, config.rows_per_step, config.seed), Packed(held, form, 1, config.seed)
    )
    network, config_json = build_network(config, tokenizer.mask_token_id)

    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision="no" if config.precision == "fp32" else config.precision)
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    trainer = Trainer(
        config, accelerator, Objective(network, recipe, attention=config.attention, compiled=config.compile)
    )
    state = Path(config.output) / STATE
    resumed = config.resume and state.is_file()
    if resumed:
        trainer.load_state(state)
    log = Log(Path(config.output) / LOG, accelerator.is_main_process, keep=resumed)
    log.write(config=asdict(config), parameters=network.count_parameters(), device=_device_name(accelerator))
    log.write(data_seconds=time.monotonic() - began, samples=len(train), tokens=int(train.starts[-1]))
    figures = _train(trainer, source, log, state)
    if accelerator.is_main_process:
        save_checkpoint(network, config_json, config)
    log.write(**figures, minutes=(time.monotonic() - began) / 60)
    return figures


def _samples(config: TrainConfig, split: str, count: int) -> Samples:
    return load_samples(config.task, split, count, config.seed, Path(config.tokenizer), config.workers)


def _device_name(accelerator: Accelerator) -> str:
    device = accelerator.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _train(trainer: Trainer, source: Source, log: Log, state: Path) -> dict[str, Any]:
    """All updates from where the trainer stands; returns the last validation figures."""
    config, accelerator = trainer.config, trainer.accelerator
    figures: dict[str, Any] = {}
    clock, tokens = time.monotonic(), 0
    trainer.started = clock
    steps = source.steps(trainer.done, accelerator.process_index, accelerator.num_processes)
    for step in prefetch(steps, depth=4):
        progress = trainer.progress(step.number)
        if progress >= 1:
            break
        learning_rate = rate(config, step.number, progress)
        loss, norm = trainer.update(step, learning_rate)
        tokens += step.tokens * accelerator.num_processes
        if trainer.done % config.log_every == 0 or trainer.done == 1:
            now = time.monotonic()
            entry = {"loss": trainer.mean_loss(loss), "gradient": float(norm), "learning_rate": learning_rate}
            log.write(step=trainer.done, **entry, tokens_per_second=tokens / (now - clock))
            clock, tokens = now, 0
        if trainer.done % config.eval_every == 0:
            figures = {"step": trainer.done, **trainer.evaluate(source.validation())}
            log.write(**figures, minutes=(time.monotonic() - trainer.started) / 60)
            clock, tokens = time.monotonic(), 0
        if config.save_every and trainer.done % config.save_every == 0 and accelerator.is_main_process:
            trainer.save_state(state)
    if figures.get("step") != trainer.done:
        figures = {"step": trainer.done, **trainer.evaluate(source.validation())}
    return figures
