"""A model's own answers as training data: `unmask distil`.

    unmask distil nano-ar --task wordmath --count 20000 --out runs/answers.jsonl --only-right
    unmask distil nano-ar --task wordmath --count 20000 --out runs/paths.jsonl --trajectories --set block_size=16

D2F (arXiv 2508.09192) and dParallel (2509.26488) train on texts that the model wrote itself, Jacobi Forcing
(2512.14681) on the states that its blocks went through. Each line of the file is a JSON object with the prompt, the
response, and the token ids of both; of trajectories also `block_size` and `blocks`, the states of each block from the
draft it began with to its fixed point. `data: FILE` in a training config reads it.

A run can be stopped at any moment and started again: FILE.state holds how far the file is valid, and what lies behind
that is cut off. A problem's answer depends on its number and the settings, not on the batch it is decoded in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from unmask.decoding import build
from unmask.decoding.loop import decode
from unmask.decoding.sampling import Draw
from unmask.decoding.trajectory import Trajectories
from unmask.errors import UnmaskError
from unmask.lm import LM, Prompt
from unmask.tasks import Split, Task
from unmask.training.sources.tables import open_tables

QUEUE = 8
"""Batches of one call where the engine decodes: it fills freed places from its queue."""


@dataclass(frozen=True)
class Question:
    """A prompt. kind, right: of a task's problem, its sort and the check of an answer's text."""

    prompt: Prompt
    kind: str | None = None
    right: Callable[[str], bool] | None = None


class Asked(Protocol):
    """Where prompts come from."""

    def take(self, start: int, count: int) -> list[Question]:
        """Prompts number `start` and on, fewer where they end."""
        ...


@dataclass(frozen=True)
class Problems:
    """The questions of a task."""

    task: Task
    split: Split
    seed: int

    def take(self, start: int, count: int) -> list[Question]:
        problems = self.task.generate(self.split, count, seed=self.seed, start=start)
        return [Question(p.question, p.kind, partial(self.task.check, p)) for p in problems]


class Rows:
    """The prompts of files: a column `prompt`, or `messages` up to the last one of the user."""

    def __init__(self, path: str, columns: Mapping[str, str]) -> None:
        self.tables = open_tables(path, columns, {"messages": ("messages",), "prompt": ("prompt",)})

    def take(self, start: int, count: int) -> list[Question]:
        found: list[Question] = []
        for table in self.tables:
            numbers = range(start, min(start + count - len(found), len(table)))
            for number, row in zip(numbers, table.take(numbers) if numbers else []):
                found.append(Question(_prompt(row, f"row {number + 1} of {table.name}")))
            start = max(start - len(table), 0)
        return found


def _prompt(row: Mapping[str, Any], where: str) -> Prompt:
    if "messages" not in row:
        return row["prompt"]
    messages = [{k: v for k, v in m.items() if v is not None} for m in row["messages"]]
    while messages and messages[-1].get("role") != "user":
        messages.pop()
    if not messages:
        raise UnmaskError(f"{where} has no message of the user")
    return messages


@dataclass(frozen=True)
class Answer:
    """What a model wrote. blocks: the states of each block, of trajectories."""

    prompt_ids: list[int]
    ids: list[int]
    text: str
    finish_reason: str
    blocks: list[list[list[int]]] | None = None


@dataclass(frozen=True, kw_only=True)
class Writer:
    """How answers are made.

    Args:
        lm: the model.
        method, options: see `LM.generate`; for trajectories the method is `jacobi`.
        sampling: temperature, top_p, top_k.
        max_new_tokens: of an answer.
        seed: added to a prompt's number, the seed of its draws.
        engine: arguments of the engine, None for the eager loop.
    """

    lm: LM
    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    max_new_tokens: int = 256
    seed: int = 0
    engine: Mapping[str, Any] | None = None

    def answers(self, prompts: Sequence[Prompt], first: int) -> list[Answer]:
        """Of prompts number `first` and on."""
        seeds = [self.seed + first + i for i in range(len(prompts))]
        made = {} if self.engine is None else {"engine": dict(self.engine)}
        found = self.lm.generate(
            list(prompts),
            method=self.method,
            max_new_tokens=self.max_new_tokens,
            seed=seeds,
            **made,
            **self.sampling,
            **self.options,
        )
        return [Answer(g.prompt_ids, g.ids, g.text, g.finish_reason) for g in found]

    def trajectories(self, prompts: Sequence[Prompt], first: int) -> list[Answer]:
        """The same with all states, by Jacobi decoding in blocks without a draft beside the prompt."""
        lm = self.lm
        method: Any = build("jacobi", {"schedule": "block", "prefill_draft": "none", **self.options})
        size = method.block_size
        blocks = -(-self.max_new_tokens // size)
        # Guesses behind the end of the text are none of the model's, so the text is one token longer than the blocks.
        new_tokens = blocks * size + 1
        ids = [lm.encode(prompt) for prompt in prompts]
        longest, context = max(map(len, ids)), lm.model.config.max_positions
        if longest + new_tokens > context:
            raise UnmaskError(
                f"prompt ({longest} tokens) and {blocks} blocks of {size} exceed the context of {context}"
            )
        seen = Trajectories(len(ids), size)
        rows = decode(
            lm.model,
            method.bind(lm.family, new_tokens),
            ids,
            facts=lm.facts,
            draw=self._greedy([self.seed + first + i for i in range(len(ids))]),
            new_tokens=new_tokens,
            observe=seen,
        )
        return [self._answer(p, row.canvas[: blocks * size], s) for p, row, s in zip(ids, rows, seen.states)]

    def _answer(self, prompt: list[int], ids: list[int], states: list[list[list[int]]]) -> Answer:
        stop = next((i for i, token in enumerate(ids) if token in self.lm.family.eos_ids), None)
        ids = ids if stop is None else ids[: stop + 1]
        text = "" if self.lm.tokenizer is None else self.lm.tokenizer.decode(ids)
        used = -(-len(ids) // len(states[0][0]))
        return Answer(prompt, ids, text, "length" if stop is None else "stop", states[:used])

    def _greedy(self, seeds: list[int]) -> Draw:
        device, count = self.lm.model.device, len(seeds)
        zero, one = torch.zeros(count, device=device), torch.ones(count, device=device)
        return Draw(zero, one, zero.long(), torch.tensor(seeds, device=device))


class Journal:
    """A file of lines and how far it is valid.

    Attributes:
        tried: prompts answered so far.
        written: lines of the file.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Goes on with a file of the same settings, or begins a new one.

        Args:
            settings: what the lines depend on.
            about: what else is noted in the state.

        Raises:
            UnmaskError: a file that is none of ours, or was made with other settings.
        """
        self.path, self.state = path, path.with_name(path.name + ".state")
        self.settings, self.about = json.loads(json.dumps(settings)), about
        self.tried = self.written = self.bytes = 0
        if self.state.is_file():
            self._continue()
        elif path.exists():
            raise UnmaskError(f"{path} exists and no `unmask distil` left a state of it; give another --out")

    def _continue(self) -> None:
        state = json.loads(self.state.read_text())
        for key in {**state["settings"], **self.settings}:
            old, new = state["settings"].get(key), self.settings.get(key)
            if old != new:
                raise UnmaskError(f"{self.path} was begun with {key} {old!r}, not {new!r}; give another --out")
        self.tried, self.written, self.bytes = state["tried"], state["written"], state["bytes"]
        if not self.path.is_file() or self.path.stat().st_size < self.bytes:
            raise UnmaskError(f"{self.path} lacks lines that {self.state.name} says it has; remove both to begin anew")
        os.truncate(self.path, self.bytes)

    def add(self, rows: Sequence[Mapping[str, Any]], tried: int) -> None:
        """Appends the rows that `tried` more prompts gave, whole or, once the run is started again, not at all."""
        data = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self.tried, self.written, self.bytes = self.tried + tried, self.written + len(rows), self.bytes + len(data)
        self._note()

    def _note(self) -> None:
        draft = self.state.with_name(self.state.name + ".tmp")
        now = {"tried": self.tried, "written": self.written, "bytes": self.bytes}
        draft.write_text(json.dumps({"settings": self.settings, **now, "about": self.about}) + "\n")
        draft.replace(self.state)


def distil(
    asked: Asked,
    writer: Writer,
    journal: Journal,
    *,
    count: int,
    batch: int = 8,
    only_right: bool = False,
    trajectories: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Answers prompts until `count` of them are tried, or there are no more; the journal says how many there were.

    Args:
        batch: prompts decoded together.
        only_right: leave out answers that the task's check does not accept.
        progress: called with the number of prompts tried.
    """
    size = batch * (1 if writer.engine is None else QUEUE)
    make = writer.trajectories if trajectories else writer.answers
    while journal.tried < count:
        first = journal.tried
        group = asked.take(first, min(size, count - first))
        if not group:
            break
        answers = make([question.prompt for question in group], first)
        rows = [_row(first + i, *pair) for i, pair in enumerate(zip(group, answers))]
        journal.add([row for row in rows if not only_right or row["correct"]], len(group))
        progress(journal.tried)


def _row(index: int, question: Question, answer: Answer) -> dict[str, Any]:
    """A line of the file."""
    row: dict[str, Any] = {"index": index, "prompt": question.prompt, "response": answer.text}
    row |= {"prompt_ids": answer.prompt_ids, "response_ids": answer.ids, "finish_reason": answer.finish_reason}
    if question.right is not None:
        row |= {"kind": question.kind, "correct": question.right(answer.text)}
    if answer.blocks is not None:
        row |= {"block_size": len(answer.blocks[0][0]), "blocks": answer.blocks}
    return row
