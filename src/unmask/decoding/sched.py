"""SchED and Prophet: stop as soon as the logits are clear enough, and take everything that is still masked.

Papers: "Fast-Decoding Diffusion Language Models via Progress-Aware Confidence Schedules" (SchED, arXiv 2512.02892;
official code amr-mohamedd/SchED) and "Diffusion Language Models Know the Answer Before Decoding" (Prophet, arXiv
2508.19982; official code pixeli99/Prophet). Both compare the margin between the two best raw logits, averaged over the
masked positions, with a threshold that falls with the forwards spent. They are stop rules for any method that decides
one block at a time (`stop="sched:kind=linear,high=7.5"`); the methods here put them on the vanilla samplers.

SchED's released code, unlike its paper, also asks that no best token has changed since the forward before. The
published numbers were made so and it is the default; `max_change=1` is the paper's rule, and Prophet's. On purpose
different: every row stops for itself, `stat=min` is the minimum, and on Dream's models a run of one token a forward
commits one at the first forward already (`schedule=timestep` does as the code, whose first forward commits nothing, so
that at the second one nothing can have changed).

    unmask generate Dream-org/Dream-v0-Instruct-7B "..." --method sched --set kind=exp --set k=16
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar

from unmask.decoding.masked import ALGORITHMS, Masked
from unmask.decoding.method import option, register
from unmask.decoding.stop import KINDS, STATS, MarginRule, Prophet, Sched, Stop

if TYPE_CHECKING:
    from typing_extensions import Self

    from unmask.models.families import Family


@dataclass(frozen=True, kw_only=True)
class EarlyExit(Masked):
    """A vanilla sampler with a stop rule made of the method's own options: Dream's sampler ranked by entropy where the
    model has token shift, else LLaDA's."""

    stop_class: ClassVar[type[MarginRule]]

    algorithm: str | None = option(
        None,
        "what ranks positions; None: entropy with token shift, else confidence",
        alias=("remasking", "alg"),
        choices=ALGORITHMS,
    )
    schedule: str | None = option(None, "how many positions a step commits; None: even", choices=("even", "timestep"))
    confidence: str | None = option(
        None,
        "probability before (raw) or after (filtered) temperature and top-k/top-p; None: filtered with token shift",
        choices=("raw", "filtered"),
    )
    masked_only: bool = option(
        True, "average over masked positions, else over decided ones too", alias=("average_over_masked",)
    )
    region: str = option(
        "span",
        "what is averaged: the answer (span), or the prompt too (all; counts with masked_only=false or min_progress)",
        alias=("answer_region",),
        choices={"span": "span", "last": "span", "all": "all"},
    )
    first: int = option(0, "first position of the part of the answer that is looked at, from 0", low=0)
    count: int = option(0, "how many positions of the answer are looked at; 0: all that follow", low=0)
    stat: str = option("mean", "how margins are pooled", choices=STATS)
    q: float = option(0.2, "which quantile (stat quantile)", low=0.0, high=1.0)
    max_change: float | None = option(
        None,
        "share of masked positions whose best token may have changed since the forward before; 1: no such test; "
        "None: 0 (sched) or 1 (prophet)",
        alias=("max_change_ratio",),
        low=0.0,
        high=1.0,
    )
    patience: int = option(
        0, "forwards in a row that must be calm before the one that stops", alias=("patience_steps",), low=0
    )
    min_progress: float = option(0.0, "share of the positions looked at that must be decided", low=0.0, high=1.0)

    def bind(self, family: Family, new_tokens: int) -> Self:
        dream = bool(family.shift)
        by_entropy = dream and getattr(self.select, "rank", None) is None
        own = replace(
            self,
            schedule=self.schedule or "even",
            algorithm=self.algorithm or ("entropy" if by_entropy else "confidence"),
            confidence=self.confidence or ("filtered" if dream else "raw"),
        )
        return super(EarlyExit, own).bind(family, new_tokens)

    def own_stop(self) -> Stop:
        options = {f.name: getattr(self, f.name) for f in fields(self.stop_class)}
        return self.stop_class(**{name: value for name, value in options.items() if value is not None})


@register("sched", title="SchED: progress-aware confidence schedules", arxiv="2512.02892")
@dataclass(frozen=True, kw_only=True)
class SchedMethod(EarlyExit):
    """The vanilla sampler until the margins exceed a threshold that falls smoothly; then all at once."""

    stop_class = Sched

    kind: str = option("cosine", "how the threshold falls", alias=("tau_mode",), choices=KINDS)
    high: float = option(7.5, "threshold at the first forward, in logits", alias=("tau_high",), low=-1e6)
    low: float = option(2.5, "threshold at the last forward, in logits", alias=("tau_low",), low=-1e6)
    k: float = option(4.0, "steepness (exp)", alias=("tau_k",), low=0.0)


@register("prophet", title="Diffusion Language Models Know the Answer Before Decoding", arxiv="2508.19982")
@dataclass(frozen=True, kw_only=True)
class ProphetMethod(EarlyExit):
    """The vanilla sampler until the margins exceed a threshold of three levels; then all at once."""

    stop_class = Prophet

    high: float = option(
        7.5, "threshold in the first third of the forwards, in logits", alias=("early_threshold",), low=-1e6
    )
    middle: float = option(5.0, "threshold in the second third", alias=("mid_threshold",), low=-1e6)
    low: float = option(2.5, "threshold in the last third", alias=("late_threshold",), low=-1e6)
