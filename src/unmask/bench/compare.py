"""Several methods on the same prompts: what each needs, and how far its tokens agree with two baselines.

    unmask compare nano "Tom has 3 boxes of 12 pens. How many pens does he have?" -m fast_dllm_v2:threshold=0.8 -m d2f

Methods take turns prompt by prompt, one at a time, so that a machine that slows down slows all of them. Time is wall
clock around `generate`, prefill included; one run beforehand is not counted.

The baselines are autoregressive decoding, of the same checkpoint where that is sound on it or of another one, and
sequential decoding: the form of the checkpoint's family that decides one token a forward (`decoding.sequential`).
Agreement is of token ids up to and including the first end token, summed over all prompts, and the longer of both
answers counts:

    up to the first difference: tokens before the first position at which they differ / tokens of the longer answer
    in all:                     positions at which both have the same token / tokens of the longer answer

Either is 1 exactly where all answers are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from unmask.decoding import METHODS, Method, build
from unmask.decoding.counters import Counters
from unmask.decoding.sequential import sequential
from unmask.errors import UnmaskError
from unmask.lm import LM, Generation, Prompt
from unmask.models.families import Family

Check = Callable[[int, str], bool]


@dataclass(frozen=True)
class Way:
    """A method with options of its own."""

    method: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As it is written: name:key=value,key=value."""
        pairs = ",".join(f"{key}={_written(value)}" for key, value in self.options.items())
        return f"{self.method}:{pairs}" if pairs else self.method


