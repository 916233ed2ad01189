"""A decoding run as a document: what was asked, what came of it, and every forward. JSON, read back with checks.

import unmask
from unmask.trace import from_generation
lm = unmask.load("nano")
result = lm.generate("Tom has 3 boxes of 12 pens. How many pens does he have?", trace=True, threshold=0.8)
from_generation(lm, result, model="nano", options={"threshold": 0.8}).save("run.json")
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from unmask.decoding.counters import NAMES, Counters
from unmask.decoding.forward import blank
from unmask.decoding.loop import TraceStep
from unmask.decoding.method import Blockwise, aliases, build, method_class
from unmask.decoding.sampling import Draw
from unmask.decoding.verifying import Verifying
from unmask.decoding.windows import Windows
from unmask.detokenize import Detokenizer, decoder
from unmask.errors import UnmaskError
from unmask.lm import COMMON, LM, Generation
from unmask.schema import count, each, fields, number, one_of, optional, record, scalar, table, text, whole

FORMAT, VERSION = "unmask-trace", 1
LIMIT = 1_000_000  # no position, slot or id is larger in a sound file

_STEP = {
    "forward": count(LIMIT),
    "kind": one_of(NAMES),
    "first": whole(-LIMIT, LIMIT),
    "span": whole(1, LIMIT),
    "width": whole(1, LIMIT),
    "visible": count(LIMIT),
    "reads": count(LIMIT),
    "stores": count(LIMIT),
    "positions": each(count(LIMIT)),
    "tokens": each(count(LIMIT)),
    "confidences": each(optional(number(0.0, 1.0))),
}
_TRACE = {
    "model": text,
    "method": text,
    "options": table(scalar),
    "block_size": optional(whole(1, LIMIT)),
    "block_offset": whole(-LIMIT, 0),
    "prompt": text,
    "prompt_ids": each(count(LIMIT)),
    "text": text,
    "ids": each(count(LIMIT)),
    "pieces": each(text),
    "labels": table(text),
    "finish_reason": text,
    "counters": record,
    "steps": each(record, least=1),
}
_COUNTERS = {"tokens": count(LIMIT), "forwards": table(count(LIMIT)), "seconds": number(0.0)}


@dataclass(frozen=True)
class Trace:
    """One decoded answer and how it came about. Positions count from the end of the prompt.

    Attributes:
        model, method, options: what decoded, and what was asked of it.
        block_size, block_offset: blocks begin at block_offset + k * block_size; size None: the method has no blocks.
        prompt, prompt_ids: as the user wrote it, and as the model saw it.
        text, ids: the answer, up to and including the first end token.
        pieces: what each id adds to the text; empty where a character is not complete yet, and for special tokens.
        labels: how each id that was fixed anywhere reads alone, special tokens by name.
        steps: one entry a forward.
    """

    model: str
    method: str
    options: dict[str, Any]
    block_size: int | None
    block_offset: int
    prompt: str
    prompt_ids: list[int]
    text: str
    ids: list[int]
    pieces: list[str]
    labels: dict[int, str]
    finish_reason: str
    counters: Counters
    steps: list[TraceStep]

    @cached_property
    def length(self) -> int:
        """Positions behind the prompt that any forward ran or fixed."""
        ends = (max(s.first + s.span, *(p + 1 for p in s.positions), 0) for s in self.steps)
        return max(len(self.ids), 1, *ends)

    @cached_property
    def final(self) -> dict[int, int]:
        """Position and token of everything that was fixed, as it is in the end."""
        return {p: t for s in self.steps for p, t in zip(s.positions, s.tokens)} | dict(enumerate(self.ids))

    def piece(self, position: int, token: int) -> str:
        """How a token reads at its place: its part of the text, or its label where it is no part of it."""
        inside = position < len(self.ids) and self.ids[position] == token
        return (self.pieces[position] if inside else "") or self.labels.get(token, f"#{token}")

    def is_text(self, position: int, token: int) -> bool:
        """Whether a token is part of the answer's text, rather than an end token or something behind it."""
        return position < len(self.ids) and self.ids[position] == token and bool(self.pieces[position])

    def fixed_text(self, step: TraceStep) -> str:
        """What a forward fixed, " … " where positions in between were not."""
        out, last = "", -1
        for position, token in sorted(zip(step.positions, step.tokens)):
            gap = " … " if out and position != last + 1 else ""
            out, last = out + gap + self.piece(position, token), position
        return out

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        body = {name: getattr(self, name) for name in _TRACE}
        labels = {str(token): label for token, label in self.labels.items()}
        steps = [asdict(step) for step in self.steps]
        head = {"format": FORMAT, "version": VERSION}
        return head | body | {"labels": labels, "counters": self.counters.as_dict(), "steps": steps}

    def save(self, path: str | Path) -> None:
        """Writes a JSON file; an existing one is replaced whole or not at all."""
        write_text(Path(path), json.dumps(self.as_dict(), ensure_ascii=False, allow_nan=False) + "\n")


