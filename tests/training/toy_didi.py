"""A student small enough to enumerate: 3 tokens at 3 places, whose every conditional is an entry of a table.

States are the 64 canvases of {0, 1, 2, mask = 3}; texts are the 27 of them without a mask. All laws are float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from unmask.decoding.mdlm import FLOOR, noise_level
from unmask.training.recipes.base import Batch, View
from unmask.training.recipes.didi_instruct import DidiInstruct
from unmask.training.states import States
from unmask.training.two_step import Draws

V, L, MASK = 3, 3, 3
STATES = torch.tensor(list(product(range(V + 1), repeat=L)))
TEXTS = torch.tensor(list(product(range(V), repeat=L)))
EMPTY = len(STATES) - 1
CLEAN = (STATES != MASK).all(-1)


def code(canvas: Tensor) -> Tensor:
    """The number of each canvas [..., 3] in STATES."""
    return (canvas * torch.tensor([16, 4, 1])).sum(-1)


def random_table(seed: int, scale: float = 1.0) -> Tensor:
    """Logits [64, 3, 3] of a student, float64."""
    return scale * torch.randn(len(STATES), L, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_law(seed: int, scale: float = 1.0) -> Tensor:
    """Probabilities [27]."""
    logits = scale * torch.randn(len(TEXTS), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return logits.softmax(-1)


def step_law(table: Tensor, chance: float) -> Tensor:
    """Probability [64, 64] of a step that reveals each masked place with this chance."""
    each = table.softmax(-1).double()
    each = torch.cat([each * chance, torch.full_like(each[..., :1], 1 - chance)], -1)
    moves = each[:, torch.arange(L), STATES]  # [from, to, place]
    same = (STATES[:, None] == STATES).double()
    return torch.where((STATES == MASK)[:, None], moves, same).prod(-1)


def text_law(table: Tensor, tau: float) -> Tensor:
    """The student's law [27] by two steps with the switch at tau."""
    return (step_law(table, 1 - tau)[EMPTY] @ step_law(table, 1.0))[CLEAN]


def corruption(t: float) -> Tensor:
    """Probability [27, 64] of each canvas that masking a text at time t gives."""
    hidden = (1 - FLOOR) * t
    kept = (TEXTS[:, None] == STATES).double() * (1 - hidden)
    return torch.where(STATES == MASK, hidden, kept).prod(-1)


def divergence(table: Tensor, target: Tensor, tau: float, t: float) -> Tensor:
    """KL of the student's corrupted law from the target's, without the canvases that hold no mask."""
    ours, theirs = (law @ corruption(t) for law in (text_law(table, tau), target))
    return (ours * (ours.log() - theirs.log()))[~CLEAN].sum()


def log_ratio(table: Tensor, target: Tensor, tau: float, t: float) -> Tensor:
    """log of target over student [64] after the corruption: what the best discriminator says."""
    ours, theirs = (law @ corruption(t) for law in (text_law(table, tau), target))
    return (theirs.log() - ours.log()).detach()


class Toy:
    """The `Models` of a table; the discriminator is a function of canvases and sigma, or a table [64]."""

    def __init__(
        self, table: Tensor, judge: Tensor | Callable[[Tensor, Tensor], Tensor], teacher: Tensor | None = None
    ):
        self.table, self.held, self.judge = table, teacher, judge

    def _states(self, table: Tensor, tokens: Tensor, index: Tensor | None) -> States:
        logits = torch.cat([table[code(tokens)], torch.full((*tokens.shape, 1), 3.0)], -1)
        rows = logits.flatten(0, 1)
        return States(rows if index is None else rows[index], lambda hidden: hidden, V + 1)

    def student(self, tokens: Tensor, layout: Any, index: Tensor | None = None) -> States:
        return self._states(self.table, tokens, index)

    def teacher(self, tokens: Tensor, layout: Any, index: Tensor | None = None) -> States:
        assert self.held is not None
        return self._states(self.held, tokens, index).detach()

    def module(self, name: str) -> nn.Module:
        assert name == "discriminator"
        return self  # type: ignore[return-value]

    def embed(self, tokens: Tensor) -> Tensor:
        return tokens

    def __call__(self, tokens: Tensor, sigma: Tensor, positions: Tensor, attend: Any) -> Tensor:
        said = self.judge(tokens, sigma) if callable(self.judge) else self.judge[code(tokens)]
        return said.unsqueeze(1).expand(tokens.shape)


def texts(count: int, law: Tensor | None = None, seed: int = 0) -> Batch:
    """A batch of texts, drawn from a law."""
    weights = torch.ones(len(TEXTS)) if law is None else law
    drawn = torch.multinomial(weights, count, replacement=True, generator=torch.Generator().manual_seed(seed))
    return Batch.of(TEXTS[drawn], TEXTS[drawn])


def plain(**options: Any) -> DidiInstruct:
    """The policy term alone, without any clipping."""
    free = {"reward_clip": 1e9, "advantage_clip": 0.0, "t0": 0.0, "label_smoothing": 0.0, "kl_beta": 0.0}
    return DidiInstruct(**{"mask_id": MASK, "entropy_beta": 0.0, **free, **options})


def every_path(tau: float, t: float) -> Draws:
    """All 6 ** 3 paths (each place revealed in step 1 or 2, as each token) times the 2 ** 3 corruptions."""
    choices = torch.tensor(list(product(product((0, 1), range(V), (0, 1)), repeat=L)))  # [N, place, choice]
    second, token, fake = (choices[..., i] for i in range(3))
    count = len(choices)
    return Draws(
        tau=torch.full((count,), tau),
        time=torch.full((count,), t),
        shown=second == 0,
        hidden=second == 1,
        left=torch.zeros(count, L, dtype=torch.bool),
        first=token,
        second=token,
        fake=fake == 1,
        real=fake == 1,
    )


def path_log_prob(table: Tensor, draws: Draws) -> Tensor:
    """log-probability [N] of each path's reveals and tokens, without its corruption."""
    tau, z = draws.tau.double(), torch.where(draws.shown, draws.first, MASK)
    first, second = (
        table[state].log_softmax(-1).gather(-1, token[..., None]).squeeze(-1)
        for state, token in ((torch.full((len(tau),), EMPTY), draws.first), (code(z), draws.second))
    )
    shown = first + torch.log1p(-tau)[:, None]
    return torch.where(draws.shown, shown, second + tau.log()[:, None]).sum(-1)


def corruption_prob(draws: Draws) -> Tensor:
    """Probability [N] of what each path's corruption masks."""
    hidden = (1 - FLOOR) * draws.time.double()[:, None]
    return torch.where(draws.fake, hidden, 1 - hidden).prod(-1)


def weighted(view: View, weights: Tensor) -> View:
    """The view with each row's weight multiplied."""
    return replace(view, extra={**view.extra, "weight": view.extra["weight"] * weights.float()})


def time_of(sigma: Tensor) -> Tensor:
    """The time whose noise level this is."""
    return -torch.expm1(-sigma) / (1 - FLOOR)


assert torch.allclose(time_of(noise_level(torch.tensor(0.3))), torch.tensor(0.3))
