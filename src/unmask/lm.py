"""`load` and `generate`: a checkpoint, its tokenizer and any method behind one object.

import unmask
lm = unmask.load("nano")
print(lm.generate("Tom has 3 boxes of 12 pens. How many pens does he have?").text)
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.decoding import Method, build
from unmask.decoding.counters import Counters
from unmask.decoding.forward import Facts
from unmask.decoding.loop import Row, TraceStep, decode
from unmask.decoding.sampling import Draw
from unmask.engine.keeper import Keeper
from unmask.errors import UnmaskError
from unmask.likelihood import Likelihood, Masks, greedy_answer, loglikelihood
from unmask.models.checkpoint import Checkpoint, load_model
from unmask.models.families import Family
from unmask.models.tokenizer import Tokenizer, load_tokenizer
from unmask.streaming import Feeder, Streamer

# The official codes' names for what every method takes.
COMMON = {"gen_length": "max_new_tokens", "max_gen_length": "max_new_tokens", "max_tokens": "max_new_tokens"}


@dataclass(frozen=True, slots=True)
class Generation:
    """What one request gave.

    text: decoded, special tokens left out (empty without a tokenizer). ids: up to and including the first end token.
    finish_reason: "stop" (an end token) or "length". counters: see `unmask.decoding.counters`. trace: one entry a
    forward if asked.
    """

    text: str
    ids: list[int]
    finish_reason: str
    counters: Counters
    prompt_ids: list[int]
    method: str
    trace: list[TraceStep] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: text, ids, finish reason, method and counters."""
        base = {
            "text": self.text,
            "ids": self.ids,
            "finish_reason": self.finish_reason,
            "method": self.method,
        }
        return base | self.counters.as_dict()


Message = Mapping[str, str]
Prompt = str | Sequence[int] | Sequence[Message] | Tensor


