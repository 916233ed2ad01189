"""What passes between a method and the loop: the request state and the forward it plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Final, TypeVar

import torch
from torch import Tensor

from unmask.decoding.sampling import Draw
from unmask.layout import PAD, Layout

if TYPE_CHECKING:
    from typing_extensions import Self


class Kind:
    """What a forward is for, per row. Counted by the loop, never by a method.

    Plain whole numbers: torch.compile takes a tensor compared with a member of an enumeration for False.
    """

    PREFILL: Final = 0  # the prompt
    DENOISE: Final = 1  # predicts open positions (or the next token) with exact keys
    WINDOW: Final = 2  # predicts part of a window against keys that may be stale
    COMMIT: Final = 3  # makes the keys of finished tokens permanent (and may predict as well)
    REFRESH: Final = 4  # recomputes approximate keys of the whole canvas
    DRAFT: Final = 5  # verifies drafts


KINDS = tuple(name.lower() for name in vars(Kind) if name.isupper())
"""Their names, by number."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a method must know of the checkpoint.

    Attributes:
        mask_id: the token that stands for an open position, -1 if the model has none.
        eos_ids: end tokens, the model's EOS first, then ends of a turn.
        shift: 1 if the row at position i speaks of token i + 1, else 0.
    """

    mask_id: int
    eos_ids: tuple[int, ...]
    shift: int


@dataclass(frozen=True)
class Forward:
    """One model call for B rows of W window tokens, as tensors of fixed shape.

    Attributes:
        tokens: [B, W] ids.
        layout: [B, W] order, lane, segment (PAD: no token in this column) and RoPE positions.
        visible: [B], the leading cache slots the row reads, minus those it overwrites.
        store: [B, W], the slot a token's keys and values go to, -1 for none.
        rows: [B, R], window columns whose logits are wanted, -1 for the carried row.
        targets: [B, R], the canvas position each of them speaks of, -1 for an unused column.
        kind: [B], a `Kind` each.
        carry: [B, V], logits of the last permanent position, remembered from the forward that committed it.
        guide, guide_scale: [B, W] tokens of the unconditional view, and the weight w in zu + (1 + w)(z - zu).
        blend: [B, W, C], added to the input embeddings (a distribution mixed into open positions, `Scores.soft`).
        move: two [B, M] tensors, slots to copy keys and values from and to before the forward, -1 for none: how the
            accepted one of several drafts becomes permanent.
        draws: [B, R], the number under which each row's random draw is made; None: the number of the forward.
    """

    tokens: Tensor
    layout: Layout
    visible: Tensor
    store: Tensor
    rows: Tensor
    targets: Tensor
    kind: Tensor
    carry: Tensor | None = None
    guide: Tensor | None = None
    guide_scale: float = 0.0
    blend: Tensor | None = None
    move: tuple[Tensor, Tensor] | None = None
    draws: Tensor | None = None

    @property
    def valid(self) -> Tensor:
        """Which window columns hold a token: bool [B, W]."""
        return self.layout.segment != PAD


@dataclass(frozen=True, kw_only=True)
class State:
    """The rows being decoded. Methods extend it; every tensor has the rows first.

    Attributes:
        canvas: [B, N] token ids, the mask id at open positions (or a token that may still be edited).
        open: [B, N], still to be decided. A mask id inside the prompt is text, not open.
        prompt, end, limit: [B]. Positions [prompt, end) are returned, [prompt, limit) exist (whole blocks).
        step: [B], forwards since the prefill.
        done: [B], needs no more.
        draw: sampling settings of each row.
        new_tokens, longest: positions returned at most, length of the longest prompt; known on the host.
        reach: [B], where the engine looks after the load: how far a forward may look (see `Method.reaches`).
        memory: what selection and stop rules keep between forwards, rows first, under names of their own. A missing
            entry must mean the same as one of nothing but -1 (whole numbers) or 0.
    """

    facts: Facts
    canvas: Tensor
    open: Tensor
    prompt: Tensor
    end: Tensor
    limit: Tensor
    step: Tensor
    done: Tensor
    draw: Draw
    new_tokens: int
    longest: int
    reach: Tensor | None = None
    memory: dict[str, Tensor] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The state with the same change made to each tensor, those of the sampling settings too."""
        new = {f.name: change(value) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        memory = {name: change(value) for name, value in self.memory.items()}
        return replace(self, draw=self.draw.map(change), memory=memory, **new)

    def select(self, rows: Tensor) -> Self:
        """Keeps these rows (int64 indices)."""
        return self.map(lambda x: x[rows])

    def fill(self, targets: Tensor, tokens: Tensor, accept: Tensor) -> Self:
        """Writes tokens [B, R] to the positions targets [B, R] where accept [B, R] holds, and closes them."""
        rows, size = self.canvas.shape
        accept = accept & (targets >= 0) & (targets < self.limit[:, None])
        # What is not accepted goes to a place behind the canvas. In 32 bits: torch.compile leaves a scatter of 64 to a
        # kernel of its own.
        nothing = torch.full((rows, size + 1), -1, dtype=torch.int32, device=self.canvas.device)
        written = nothing.scatter(1, torch.where(accept, targets, size), tokens.int())[:, :size]
        hit = written >= 0
        return replace(self, canvas=torch.where(hit, written.long(), self.canvas), open=self.open & ~hit)

    def open_at(self, positions: Tensor) -> Tensor:
        """Whether positions [B, R] are open; False outside the canvas of the row."""
        inside = (positions >= 0) & (positions < self.limit[:, None])
        return self.open.gather(1, positions.clamp(0, self.canvas.shape[1] - 1)) & inside

    def tokens_at(self, positions: Tensor) -> Tensor:
        """Token ids at positions [B, R]; anything outside the canvas."""
        return self.canvas.gather(1, positions.clamp(0, self.canvas.shape[1] - 1))

    def within(self, most: int) -> int | Tensor:
        """How far a row may look that looks `most` far at most: that, or [B] where there is a load."""
        return most if self.reach is None else self.reach.clamp(1, most)

    def unfinished(self) -> Tensor:
        """Rows in which a position that is to be returned is still open: bool [B]."""
        index = torch.arange(self.canvas.shape[1], device=self.canvas.device)
        return (self.open & (index < self.end[:, None])).any(-1)

    def first_eos(self) -> Tensor:
        """The position of the first decided end token behind the prompt, N where there is none: int64 [B]."""
        size = self.canvas.shape[1]
        index = torch.arange(size, device=self.canvas.device)
        eos = torch.zeros_like(self.open)
        for i in self.facts.eos_ids:
            eos |= self.canvas == i
        eos &= ~self.open & (index >= self.prompt[:, None]) & (index < self.limit[:, None])
        return torch.where(eos, index, size).amin(-1)

    def settled(self) -> Tensor:
        """Rows whose text can no longer change: an end token with nothing open before it: bool [B]."""
        index = torch.arange(self.canvas.shape[1], device=self.canvas.device)
        eos = self.first_eos()
        pending = (self.open & (index < eos[:, None])).any(-1)
        return (eos < self.canvas.shape[1]) & ~pending


S = TypeVar("S", bound=State)


def window(
    state: State,
    positions: Tensor,
    valid: Tensor,
    order: Tensor,
    *,
    visible: Tensor,
    rows: Tensor,
    targets: Tensor,
    kind: Tensor,
    cached: bool = True,
) -> Forward:
    """A forward over canvas positions [B, W] whose slots are their positions; the usual shape of a plan.

    Columns where `valid` is False become padding: nothing sees or stores them.
    """
    zero = torch.zeros_like(positions)
    place = positions.clamp(0, state.canvas.shape[1] - 1)
    layout = Layout(order, zero, torch.where(valid, zero, PAD), place)
    store = torch.where(valid & cached, positions, -1)
    return Forward(state.tokens_at(positions), layout, visible, store, rows, targets, kind)


def prompt_window(state: State, length: Tensor, width: int, block: int, rows: Tensor, targets: Tensor) -> Forward:
    """The forward over the first `length` [B] of at most `width` prompt tokens, block-causal (`block` 1: causal)."""
    index = torch.arange(width, device=state.canvas.device).expand(len(length), -1)
    return window(
        state,
        index,
        index < length[:, None],
        index // block,
        visible=torch.zeros_like(length),
        rows=rows,
        targets=targets,
        kind=torch.full_like(length, Kind.PREFILL),
    )


def blank(
    prompts: list[list[int]], limits: list[int], new_tokens: int, facts: Facts, draw: Draw, width: int | None = None
) -> State:
    """The state before the first forward: prompts at the left, open positions behind, rows padded on the right.

    Args:
        prompts: token ids, none empty.
        limits: where the canvas of each row ends; at least prompt length + new_tokens.
        new_tokens: how many positions are to be returned at most.
        draw: sampling settings; its device is used.
        width: of the canvas; None: the largest limit.
    """
    device = draw.seed.device
    prompt = torch.tensor([len(p) for p in prompts], device=device)
    limit = torch.tensor(limits, device=device)
    canvas = torch.full((len(prompts), width or max(limits)), max(facts.mask_id, 0))
    for i, ids in enumerate(prompts):
        canvas[i, : len(ids)] = torch.tensor(ids)
    canvas = canvas.to(device)
    index = torch.arange(canvas.shape[1], device=device)
    return State(
        facts=facts,
        canvas=canvas,
        open=(index >= prompt[:, None]) & (index < limit[:, None]),
        prompt=prompt,
        end=prompt + new_tokens,
        limit=limit,
        step=torch.zeros_like(prompt),
        done=torch.zeros_like(prompt, dtype=torch.bool),
        draw=draw,
        new_tokens=new_tokens,
        longest=max(len(p) for p in prompts),
    )
