"""Rows of text, of a prompt and its response, or of a whole conversation, as (prompt, answer) texts with exact spans.

The checkpoint's chat template alone decides what stands around an answer. An answer begins where the prompt ends that
the model is given when it decodes (`add_generation_prompt`), and ends with the token by which the template closes the
turn, or with the tokenizer's end token where it closes none. Prompt and answer are encoded apart, as when decoding.

A conversation gives one sample for each of the assistant's turns, all before it being its prompt: exact for every
recipe, as no answer sees a later one, and templates that show earlier turns differently (without their thoughts) are
followed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from unmask.errors import UnmaskError
from unmask.training.config import Turns

Row = Mapping[str, Any]
COLUMNS = {"messages": ("messages",), "prompt": ("prompt", "response"), "text": ("text",)}
"""What a row may hold: `messages` (role and content of each), `prompt` and `response`, or a plain `text`."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and its answer. raw: the prompt is encoded as the tokenizer encodes a text, begin token and all."""

    prompt: str
    answer: str
    raw: bool = False


@dataclass(frozen=True)
class Chat:
    """Makes samples of rows.

    Args:
        tokenizer: of transformers.
        turns: which of the assistant's turns are learnt, each or the last one.
    """

    tokenizer: Any
    turns: Turns = "each"

    def pairs(self, row: Row) -> list[Pair]:
        """The samples of a row; the prompt is empty for plain text.

        Raises:
            UnmaskError: what is wrong with the row, to stand behind its number.
        """
        if "messages" in row:
            return self._conversation(_messages(row["messages"]))
        if "text" in row:
            return [Pair("", _text("text", row["text"]) + self.tokenizer.eos_token, raw=True)]
        prompt, response = row["prompt"], _text("response", row["response"])
        if isinstance(prompt, str) and not self.tokenizer.chat_template:
            return [Pair(prompt, response + self.tokenizer.eos_token, raw=True)]
        asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _messages(prompt)
        return self._conversation([*asked, {"role": "assistant", "content": response}], last=True)

    def _conversation(self, messages: Sequence[Row], last: bool = False) -> list[Pair]:
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i > 0]
        if not turns:
            raise UnmaskError("has no answer: no message of the assistant behind another one")
        if last or self.turns == "last":
            turns = turns[-1:]
        return [self._turn(messages, i) for i in turns]

    def _turn(self, messages: Sequence[Row], i: int) -> Pair:
        content = messages[i].get("content")
        if not isinstance(content, str) or not content.strip():
            raise UnmaskError(f"has no answer: message {i + 1} of the assistant is empty")
        before = self._rendered(messages[:i], ask=True)
        whole = self._rendered(messages[: i + 1], ask=False)
        if whole.startswith(before):
            return Pair(before, self._closed(whole[len(before) :]))
        # A template may show the newest message alone; then its head must still be the one that decoding gives.
        head, found, tail = whole.rpartition(content.strip())
        if not found or not head or not before.endswith(head):
            raise UnmaskError(f"has no exact answer: the chat template does not show message {i + 1} behind its prompt")
        return Pair(before, self._closed(content.strip() + tail))

    def _rendered(self, messages: Sequence[Row], ask: bool) -> str:
        if not self.tokenizer.chat_template:
            raise UnmaskError("holds chat messages, and the tokenizer has no chat template")
        try:
            listed = [dict(message) for message in messages]
            return self.tokenizer.apply_chat_template(listed, tokenize=False, add_generation_prompt=ask)
        except (TemplateError, TypeError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise UnmaskError(f"is refused by the chat template: {reason}") from None

    def _closed(self, answer: str) -> str:
        """The answer up to the special token that closes it."""
        names = "|".join(map(re.escape, self.tokenizer.all_special_tokens))
        closing = re.search(rf"({names})\s*$", answer)
        return answer[: closing.end(1)] if closing else answer + self.tokenizer.eos_token


def _messages(value: Any) -> list[Row]:
    """Messages without the empty entries that tables put where other rows have one."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(m, Mapping) for m in value):
        raise UnmaskError(f"holds no list of messages: {str(value)[:60]!r}")
    found: list[Row] = [{k: v for k, v in message.items() if v is not None} for message in value]
    if any(not isinstance(message.get("role"), str) for message in found):
        raise UnmaskError("has a message without a role")
    return found


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UnmaskError(f"has no answer: {name} is {value!r:.60}")
    if not value.strip():
        raise UnmaskError(f"has no answer: {name} is empty")
    return value