class LM:
    """A loaded checkpoint, ready to decode. Made by `load`."""

    def __init__(self, checkpoint: Checkpoint, tokenizer: Tokenizer | None) -> None:
        self.checkpoint = checkpoint
        self.model = checkpoint.model
        self.family = checkpoint.family
        self.tokenizer = tokenizer
        self.keeper = Keeper()

    @property
    def default_method(self) -> str:
        """The method used when none is named: that of the checkpoint's family."""
        return default_method(self.family)

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        method: str | None = None,
        max_new_tokens: int | None = None,
        temperature: float | Sequence[float] = 0.0,
        top_p: float | Sequence[float] = 1.0,
        top_k: int | Sequence[int] = 0,
        seed: int | Sequence[int] = 0,
        raw: bool = False,
        streamer: Streamer | Sequence[Streamer] | None = None,
        trace: bool = False,
        engine: bool | Mapping[str, Any] = False,
        **options: Any,
    ) -> Any:
        """Decodes one prompt or a batch.

        Args:
            prompt: a string, token ids, a list of chat messages, or a list of any of these for a ragged batch.
            method: see `unmask methods`; None takes the checkpoint's own.
            max_new_tokens: default 256, or what the context leaves.
            temperature, top_p, top_k, seed: one value, or one per prompt. Equal seeds give equal text in any batch.
            raw: take strings as they are; otherwise a tokenizer with a chat template wraps them as a user's message.
            streamer: a transformers streamer, or one per prompt of a batch.
            trace: record every forward.
            engine: decode in the GPU engine, which is kept for the next call of the same kind; arguments of `Engine`
                may be given ({"rows": 128}). Where there is no GPU for it, a warning says so once and the eager loop
                decodes.
            options: the method's, under our names or the official ones.

        Returns:
            A `Generation`, or a list of them for a batch.

        Raises:
            UnmaskError: bad input, in one line.
        """
        batch, single = self._batch(prompt)
        ids = [self.encode(p, raw=raw) for p in batch]
        for key in [k for k in options if k in COMMON]:
            if max_new_tokens is not None:
                raise UnmaskError(f"{key!r} and 'max_new_tokens' are the same option; give one of them")
            max_new_tokens = options.pop(key)
        new_tokens, chosen = self._room(ids, max_new_tokens, build(method or self.default_method, options))
        if engine is not False and self.keeper.can(self, trace):
            settings = self._settings(len(ids), temperature, top_p, top_k, seed)
            streamers = None if streamer is None else _per_row(streamer, len(ids), single)
            made = {} if engine is True else dict(engine)
            rows, seconds = self.keeper.decode(self, chosen, ids, new_tokens, settings, streamers, made)
            results = [self._result(p, r, new_tokens, seconds, chosen) for p, r in zip(ids, rows)]
            return results[0] if single else results
        observe = None if streamer is None else Feeder(_per_row(streamer, len(ids), single), ids)
        draw = self._draw(len(ids), temperature, top_p, top_k, seed)
        begun = time.perf_counter()
        rows = decode(
            self.model,
            chosen,
            ids,
            facts=self.facts,
            draw=draw,
            new_tokens=new_tokens,
            trace=trace,
            observe=observe,
        )
        seconds = time.perf_counter() - begun - (observe.seconds if observe else 0.0)
        results = [self._result(p, r, new_tokens, seconds, chosen) for p, r in zip(ids, rows)]
        return results[0] if single else results

    def loglikelihood(
        self,
        prompt: Prompt,
        answer: str | Sequence[int],
        *,
        samples: int = 128,
        batch: int = 8,
        seed: int = 0,
        masks: Masks | None = None,
        cfg_scale: float = 0.0,
        raw: bool = False,
    ) -> Likelihood:
        """How likely the model finds an answer: exactly for causal models, else an estimate of a lower bound.

        Args:
            prompt: see `generate`.
            answer: text (tokenized on its own, as it stands) or token ids, not empty.
            samples, batch, seed, masks, cfg_scale: of the estimate, see `unmask.likelihood.loglikelihood`.
            raw: see `generate`.

        Returns:
            A `Likelihood`: value in nats, whether it is exact, forwards spent.

        Raises:
            UnmaskError: bad input, in one line.
        """
        ids, wanted = self._pair(prompt, answer, raw)
        chosen = {"samples": samples, "batch": batch, "seed": seed, "masks": masks, "cfg_scale": cfg_scale}
        return loglikelihood(self.model, self.family, ids, wanted, **chosen)

    def is_greedy(
        self, prompt: Prompt, answer: str | Sequence[int], *, cfg_scale: float = 0.0, raw: bool = False
    ) -> bool:
        """Whether greedy decoding, one token a forward, gives this answer. Arguments: see `loglikelihood`."""
        ids, wanted = self._pair(prompt, answer, raw)
        return greedy_answer(self.model, self.family, ids, len(wanted), cfg_scale=cfg_scale)[0] == wanted

    def _pair(self, prompt: Prompt, answer: str | Sequence[int], raw: bool) -> tuple[list[int], list[int]]:
        """Token ids of a prompt and an answer that fit into the context together."""
        ids = self.encode(prompt, raw=raw)
        if isinstance(answer, str):
            if self.tokenizer is None:
                raise UnmaskError(f"{self.checkpoint.folder} has no tokenizer; give token ids")
            wanted = self.tokenizer.encode_answer(answer)
        else:
            wanted = [_token_id(i, self.model.config.vocab_size) for i in answer]
        if not wanted:
            raise UnmaskError("the answer is empty; give at least one token")
        context = self.model.config.max_positions
        if len(ids) + len(wanted) > context:
            raise UnmaskError(
                f"prompt ({len(ids)} tokens) and answer ({len(wanted)}) exceed the context of {context} tokens"
            )
        return ids, wanted

    @property
    def facts(self) -> Facts:
        """What methods know of the checkpoint."""
        mask = self.family.mask_id
        return Facts(-1 if mask is None else mask, tuple(self.family.eos_ids), self.family.shift)

    def encode(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """Token ids of one prompt (see `generate`)."""
        if isinstance(prompt, Tensor):
            prompt = prompt.tolist()
        if isinstance(prompt, str) or (len(prompt) and isinstance(prompt[0], Mapping)):
            if self.tokenizer is None:
                raise UnmaskError(f"{self.checkpoint.folder} has no tokenizer; give token ids")
            ids = self.tokenizer.encode_prompt(prompt, raw=raw)  # type: ignore[arg-type]
        else:
            ids = [_token_id(i, self.model.config.vocab_size) for i in prompt]
        if not ids:
            raise UnmaskError("the prompt is empty; give at least one token")
        return ids

    def _batch(self, prompt: Any) -> tuple[list[Any], bool]:
        if isinstance(prompt, Tensor):
            return (list(prompt), False) if prompt.dim() == 2 else ([prompt], True)
        if isinstance(prompt, str):
            return [prompt], True
        if len(prompt) == 0:
            raise UnmaskError("the prompt is empty; give at least one token")
        one_of_many = isinstance(prompt[0], (str, Sequence, Tensor))
        return (list(prompt), False) if one_of_many else ([prompt], True)

    def _room(self, prompts: list[list[int]], asked: int | None, method: Method[Any]) -> tuple[int, Method[Any]]:
        """How many tokens to decode at most, and the method bound to that: whole blocks must fit into the context."""
        context = self.model.config.max_positions
        longest = max(len(p) for p in prompts)
        if longest >= context:
            raise UnmaskError(f"the prompt has {longest} tokens, the context of this checkpoint is {context}")
        if asked is not None and (isinstance(asked, bool) or not isinstance(asked, int) or asked < 1):
            raise UnmaskError(f"max_new_tokens must be a whole number of at least 1, not {asked!r}")
        new_tokens = min(256, context - longest) if asked is None else asked
        if longest + new_tokens > context:
            raise UnmaskError(
                f"prompt ({longest} tokens) and max_new_tokens ({asked}) exceed the context of {context} tokens"
            )
        bound = method.bind(self.family, new_tokens)
        over = bound.limit(longest, new_tokens) - context
        if asked is None and 0 < over < new_tokens:  # the last block would not fit
            new_tokens -= over
            bound = method.bind(self.family, new_tokens)
            over = bound.limit(longest, new_tokens) - context
        if over > 0:
            raise UnmaskError(
                f"prompt ({longest} tokens) and max_new_tokens ({new_tokens}) take {context + over} positions in whole "
                f"blocks of {method.name}, the context is {context}"
            )
        return new_tokens, bound

    def _settings(self, rows: int, temperature: Any, top_p: Any, top_k: Any, seed: Any) -> dict[str, list[Any]]:
        """The sampling settings of each row, checked."""
        return {
            "temperature": _each("temperature", temperature, rows, 0.0, None, float),
            "top_p": _each("top_p", top_p, rows, 0.0, 1.0, float),
            "top_k": _each("top_k", top_k, rows, 0, None, int),
            "seed": _each("seed", seed, rows, 0, 2**62, int),
        }

    def _draw(self, rows: int, temperature: Any, top_p: Any, top_k: Any, seed: Any) -> Draw:
        given = self._settings(rows, temperature, top_p, top_k, seed)
        device, real = self.model.device, torch.float32
        return Draw(
            torch.tensor(given["temperature"], device=device, dtype=real),
            torch.tensor(given["top_p"], device=device, dtype=real),
            torch.tensor(given["top_k"], device=device),
            torch.tensor(given["seed"], device=device),
        )

    def _result(self, prompt: list[int], row: Row, new_tokens: int, seconds: float, method: Method[Any]) -> Generation:
        ids = row.canvas[:new_tokens]
        stop = next((i for i, t in enumerate(ids) if t in self.family.eos_ids), None)
        ids = ids if stop is None else ids[: stop + 1]
        row.counters.tokens, row.counters.seconds = len(ids), seconds
        text = "" if self.tokenizer is None else self.tokenizer.decode(ids)
        reason = "length" if stop is None else "stop"
        return Generation(text, ids, reason, row.counters, prompt, method.name, row.trace)


def _token_id(value: Any, vocab: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab:
        raise UnmaskError(f"{value!r} is not a token id (0 to {vocab - 1})")
    return value


def _each(name: str, value: Any, rows: int, low: float, high: float | None, kind: type) -> list[Any]:
    """`value` for each row, checked."""
    values = list(value) if isinstance(value, (list, tuple)) else [value] * rows
    if len(values) != rows:
        raise UnmaskError(f"{name} has {len(values)} values for {rows} prompts")
    for v in values:
        good = isinstance(v, (int, float) if kind is float else int) and not isinstance(v, bool)
        if not good or v != v or v < low or (high is not None and v > high) or v == float("inf"):
            span = f"at least {low}" if high is None else f"between {low} and {high}"
            raise UnmaskError(f"{name} must be {'a whole number ' if kind is int else ''}{span}, not {v!r}")
    return values


def _per_row(streamer: Any, rows: int, single: bool) -> list[Streamer]:
    if isinstance(streamer, (list, tuple)):
        if len(streamer) != rows:
            raise UnmaskError(f"{len(streamer)} streamers for {rows} prompts; give one per prompt")
        return list(streamer)
    if rows > 1 or not single:
        raise UnmaskError(f"one streamer for a batch of {rows}; give a list with one streamer per prompt")
    return [streamer]


def load(
    source: str | Path = "nano",
    *,
    adapter: str | Path | None = None,
    device: str | None = None,
    dtype: str | torch.dtype = "auto",
    mask_token_id: int | None = None,
    eos_token_id: int | list[int] | None = None,
) -> LM:
    """Loads a checkpoint: "nano" or "nano-ar" (shipped), a folder, or a hub id.

    Args:
        adapter: a PEFT LoRA adapter (folder or hub id), merged in float32.
        device: default "cuda" where there is one, else "cpu".
        dtype: "auto" (the checkpoint's on a GPU, float32 on a CPU), "float32", "bfloat16", "float16".
        mask_token_id, eos_token_id: replace what the checkpoint and its family say.

    Raises:
        UnmaskError: not found, damaged, of an unknown family, an adapter of another base.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    checkpoint = load_model(
        source,
        device=device,
        dtype=dtype,
        adapter=adapter,
        mask_token_id=mask_token_id,
        eos_token_id=eos_token_id,
    )
    return LM(checkpoint, load_tokenizer(checkpoint.folder, checkpoint.family))


def default_method(family: Family) -> str:
    """The method that a family's checkpoints were made for."""
    if family.attention == "full":
        return "mdlm" if family.name == "mdlm" else "masked"
    if family.attention == "causal":
        return "autoregressive" if family.shift or family.mask_id is None else "wedlm"
    if family.name == "llada2":
        return "llada2"
    return "fast_dllm_v2" if family.shift else "block_diffusion"