def from_generation(
    lm: LM,
    result: Generation,
    *,
    model: str = "",
    prompt: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Trace:
    """The document of what `lm.generate(..., trace=True)` gave.

    Args:
        model: what the model is called; default: its folder.
        prompt: as the user wrote it; default: its token ids decoded.
        options: what `generate` was called with, beside prompt and method.

    Raises:
        UnmaskError: the result was made without trace=True.
    """
    if not result.trace:
        raise UnmaskError("this result has no trace; call generate with trace=True")
    options = dict(options or {})
    decode = decoder(lm)
    size, offset = _blocks(lm, result, options)
    used = set(result.ids).union(*(step.tokens for step in result.trace))
    return Trace(
        model=model or lm.checkpoint.folder.name,
        method=result.method,
        options={k: v if isinstance(v, (bool, int, float, str, type(None))) else str(v) for k, v in options.items()},
        block_size=size,
        block_offset=offset,
        prompt=decode(result.prompt_ids) if prompt is None else prompt,
        prompt_ids=list(result.prompt_ids),
        text=result.text or decode(result.ids),
        ids=list(result.ids),
        pieces=_pieces(lm, result.ids),
        labels={token: _label(lm, token) for token in sorted(used)},
        finish_reason=result.finish_reason,
        counters=replace(result.counters, seconds=round(result.counters.seconds, 4)),
        steps=[replace(s, confidences=[_confidence(p) for p in s.confidences]) for s in result.trace],
    )


def read(path: str | Path) -> Trace:
    """The document in a file.

    Raises:
        UnmaskError: no such file, not JSON, another format or version, a field that is missing or makes no sense.
    """
    try:
        return from_dict(json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_no_constant))
    except OSError as error:
        raise UnmaskError(f"cannot read {path}: {error.strerror or error}") from None
    except UnmaskError as error:
        raise UnmaskError(f"{path} is not a saved trace: {error}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, nested without end
        raise UnmaskError(f"{path} is not a saved trace: not JSON ({' '.join(str(error).split())[:120]})") from None


def from_dict(data: Any) -> Trace:
    """A document from what `Trace.as_dict` gave, checked.

    Raises:
        UnmaskError: names the field at fault.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UnmaskError(f"its format is not {FORMAT!r}")
    if data.get("version") != VERSION:
        raise UnmaskError(f"its version is {data.get('version')!r}, this unmask reads version {VERSION}")
    body = fields(data, _TRACE)
    counters = fields(body["counters"], _COUNTERS, "counters.")
    steps = [_step(step, f"steps[{i}].", i) for i, step in enumerate(body["steps"])]
    forwards = dict.fromkeys(NAMES, 0)
    for step in steps:
        forwards[step.kind] += 1
    if counters["forwards"] != {name: n for name, n in forwards.items() if n}:
        raise UnmaskError("counters.forwards does not fit the steps")
    for name, size in (("pieces", len(body["pieces"])), ("counters.tokens", counters["tokens"])):
        if size != len(body["ids"]):
            raise UnmaskError(f"{name} is for {size} tokens, there are {len(body['ids'])} ids")
    if not all(token.isdecimal() and token.isascii() for token in body["labels"]):
        raise UnmaskError("labels must have token ids as keys")
    labels = {int(token): label for token, label in body["labels"].items()}
    done = Counters(counters["tokens"], forwards, float(counters["seconds"]))
    return Trace(**(body | {"labels": labels, "counters": done, "steps": steps}))


def write_text(path: Path, content: str) -> None:
    """Writes a file whole or not at all, and its folder where there is none."""
    check_target(path)
    draft = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(content, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise UnmaskError(f"cannot write {path}: {error.strerror or error}") from None


def check_target(path: Path) -> None:
    """Refuses a path that cannot be a file, before anything is computed for it."""
    if path.is_dir() or not path.name:
        raise UnmaskError(f"cannot write {path}: it is a folder")


def _step(data: Any, where: str, number: int) -> TraceStep:
    step = TraceStep(**fields(data, _STEP, where))
    if step.forward != number:
        raise UnmaskError(f"{where}forward is {step.forward}, not {number}")
    size = len(step.positions)
    for name, values in (("tokens", step.tokens), ("confidences", step.confidences)):
        if len(values) != size:
            raise UnmaskError(f"{where}{name} has {len(values)} entries for {size} positions")
    if len(set(step.positions)) != size:
        raise UnmaskError(f"{where}positions names a position twice")
    return step


def _blocks(lm: LM, result: Generation, options: dict[str, Any]) -> tuple[int | None, int]:
    """Size of the method's blocks (None: no grid), and where the first one that reaches the answer begins."""
    cls = method_class(result.method)
    known = {*cls.__dataclass_fields__, *aliases(cls)}
    prompt = len(result.prompt_ids)
    lengths = [v for k, v in options.items() if COMMON.get(k, k) == "max_new_tokens" and v is not None]
    asked = lengths[0] if lengths else min(256, lm.model.config.max_positions - prompt)
    method = build(result.method, {k: v for k, v in options.items() if k in known})
    try:
        method = method.bind(lm.family, asked)
    except UnmaskError:  # a row of a ragged batch does not know the length that was decoded
        return None, 0
    size = getattr(method, "block_size", None)
    if size is None or isinstance(method, Verifying):  # drafts begin where the text ends, on no grid
        return None, 0
    if not isinstance(method, (Blockwise, Windows)):
        return (None if size >= asked else size), 0
    zero = torch.zeros(1)
    state = blank([result.prompt_ids], [method.limit(prompt, asked)], asked, lm.facts, Draw(zero, zero, zero, zero))
    begin = method.first_block(state) if isinstance(method, Blockwise) else method.origin(state)
    return size, -((prompt - int(begin)) % size)


def _pieces(lm: LM, ids: list[int]) -> list[str]:
    """What each id adds to the text."""
    detokenizer = Detokenizer(decoder(lm))
    pieces = [detokenizer.push([i]) for i in ids]
    if pieces:
        pieces[-1] += detokenizer.flush()
    return pieces


def _label(lm: LM, token: int) -> str:
    if lm.tokenizer is None:
        return str(token)
    label = lm.tokenizer.inner.decode([token], skip_special_tokens=False)
    return label if isinstance(label, str) else label[0]


def _confidence(value: float | None) -> float | None:
    """Six digits of a probability; softmax may give a hair more than 1."""
    return None if value is None or value != value else round(min(max(value, 0.0), 1.0), 6)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")
