"""Base of the methods that verify a draft of several tokens at once, exact against autoregressive decoding.

A position's token is drawn under a number of the position (`Forward.draws`), so it is a function of the tokens before
it, sampled or greedy: a drafted token holds exactly where it equals what its predecessor's row says, and the text is
that of `autoregressive` with the same weights and seed. Over all seeds a token x that was drafted without regard to
them holds with its probability p(x), and what replaces it follows p without x: the rule of speculative sampling.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.decoding.drafts import DRAFTS
from unmask.decoding.forward import Forward, Kind, State, window
from unmask.decoding.method import Method, need_next_token, option

if TYPE_CHECKING:
    from typing_extensions import Self

    from unmask.models.families import Family


@dataclass(frozen=True, kw_only=True)
class LineState(State):
    """last [B]: position of the newest token; slots before it are permanent. line [B, L]: that token and the guesses
    for the positions behind it."""

    last: Tensor
    line: Tensor


V = TypeVar("V", bound=LineState)


@dataclass(frozen=True, kw_only=True)
class Verifying(Method[V]):
    """A method whose forwards run [newest token, guesses] under a causal mask."""

    fixed: ClassVar[str] = "drafts are verified from left to right"
    any_length: ClassVar[bool] = True

    block_size: int = option(
        64, "tokens drafted at a time, the newest one included", alias=("n_token_seq_len", "jacobi_block_len"), low=1
    )
    prefill_draft: str = option(
        "verify",
        "a draft run with the prompt: verified, only updated (official codes; a forward more at times), or none",
        choices=("verify", "update", "none"),
    )
    drafts: Any = option("context", "where drafts begin", specs=DRAFTS)  # noqa: RUF009

    def bind(self, family: Family, new_tokens: int) -> Self:
        need_next_token(self.name, family)
        return self

    def grain(self) -> int | None:
        return 1

    def begin(self, state: State, width: int) -> tuple[State, Tensor, Tensor]:
        """The state with what the draft source needs, and `last` and `line` before the first forward."""
        state = self.drafts.start(state)
        last = state.prompt - 1
        place = last[:, None] + torch.arange(width, device=last.device)
        return state, last, self.headed(state, last, self.drafts(state, place))

    def headed(self, state: State, last: Tensor, line: Tensor) -> Tensor:
        """The line [B, L] with the newest token in front."""
        return torch.cat([state.tokens_at(last[:, None]), line[:, 1:]], dim=1)

    def prefill(self, state: V) -> Forward:
        """The prompt and a draft of one block behind it."""
        size = 1 if self.prefill_draft == "none" else self.block_size
        device = state.canvas.device
        index = torch.arange(state.longest + size - 1, device=device).expand(len(state.prompt), -1)
        column = index - state.last[:, None]
        rows = state.last[:, None] + torch.arange(size, device=device)
        inside = rows + 1 < state.limit[:, None]
        forward = window(
            state,
            index,
            (column < size) & (index + 1 < state.limit[:, None]),
            index,
            visible=torch.zeros_like(state.last),
            rows=torch.where(inside, rows, 0),
            targets=torch.where(inside, rows + 1, -1),
            kind=torch.full_like(state.last, Kind.PREFILL),
        )
        tokens = torch.where(column < 0, forward.tokens, picked(state.line, column))
        return replace(forward, tokens=tokens, draws=self.numbers(state, forward.targets))

    def numbers(self, state: V, targets: Tensor) -> Tensor:
        """The numbers [B, R] of the draws for positions `targets` [B, R]: those of autoregressive decoding."""
        return targets - state.prompt[:, None] - 1

    def advance(self, forward: Forward, held: Tensor) -> Tensor:
        """How many tokens become final [B] when `held` [B] guesses hold: the row of the last of them gives one more."""
        ignored = (forward.kind == Kind.PREFILL) & (self.prefill_draft == "update")
        return torch.where(ignored, 0, held) + 1


def picked(x: Tensor, column: Tensor) -> Tensor:
    """x [B, L] at `column` [B, W], anything outside of it."""
    return x.gather(1, column.clamp(0, x.shape[1] - 1))


def widened(x: Tensor, width: int, value: int = 0) -> Tensor:
    """x [B, R] of a forward whose unused trailing columns were cut, at full width again."""
    return F.pad(x, (0, width - x.shape[1]), value=value)


def holding(line: Tensor, token: Tensor, used: Tensor) -> Tensor:
    """How many leading guesses hold [...]: those that the rows before them say too.

    Args:
        line: [..., L], the newest token and the guesses.
        token: [..., L], what each row says of the next position.
        used: [..., L], columns that were run.
    """
    right = (line[..., 1:] == token[..., :-1]) & used[..., 1:]
    return right.long().cumprod(-1).sum(-1)


def moved(x: Tensor, used: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    """x [B, L] moved to the left by `by` [B] columns, and whether there was one to take: bool [B, L]."""
    source = by[:, None] + torch.arange(x.shape[1], device=x.device)
    inside = (source >= 0) & (source < x.shape[1])
    return picked(x, source), inside & picked(used, source)
