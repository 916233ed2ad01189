"""The state of a chat, and one turn of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from unmask.cli.options import Settings
from unmask.cli.output import Output, answer
from unmask.errors import UnmaskError
from unmask.lm import LM

Message = dict[str, str]
ANSWER = 256  # tokens kept free for an answer whose length is not set, where the context is large enough


@dataclass
class Session:
    """messages: turns so far, the system message not among them; asked: the last text of the user."""

    lm: LM
    name: str
    settings: Settings
    out: Output
    where: dict[str, Any]
    """How checkpoints are loaded: adapter, device, dtype."""
    system: str = ""
    messages: list[Message] = field(default_factory=list)
    asked: str = ""
    retries: int = 0
    examples: int = 0

    @property
    def method(self) -> str:
        """The method of the next answer."""
        return self.settings.method or self.lm.default_method

    def conversation(self, text: str) -> list[Message]:
        """All messages with `text` as the newest."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, *self.messages, {"role": "user", "content": text}]

    def ask(self, text: str) -> None:
        """Answers `text` and remembers both; neither if it fails or is interrupted."""
        self.asked = text
        self.make_room(text)
        result = answer(self.lm, [self.conversation(text)], self.out, self.arguments())[0]
        self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": result.text}]

    def arguments(self, settings: Settings | None = None) -> dict[str, Any]:
        """Keyword arguments for LM.generate; a retry draws with another seed."""
        arguments = (settings or self.settings).arguments(self.lm)
        return arguments | {"seed": arguments.get("seed", 0) + self.retries}

    def make_room(self, text: str) -> None:
        """Drops the oldest turns until the conversation and its answer fit the context, and says so."""
        context = self.lm.model.config.max_positions
        wanted = self.settings.common.get("max_new_tokens") or min(ANSWER, context // 2)
        dropped = 0
        while self.messages and len(self.lm.encode(self.conversation(text))) + wanted > context:
            del self.messages[:2]
            dropped += 1
        if dropped:
            turns = "the oldest turn" if dropped == 1 else f"the {dropped} oldest turns"
            self.out.note(f"dropped {turns}: the context holds {context} tokens")

    def switch(self, method: str) -> None:
        """Another method; options that it does not take are dropped, and named."""
        self.settings, lost = self.settings.for_method(method)
        if lost:
            self.out.note(f"dropped {', '.join(lost)}: {method} has no such option")


def check_chat(lm: LM) -> None:
    """Refuses a checkpoint that cannot hold a conversation."""
    if lm.tokenizer is None:
        raise UnmaskError(f"{lm.checkpoint.folder} has no tokenizer, which a chat needs")
    if not lm.tokenizer.inner.chat_template:
        raise UnmaskError(
            f"the tokenizer in {lm.checkpoint.folder} has no chat template, which a chat needs; use generate"
        )