@dataclass(eq=False)
class Outcome:
    """What a way of decoding gave. reason: why it gave nothing. right: answers that hold, where they can be checked.

    answers: one a prompt.
    """

    way: Way
    lm: LM
    reason: str | None = None
    counters: Counters = field(default_factory=Counters)
    answers: list[Generation] = field(default_factory=list)
    right: list[bool] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without agreement."""
        head: dict[str, Any] = {"method": self.way.method, "options": _plain(self.way.options), "reason": self.reason}
        if self.reason is not None:
            return head
        if self.right is not None:
            head |= {"correct": sum(self.right), "accuracy": round(100 * sum(self.right) / len(self.right), 2)}
        answers = [a.as_dict() for a in self.answers]
        for answer, right in zip(answers, self.right or ()):
            answer["correct"] = right
        return head | self.counters.as_dict() | {"answers": answers}


@dataclass(frozen=True)
class Agreement:
    """Shares of equal tokens, as the module defines them, and the number of answers that are the same."""

    first: float
    total: float
    same: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "up_to_first_difference": round(self.first, 4),
            "in_all": round(self.total, 4),
            "same_answers": self.same,
        }


@dataclass
class Comparison:
    """outcomes: of the methods asked for. baselines: "autoregressive" and "sequential"; one that was asked for anyway
    stands in both."""

    outcomes: list[Outcome]
    baselines: dict[str, Outcome]

    def agreement(self, outcome: Outcome, baseline: str) -> Agreement | None:
        """With a baseline; None where one of both gave nothing."""
        base = self.baselines.get(baseline)
        if base is None or base.reason is not None or outcome.reason is not None:
            return None
        return agreement([a.ids for a in outcome.answers], [a.ids for a in base.answers])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""

        def shares(outcome: Outcome) -> dict[str, Any]:
            found = {name: self.agreement(outcome, name) for name in self.baselines}
            return {"agreement": {name: a.as_dict() for name, a in found.items() if a is not None}}

        return {
            "methods": [o.as_dict() | shares(o) for o in self.outcomes],
            "baselines": {n: o.as_dict() | shares(o) for n, o in self.baselines.items()},
        }


def compare(
    lm: LM,
    prompts: Sequence[Prompt],
    ways: Sequence[Way | str] | None = None,
    *,
    against: LM | None = None,
    check: Check | None = None,
    batch: int = 1,
    raw: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **common: Any,
) -> Comparison:
    """Decodes the same prompts in several ways.

    Args:
        ways: methods, by name or with options; None: all that are sound on the checkpoint, with their defaults.
        against: the model of the autoregressive baseline, in place of `lm` itself.
        check: called with the number of a prompt and an answer's text, says whether it is right.
        batch: prompts decoded together.
        progress: called with the number of batches done, and of all there are, over all methods.
        common: max_new_tokens, temperature and the like, the same for all.

    Raises:
        UnmaskError: a bad prompt, an unknown method or option, `against` with another tokenizer, nothing that works.
            A method that is not sound here raises nothing: its `Outcome` holds the reason.
    """
    if not prompts:
        raise UnmaskError("there is nothing to compare on; give at least one prompt")
    if against is not None:
        _same_tokens(lm, against, prompts, raw)
    asked = [Way(w) if isinstance(w, str) else w for w in (sound(lm.family) if ways is None else ways)]
    length = common.get("max_new_tokens") or 256
    outcomes = [_outcome(way, lm, length) for way in asked]
    token_by_token = _baseline(Way("autoregressive"), against or lm, outcomes, length)
    one_a_forward = _baseline(Way(*sequential(lm.family)), lm, [*outcomes, token_by_token], length)
    runs = list({id(o): o for o in [*outcomes, token_by_token, one_a_forward]}.values())
    groups = [list(prompts[i : i + batch]) for i in range(0, len(prompts), batch)]
    for run in [r for r in runs if r.reason is None][:1]:  # the first call of a process is slow
        _decode(run, groups[0], raw, common)
    for i, group in enumerate(groups):
        for k, run in enumerate(runs):
            if run.reason is None:
                _take(run, _decode(run, group, raw, common))
            progress(i * len(runs) + k + 1, len(groups) * len(runs))
    if all(run.reason is not None for run in runs):
        raise UnmaskError(runs[0].reason or "")
    for run in runs:
        if check is not None and run.reason is None:
            run.right = [check(i, answer.text) for i, answer in enumerate(run.answers)]
    return Comparison(outcomes, {"autoregressive": token_by_token, "sequential": one_a_forward})


def agreement(answers: Sequence[list[int]], base: Sequence[list[int]]) -> Agreement:
    """How far answers agree with those of a baseline (see the module)."""
    first = equal = longer = 0
    for a, b in zip(answers, base):
        same = [x == y for x, y in zip(a, b)]
        first += same.index(False) if False in same else len(same)
        equal += sum(same)
        longer += max(len(a), len(b))
    return Agreement(first / max(longer, 1), equal / max(longer, 1), sum(a == b for a, b in zip(answers, base)))


def sound(family: Family) -> list[str]:
    """The methods that are sound on a family with their defaults."""
    return [name for name in sorted(METHODS) if _refusal(build(name, {}), family, 256) is None]


def _refusal(method: Method[Any], family: Family, length: int) -> str | None:
    try:
        method.bind(family, length)
    except UnmaskError as error:
        return str(error)
    return None


def _outcome(way: Way, lm: LM, length: int) -> Outcome:
    return Outcome(way, lm, _refusal(build(way.method, way.options), lm.family, length))


def _baseline(way: Way, lm: LM, outcomes: list[Outcome], length: int) -> Outcome:
    """The outcome of a baseline: one that was asked for anyway, or its own."""
    new = _outcome(way, lm, length)
    if new.reason is not None:
        return new
    wanted = build(way.method, way.options).bind(lm.family, length)
    for known in outcomes:
        if known.reason is None and known.lm is lm:
            method = build(known.way.method, known.way.options).bind(lm.family, length)
            if method == wanted:
                return known
    return new


def _decode(run: Outcome, group: list[Prompt], raw: bool, common: dict[str, Any]) -> list[Generation]:
    """The answers; none, and the reason noted, where the method turns out not to work."""
    try:
        return run.lm.generate(group, method=run.way.method, raw=raw, **common, **run.way.options)
    except UnmaskError as error:
        run.reason = str(error)
    except torch.OutOfMemoryError as error:
        run.reason = f"out of memory on {run.lm.model.device}: {str(error).splitlines()[0]}"
    return []


def _take(run: Outcome, results: list[Generation]) -> None:
    for result in results:
        run.counters.add(result.counters)
        run.answers.append(result)
    if results:  # a batch shares its wall-clock time: count it once
        run.counters.seconds -= results[0].counters.seconds * (len(results) - 1)


def _same_tokens(lm: LM, against: LM, prompts: Sequence[Prompt], raw: bool) -> None:
    """Refuses a baseline that reads the same text as other tokens: ids could not be compared."""
    for prompt in prompts:
        if lm.encode(prompt, raw=raw) != against.encode(prompt, raw=raw):
            raise UnmaskError(
                f"{against.checkpoint.folder.name} reads the prompt as other tokens than {lm.checkpoint.folder.name}; "
                "their answers cannot be compared"
            )


def _written(value: Any) -> str:
    """An option's value as it is typed; one that holds commas in parentheses."""
    text = str(value).lower() if value is None or isinstance(value, bool) else str(value)
    return f"({text})" if "," in text else text


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    simple = (bool, int, float, str, type(None))
    return {key: value if isinstance(value, simple) else str(value) for key, value in options.items()}
