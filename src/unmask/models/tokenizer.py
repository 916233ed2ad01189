"""Tokenizers of checkpoints: transformers' own classes on the checkpoint's files, never code from the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from unmask.errors import UnmaskError
from unmask.models.families import Family

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


class Tokenizer:
    """A transformers tokenizer (`inner`) and the chat template of its checkpoint."""

    def __init__(self, inner: PreTrainedTokenizerBase) -> None:
        self.inner = inner

    def encode_prompt(self, prompt: str | Sequence[Mapping[str, str]], *, raw: bool = False) -> list[int]:
        """Token ids of a string or of chat messages, ready for the model to answer.

        A string is wrapped as one user message where the checkpoint has a chat template, unless `raw`.
        """
        if isinstance(prompt, str):
            if not prompt.strip():
                raise UnmaskError("the prompt is empty; give at least one character")
            if raw or not self.inner.chat_template:
                return list(self.inner(prompt)["input_ids"])  # type: ignore[arg-type]
            prompt = [{"role": "user", "content": prompt}]
        if not self.inner.chat_template:
            raise UnmaskError("this checkpoint's tokenizer has no chat template; give a string instead of messages")
        messages: Any = [dict(m) for m in prompt]
        try:
            text = self.inner.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise UnmaskError(f"the chat template refuses these messages: {' '.join(str(error).split())}") from None
        # The template writes every special token itself.
        return list(self.inner(text, add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]

    def encode_answer(self, text: str) -> list[int]:
        """Token ids of a text as it stands, nothing put around it."""
        return list(self.inner(text, add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, special tokens left out."""
        text = self.inner.decode(ids, skip_special_tokens=True)
        return text if isinstance(text, str) else text[0]


def load_tokenizer(folder: Path, family: Family) -> Tokenizer | None:
    """The tokenizer in a checkpoint's folder, None if it has none.

    Dream and DiffuCoder name a tokenizer class of their own; it is Qwen2's with other special tokens, and read as that.

    Raises:
        UnmaskError: tokenizer files that transformers cannot read.
    """
    if not any((folder / name).is_file() for name in FILES):
        return None
    from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    # transformers warns of every model_type it does not know; only the tokenizer is wanted of it.
    logging.set_verbosity_error()
    try:
        if family.name == "dream" and not (folder / "tokenizer.json").is_file():
            return Tokenizer(Qwen2Tokenizer.from_pretrained(folder))
        if family.name == "dream":
            return Tokenizer(PreTrainedTokenizerFast.from_pretrained(folder))
        return Tokenizer(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UnmaskError(f"the tokenizer in {folder} cannot be read: {reason}") from None
    finally:
        logging.set_verbosity(verbosity)
