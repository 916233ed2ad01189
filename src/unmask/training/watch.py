"""What a run is measured by: loss on held-out rows, and answers to held-out problems.

Answers are decoded as they will be once the checkpoint is served: by `recipe.decoder` through `LM.generate`, from the
weights in training (no copy). So accuracy and tokens per forward (TPF) speak of the finished product; with temperature
0 where the recipe does not ask for another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.decoding import build
from unmask.decoding.counters import Counters
from unmask.lm import LM
from unmask.models.checkpoint import Checkpoint
from unmask.models.families import Family, resolve
from unmask.models.hub import read_tokenizer_facts
from unmask.models.network import Network
from unmask.models.tokenizer import Tokenizer
from unmask.tasks import Problem, Task, get_task
from unmask.training.recipes.base import Recipe, Supervised, Terms
from unmask.training.setup import Start
from unmask.training.step import sums
from unmask.training.trainer import Trainer
from unmask.training.wrap import forget, gathered


@contextmanager
def measuring(trainer: Trainer) -> Iterator[None]:
    """The averages in the place of the weights if there are any, dropout off, no gradients, the clock stopped.
    Afterwards all is as it was."""
    trainer.pause()
    trainer.raw.eval()
    if trainer.average is not None:
        trainer.average.swap()
        trainer.raw.place_mask_row()
    try:
        with torch.no_grad():
            yield
    finally:
        forget(trainer.raw)
        if trainer.average is not None:
            trainer.average.swap()
            trainer.raw.place_mask_row()
        trainer.raw.train()
        trainer.go_on()


def validate(trainer: Trainer, batches: Iterable[Supervised]) -> dict[str, float]:
    """Loss, share of right tokens, and share of samples without a wrong token (AR: greedy decoding's).

    Args:
        batches: this process's; all have as many.
    """
    right = count = samples = wrong = 0.0
    losses: list[dict[str, float]] = []
    normalisers: list[Mapping[str, float]] = []
    for batch in batches:
        batch = trainer.raw.place(batch, trainer.ranks.device)
        with trainer.lowered():
            terms: Terms = trainer.raw(batch)
        losses.append({name: float(value) for name, value in terms.sums.items()})
        normalisers.append(batch.normalisers)
        right, count = right + int(terms.right.sum()), count + len(terms.right)
        sample = _sample_of(batch)
        samples, wrong = samples + len(sample.unique()), wrong + len(sample[~terms.right].unique())
    names = list(sums(normalisers))
    own = [sums(losses)[name] for name in names] + [sums(normalisers)[name] for name in names]
    *totals, right, count, samples, wrong = trainer.ranks.totals([*own, right, count, samples, wrong])
    return {
        "validation_loss": sum(v / max(n, 1e-8) for v, n in zip(totals[: len(names)], totals[len(names) :])),
        "token_accuracy": right / max(count, 1),
        "sample_accuracy": 1 - wrong / max(samples, 1),
    }


def _sample_of(batch: Supervised) -> Tensor:
    """A number for the sample of each supervised row, [S]."""
    width = batch.tokens.shape[1]
    segment = batch.layout.segment.expand(batch.tokens.shape).flatten()[batch.index]
    return batch.index // width * width + segment


@dataclass(frozen=True)
class Exam:
    """Held-out problems and the decoder they are answered by.

    Args:
        problems: this process's.
        options: of `LM.generate`.
        batch: problems decoded together.
    """

    task: Task
    problems: list[Problem]
    options: dict[str, Any]
    batch: int

    @classmethod
    def of(cls, start: Start, recipe: Recipe, index: int = 0, count: int = 1) -> Exam | None:
        """The part of process `index` of `count`; None where the config asks for none, or the data have no problems.

        Raises:
            UnmaskError: the network cannot be decoded as its recipe is.
        """
        config = start.config
        if not config.decode_problems or start.tokenizer is None or config.data is not None:
            return None
        task = get_task(config.task)
        method = {k: v for k, v in recipe.decoder.items() if k not in ("method", "temperature")}
        build(recipe.decoder["method"], method).bind(family_of(start), config.decode_tokens or 256)
        problems = list(task.generate("validation", config.decode_problems, seed=config.seed))
        options = {"temperature": 0.0, "max_new_tokens": config.decode_tokens or None, **recipe.decoder}
        return cls(task, problems[index::count], options, config.decode_batch)

    def take(self, lm: LM, trainer: Trainer) -> dict[str, float]:
        """Share of right answers and TPF, over all processes."""
        counters, right = Counters(), 0
        with gathered(trainer.raw, trainer.raw.network):
            for at in range(0, len(self.problems), self.batch):
                group = self.problems[at : at + self.batch]
                for problem, result in zip(group, lm.generate([p.question for p in group], **self.options)):
                    right += bool(self.task.check(problem, result.text))
                    counters.add(result.counters)
        own = [right, len(self.problems), counters.tokens, counters.decode_forwards]
        right, asked, tokens, forwards = trainer.ranks.totals(own)
        return {"accuracy": right / max(asked, 1), "tpf": tokens / max(forwards, 1)}


def serving(start: Start, network: Network) -> LM:
    """What `unmask.load` will make of the checkpoint, around the weights in training."""
    folder = Path(start.config.output)
    found = Checkpoint(network, network.config, family_of(start), start.config_json, start.generation_json, folder)
    return LM(found, None if start.tokenizer is None else Tokenizer(start.tokenizer))


def family_of(start: Start) -> Family:
    """What the checkpoint's files will say."""
    facts = None if start.config.tokenizer is None else read_tokenizer_facts(Path(start.config.tokenizer))
    return resolve(start.config_json, start.generation_json, facts)


def better(figures: Mapping[str, float], best: Mapping[str, float]) -> bool:
    """Whether a checkpoint is better than the best so far: by accuracy and then TPF where answers were decoded, else by
    validation loss."""
    if not best:
        return True
    names = ("accuracy", "tpf", "validation_loss")
    new, old = (([f[n] for n in names[:2] if n in f], -f[names[2]]) for f in (figures, best))
    return new > old
