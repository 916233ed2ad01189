"""What a family was trained to do: mask token, end tokens, token shift, block size, how a prompt is attended.

The checkpoint's own files decide. The small table below holds only what they leave out, and a token id from
it is used only if the tokenizer (or, without one, the size of the vocabulary) does not contradict it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from unmask.errors import UnmaskError, unknown
from unmask.models.config import family_name

Attention = Literal["causal", "block", "full"]
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Family:
    """Facts a decoder or a recipe needs. Token ids are None where the model has none."""

    name: str
    attention: Attention
    """The pattern the network was trained with."""
    prompt: Attention
    """How the published decoder lets prompt tokens attend each other."""
    shift: int
    """1: at a masked position p the prediction stands in row p - 1; 0: in row p itself."""
    next_token: bool
    """Rows of real tokens predict the next token, so autoregressive decoding is sound."""
    vocab_size: int
    mask_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    """The model's EOS first, then other ends of an answer."""
    block_size: int | None = None
    pad_id: int | None = None
    bos_id: int | None = None

    def __post_init__(self) -> None:
        for kind, index in [("mask", self.mask_id), *(("EOS", i) for i in self.eos_ids)]:
            if index is not None and not 0 <= index < self.vocab_size:
                raise UnmaskError(f"{kind} token id {index} is outside the vocabulary of {self.vocab_size}")

    def override(
        self,
        *,
        mask_token_id: int | None = None,
        eos_token_id: int | tuple[int, ...] | list[int] | None = None,
        block_size: int | None = None,
    ) -> Family:
        """A copy with the given facts replaced; None keeps what there is.

        Raises:
            UnmaskError: an id outside the vocabulary, or a block size below 1.
        """
        if block_size is not None and block_size < 1:
            raise UnmaskError(f"block_size must be at least 1, got {block_size}")
        return replace(
            self,
            mask_id=self.mask_id if mask_token_id is None else mask_token_id,
            eos_ids=self.eos_ids if eos_token_id is None else tuple(_ids(eos_token_id)),
            block_size=self.block_size if block_size is None else block_size,
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the table: behaviour, and (text, id) of tokens the config does not name."""

    attention: Attention
    prompt: Attention
    shift: int
    next_token: bool
    mask: tuple[str, int] | None = None
    mask_is_last: bool = False
    """The mask is a row appended to the tokenizer's vocabulary."""
    stops: tuple[tuple[str, int], ...] = ()
    block_size: int | None = None


_AR = Entry("causal", "causal", shift=1, next_token=True)
_IM_END = ("<|im_end|>", 151645)
_ENDOFTEXT = ("<|endoftext|>", 151643)
_LING_MASK, _LING_END = ("", 156895), ("<|endoftext|>", 156892)

TABLE: dict[str, Entry] = {
    # transformers' own classes; a chat model's generation_config.json names its stop tokens.
    "qwen2": _AR,
    "qwen3": _AR,
    "llama": _AR,
    # GSAI-ML/LLaDA-8B-Instruct config.json and tokenizer; arXiv 2502.09992. <|eot_id|> ends a chat turn.
    "llada": Entry(
        "full",
        "full",
        shift=0,
        next_token=False,
        mask=("<|mdm_mask|>", 126336),
        stops=(("<|endoftext|>", 126081), ("<|eot_id|>", 126348)),
    ),
    # Dream-org/Dream-v0-Instruct-7B config.json (mask), chat template; arXiv 2508.15487. Shift of Qwen2.5.
    "dream": Entry("full", "full", shift=1, next_token=True, mask=("<|mask|>", 151666), stops=(_ENDOFTEXT, _IM_END)),
    # Efficient-Large-Model/Fast_dLLM_v2_7B: mask from generation code, bd_size in config; arXiv 2509.26328.
    "fast-dllm-v2": Entry(
        "block", "block", shift=1, next_token=True, mask=("|<MASK>|", 151665), stops=(_IM_END,), block_size=32
    ),
    # JetLM/SDAR chat models and TraDo: generation_config stops at 151645 too; mask 151669; arXiv 2510.06303.
    "sdar": Entry(
        "block",
        "block",
        shift=0,
        next_token=False,
        mask=("<|MASK|>", 151669),
        stops=(_ENDOFTEXT, _IM_END),
        block_size=4,
    ),
    # tencent/WeDLM: mask_token_id null in config, 151665 in the engine; its example stops on both.
    "wedlm": Entry("causal", "causal", shift=0, next_token=True, mask=("", 151665), stops=(_ENDOFTEXT, _IM_END)),
    # inclusionAI/LLaDA-MoE-7B-A1B: ids as in inclusionAI/dInfer, the config has no mask; arXiv 2509.24389.
    "llada-moe": Entry("full", "full", shift=0, next_token=False, mask=_LING_MASK, stops=(_LING_END,)),
    # inclusionAI/LLaDA2.0 and 2.1, mini and flash: blocks and ids as in their generation code; arXiv 2512.15745.
    "llada2": Entry("block", "block", shift=0, next_token=False, mask=_LING_MASK, stops=(_LING_END,), block_size=32),
    # kuleshov-group/mdlm-owt and bd3lm-owt: GPT-2's 50257 tokens, then the mask; <|endoftext|> begins and ends a text.
    "mdlm": Entry("full", "full", shift=0, next_token=False, mask_is_last=True, stops=(("<|endoftext|>", 50256),)),
    "bd3lm": Entry("block", "block", shift=0, next_token=False, mask_is_last=True, stops=(("<|endoftext|>", 50256),)),
}


def resolve(
    config_json: Json, generation_config_json: Json | None = None, tokenizer_facts: Json | None = None
) -> Family:
    """The facts of one checkpoint.

    Args:
        config_json: contents of config.json.
        generation_config_json: contents of generation_config.json, if there is one.
        tokenizer_facts: `hub.read_tokenizer_facts`, if there are tokenizer files.

    Raises:
        UnmaskError: unknown family, or an id in the config outside the vocabulary.
    """
    name = family_name(config_json)
    if name not in TABLE:
        raise unknown("checkpoint family", name, TABLE)
    entry = TABLE[name]
    vocab = config_json.get("embedding_size") or config_json["vocab_size"]
    generation = generation_config_json or {}
    tokens: Mapping[str, int] | None = (tokenizer_facts or {}).get("tokens")
    stated = [*_ids(config_json.get("eos_token_id")), *_ids(generation.get("eos_token_id"))]
    stops = [_fitting(text, index, tokens, vocab) for text, index in entry.stops]
    return Family(
        name=name,
        attention=entry.attention,
        prompt=entry.prompt,
        shift=entry.shift,
        next_token=entry.next_token,
        vocab_size=vocab,
        mask_id=_mask(entry, config_json, generation, tokenizer_facts, vocab),
        eos_ids=tuple(dict.fromkeys(i for i in [*stated, *stops] if i is not None)),
        block_size=config_json.get("bd_size") or config_json.get("block_size") or entry.block_size,
        pad_id=_first(config_json.get("pad_token_id"), generation.get("pad_token_id")),
        bos_id=_first(config_json.get("bos_token_id"), generation.get("bos_token_id")),
    )


def _mask(entry: Entry, config: Json, generation: Json, tokenizer: Json | None, vocab: int) -> int | None:
    stated = _first(config.get("mask_token_id"), generation.get("mask_token_id"))
    if stated is not None:
        return stated
    tokens: Mapping[str, int] | None = (tokenizer or {}).get("tokens")
    own = (tokens or {}).get((tokenizer or {}).get("mask_token") or "")
    if own is not None and own < vocab:
        return own
    if entry.mask_is_last:
        return vocab - 1
    if entry.mask is None:
        return None
    text, index = entry.mask
    named = (tokens or {}).get(text)
    # The mask may be an embedding row that the tokenizer does not know (Fast-dLLM v2, WeDLM).
    return named if named is not None and named < vocab else index if index < vocab else None


def _fitting(text: str, index: int, tokens: Mapping[str, int] | None, vocab: int) -> int | None:
    """The id of a stop token: by its text if the tokenizer is known, else the table's if it exists."""
    if tokens is not None:
        index = tokens.get(text, vocab)
    return index if index < vocab else None


def _first(*values: int | None) -> int | None:
    return next((v for v in values if v is not None), None)


def _ids(value: Any) -> Iterator[int]:
    """Token ids of a config entry that holds one, several or none."""
    if isinstance(value, (list, tuple)):
        yield from (int(v) for v in value)
    elif value is not None:
        yield int(value)
