"""Ancestral sampling of a masked diffusion: each position is revealed at a random time, by one draw from its row.

Paper: "Simple and Effective Masked Diffusion Language Models" (MDLM, arXiv 2406.07524; official code
kuleshov-group/mdlm). The log-linear schedule reveals an open position in step t -> s with probability (t - s) / t, so
the times of revealing are independent and uniform: they are drawn before the first forward, and a step in which nothing
is revealed costs none ("first hitting", arXiv 2409.02908). N steps over L positions then take N (1 - (1 - 1/N)^L)
forwards, never more than L, under the same law. On purpose different from the official code: a Bernoulli draw for the
time and one categorical draw for the token instead of a float32 race between the vocabulary and the mask, which lowers
the temperature unseen; temperature 0 (the default here) takes the best token at random times. An end token is a token
like any other; the text is cut behind the first one afterwards.

The published checkpoints use GPT-2's tokenizer and are thought to come without its files: copy them into the folder, or
give ids; 50256 begins a text. [verify on first load]

    unmask generate kuleshov-group/mdlm-owt --ids 50256 --method mdlm --set steps=64 --temperature 1
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.decoding.forward import Forward, Kind, State, window
from unmask.decoding.method import Method, extend, need_full, option, register, resolve
from unmask.decoding.sampling import Scores, uniform

if TYPE_CHECKING:
    from unmask.models.families import Family

END = 1e-5  # the time grid goes from 1 to here; what is still open then is left to the clean-up
FLOOR = 1e-3  # log-linear schedule: alpha = 1 - (1 - FLOOR) t
REMOVED = -1e6  # log-probability of what cannot be

CLEAN_UPS = {"ancestral": "ancestral", "greedy": "greedy", "argmax": "greedy", "none": "none"}


def time_at(step: Tensor, steps: int) -> Tensor:
    """Time t at the start of a step, float64; 0 behind the clean-up, which is step `steps`."""
    return torch.where(step > steps, 0.0, 1 - (1 - END) * step.double() / steps)


def reveal_chance(t: Tensor, s: Tensor) -> Tensor:
    """Probability that a position that is open at time t is revealed until s < t: (alpha_s - alpha_t) / (1 - alpha_t)
    of the log-linear schedule."""
    return (t - s) / t


def noise_level(t: Tensor) -> Tensor:
    """sigma = -log(alpha) at time t, in nats."""
    return -torch.log1p(-(1 - FLOOR) * t)


def subs(logits: Tensor, tokens: Tensor, mask_id: int) -> Tensor:
    """Log-probabilities [..., V], float32, that never propose the mask and copy tokens [...] that are no mask."""
    removed = torch.zeros(logits.shape[-1], device=logits.device)
    removed[mask_id] = REMOVED
    seen = torch.full(logits.shape, REMOVED, device=logits.device).scatter_(-1, tokens.unsqueeze(-1), 0.0)
    return torch.where((tokens == mask_id).unsqueeze(-1), (logits.float() + removed).log_softmax(-1), seen)


def canvas_window(state: State, targets: Tensor) -> Forward:
    """The forward over the whole canvas, full attention, nothing cached; rows for `targets` [B, R], -1: unused."""
    index = torch.arange(state.canvas.shape[1], device=state.canvas.device).expand_as(state.canvas)
    return window(
        state,
        index,
        index < state.limit[:, None],
        torch.zeros_like(index),
        visible=torch.zeros_like(state.prompt),
        rows=(targets - state.facts.shift).clamp(min=0),
        targets=targets,
        kind=torch.full_like(state.prompt, Kind.DENOISE),
        cached=False,
    )


def response(state: State) -> Tensor:
    """The positions behind each prompt: [B, new_tokens]."""
    return state.prompt[:, None] + torch.arange(state.new_tokens, device=state.canvas.device)


@dataclass(frozen=True, kw_only=True)
class MdlmState(State):
    """reveal [B, N]: the step in which each position is revealed. now [B]: the step of the next forward."""

    reveal: Tensor
    now: Tensor


@register("mdlm", title="Simple and Effective Masked Diffusion Language Models", arxiv="2406.07524")
@dataclass(frozen=True, kw_only=True)
class Mdlm(Method[MdlmState]):
    """The whole canvas every forward; positions become tokens at times of their own, drawn from the seed."""

    cached = False
    fixed = "its positions are drawn at random, as the law of the sampler demands"

    steps: int | None = option(None, "steps of the time grid; None: one for each token", low=1)
    clean_up: str = option(
        "ancestral",
        "how positions still open at the end are decided: sampled, by the best token, or not (mask ids stay)",
        alias=("noise_removal",),
        choices=CLEAN_UPS,
    )
    skip_empty: bool = option(True, "no forward for steps in which nothing is revealed (never changes the text)")

    def bind(self, family: Family, new_tokens: int) -> Mdlm:
        need_full(self.name, family)
        return replace(self, steps=resolve(self.steps, new_tokens))

    @property
    def last(self) -> int:
        """The last step there is."""
        return resolve(self.steps, 1) - (self.clean_up == "none")

    def start(self, state: State) -> MdlmState:
        index = torch.arange(state.canvas.shape[1], device=state.canvas.device).expand_as(state.canvas)
        moment = uniform(state.draw.seed, torch.zeros_like(state.step), index, salt=1)
        steps = resolve(self.steps, 1)
        reveal = ((1 - moment) / (1 - END) * steps).long().clamp(max=steps)
        return self._advance(extend(MdlmState, state, reveal=reveal, now=torch.full_like(state.step, -1)))

    def _advance(self, state: MdlmState) -> MdlmState:
        """To the next step, or to the next one in which something is revealed."""
        ahead = state.open & (state.reveal > state.now[:, None])
        event = torch.where(ahead, state.reveal, self.last + 1).amin(-1)
        now = event if self.skip_empty else state.now + 1
        return replace(state, now=now, done=now > self.last)

    def plan(self, state: MdlmState) -> Forward:
        targets = response(state)
        due = state.open_at(targets) & (state.reveal.gather(1, targets) == state.now[:, None])
        # What is due comes first, so that a loop may run the head on no more than that.
        first = due.int().argsort(dim=-1, descending=True, stable=True)
        forward = canvas_window(state, torch.where(due, targets, -1).gather(1, first))
        # Numbers by the step, not by the forward: skipping changes no draw.
        return replace(forward, draws=state.now[:, None].expand_as(targets))

    def commit(self, state: MdlmState, forward: Forward, scores: Scores) -> MdlmState:
        late = (state.now[:, None] >= resolve(self.steps, 1)) & (self.clean_up == "greedy")
        token = torch.where(late, scores.greedy, scores.token)
        return self._advance(state.fill(forward.targets, token, forward.targets >= 0))
