"""Reward-guided ancestral sampling (RGAS): MDLM's sampler steered by DiDi-Instruct's discriminator.

Paper: "Ultra-Fast Language Generation via Discrete Diffusion Divergence Instruct" (arXiv 2509.25035; official code
haoyangzheng-ai/didi-instruct, the sampler of 2025-10). Early steps tilt the student's log-probabilities along the
gradient of the discriminator's score of the expected canvas; late steps draw several candidates from one forward and
keep one with probability softmax(score). On purpose different from the official code: the student is called at noise
level 0 with the mask removed (as it was trained), the gradient is taken for the logits alone, candidates share their
probabilities instead of copying them, positions are revealed by a Bernoulli draw (see `mdlm`).

A tilted step costs a discriminator forward and its backward, a re-ranked one `candidates` discriminator forwards; the
counters hold the student's forwards, as the paper's. Gradients and the choice of the phase need the host: eager loop
only. A student without its discriminator is sampled by method mdlm.

    unmask generate FOLDER --ids 50256 --method didi --temperature 1 --set discriminator=FOLDER
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from unmask.attention import Attend
from unmask.attention.dense import DenseAttention
from unmask.decoding.forward import Forward, State
from unmask.decoding.mdlm import canvas_window, noise_level, response, reveal_chance, subs, time_at
from unmask.decoding.method import Method, need_full, option, register
from unmask.decoding.sampling import Scores, score, uniform
from unmask.errors import UnmaskError
from unmask.layout import PAD, Layout
from unmask.models.discriminator import find_discriminator, load_discriminator

if TYPE_CHECKING:
    from unmask.models.families import Family


class Scorer(Protocol):
    """What scores canvases: `models.discriminator.Discriminator`, or anything that is called like it."""

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings [B, W, C] of ids [B, W], or expected ones under softmax of real numbers [B, W, V]."""
        ...

    def __call__(self, embeddings_BWC: Tensor, sigma_B: Tensor, positions_BW: Tensor, attend: Attend) -> Tensor:
        """Logits [B, W], higher for what is nearer to the target."""
        ...


@register("didi", title="Discrete Diffusion Divergence Instruct (guided sampler)", arxiv="2509.25035")
@dataclass(frozen=True, kw_only=True)
class Didi(Method[State]):
    """Ancestral steps over the whole canvas: tilted ones first, re-ranked ones after."""

    cached = False
    no_engine = "it asks a second network for gradients"
    fixed = "its positions are drawn at random, as the law of the sampler demands"

    discriminator: Any = option(None, "checkpoint folder or safetensors file that holds the discriminator")  # noqa: RUF009
    steps: int = option(16, "steps of the time grid", low=1)
    rerank_ratio: float = option(0.5, "share of the steps, the last ones, that are re-ranked", low=0.0, high=1.0)
    candidates: int = option(4, "draws a re-ranked step chooses from", alias=("M",), low=1)
    guidance_start: float = option(30.0, "weight of the gradient in the first step", low=0.0)
    guidance_end: float = option(40.0, "weight of the gradient in the last tilted step", low=0.0)
    rerank_scale: float = option(1.0, "factor on the scores candidates are chosen by", low=0.0)

    def bind(self, family: Family, new_tokens: int) -> Didi:
        need_full(self.name, family)
        if family.shift:
            raise UnmaskError(f"didi: this {family.name} model predicts the next position; use masked or mdlm")
        if self.discriminator is None:
            raise UnmaskError("didi: needs discriminator=..., its folder or file; without one use mdlm")
        if callable(self.discriminator):
            return self
        if not isinstance(self.discriminator, (str, Path)):
            raise UnmaskError(f"didi: discriminator must be a folder, a file or a scorer, not {self.discriminator!r}")
        return replace(self, discriminator=str(find_discriminator(self.discriminator)))

    @property
    def tilted(self) -> int:
        """How many steps are tilted."""
        return int(self.steps * (1 - self.rerank_ratio))

    def start(self, state: State) -> State:
        return state

    def plan(self, state: State) -> Forward:
        return canvas_window(state, response(state))

    def adjust(self, state: State, forward: Forward, logits: Tensor) -> tuple[State, Tensor]:
        early = state.step < self.tilted
        if not bool(early.any()):
            return state, logits
        masked = torch.full_like(forward.targets, state.facts.mask_id)
        log_probs = subs(logits, masked, state.facts.mask_id)
        judge = self.judge(state.canvas.device)
        gradient = reward_gradient(
            scores_of(judge, forward.layout, noise_level(time_at(state.step, self.steps))),
            judge.embed,
            forward.tokens,
            forward.targets,
            state.open_at(forward.targets),
            log_probs,
        )
        ramp = state.step / max(self.tilted - 1, 1)
        weight = self.guidance_start + (self.guidance_end - self.guidance_start) * ramp
        return state, torch.where(early[:, None, None], log_probs + weight[:, None, None] * gradient, logits)

    def commit(self, state: State, forward: Forward, scores: Scores) -> State:
        t, s = (time_at(step, self.steps) for step in (state.step, state.step + 1))
        late = (state.step >= self.tilted) & (state.step < self.steps)
        count = self.candidates if bool(late.any()) else 1
        drawn = [self._candidate(state, forward, scores, reveal_chance(t, s), i) for i in range(count)]
        picked = drawn[0]
        if count > 1:
            canvas = torch.stack([c.canvas for c in drawn])
            chosen = torch.where(late, self._choose(state, forward, canvas, noise_level(s)), 0)
            of_row = torch.arange(len(chosen), device=chosen.device)
            is_open = torch.stack([c.open for c in drawn])
            picked = replace(state, canvas=canvas[chosen, of_row], open=is_open[chosen, of_row])
        return replace(picked, done=state.step >= self.steps)

    def _candidate(self, state: State, forward: Forward, scores: Scores, chance: Tensor, index: int) -> State:
        """One draw of the step, all from the same logits; number 0 is what the plain sampler would do."""
        number = state.step + index * (self.steps + 1)
        token = scores.token
        if index:
            token = score(scores.logits, self.score_rule(state), state.draw, number, forward.targets).token
        moment = uniform(state.draw.seed, number, forward.targets, salt=1)
        return state.fill(forward.targets, token, (moment < chance[:, None]) & state.open_at(forward.targets))

    def _choose(self, state: State, forward: Forward, canvas: Tensor, sigma: Tensor) -> Tensor:
        """The number of the candidate kept [B], of canvases [M, B, N]."""
        judge, width = self.judge(canvas.device), forward.tokens.shape[1]
        total = candidate_scores(judge, forward.layout, sigma, canvas[..., :width])
        share = (self.rerank_scale * total).softmax(-1).double().cumsum(-1)
        u = uniform(state.draw.seed, state.step, torch.zeros_like(state.prompt)[:, None], salt=2)
        return (u * share[:, -1:] >= share).sum(-1)

    def judge(self, device: torch.device) -> Scorer:
        """The discriminator, loaded to the device when it was named by its file."""
        given = self.discriminator
        return load_discriminator(given, device) if isinstance(given, str) else given


def scores_of(judge: Scorer, layout: Layout, sigma: Tensor) -> Callable[[Tensor], Tensor]:
    """The discriminator on canvases of this layout [B, W] at the noise level [B]: embeddings to logits [B, W]."""
    attend = DenseAttention(layout)
    return lambda embeddings: judge(embeddings, sigma, layout.positions, attend)


def candidate_scores(judge: Scorer, layout: Layout, sigma: Tensor, canvas: Tensor) -> Tensor:
    """Scores [B, M] of M canvases [M, B, W] of each row, summed over all their positions, at the noise level [B]."""
    count = len(canvas)
    every = layout.map(lambda x: x.repeat(count, 1))
    scores = scores_of(judge, every, sigma.repeat(count))(judge.embed(canvas.flatten(0, 1)))
    return torch.where(every.segment != PAD, scores, 0.0).sum(-1).view(count, -1).T


def reward_gradient(
    judge: Callable[[Tensor], Tensor],
    embed: Callable[[Tensor], Tensor],
    tokens: Tensor,
    targets: Tensor,
    is_open: Tensor,
    logits: Tensor,
) -> Tensor:
    """Gradient [B, R, V] of the score, summed over the open positions, for their logits; each entry at most 1 in size.

    The discriminator sees the expected embedding at open positions, tokens elsewhere.

    Args:
        judge: embeddings [B, W, C] to scores [B, W].
        embed: ids [B, W], or logits [B, R, V], to embeddings.
        tokens: [B, W], window columns equal to canvas positions.
        targets, is_open: [B, R], the positions the logits speak of.
        logits: [B, R, V].
    """
    with torch.enable_grad():
        free = logits.detach().clone().requires_grad_()
        hard, soft = embed(tokens), embed(free)
        at = targets[..., None].expand_as(soft)
        mixed = hard.scatter(1, at, torch.where(is_open[..., None], soft, hard.gather(1, at)))
        total = torch.where(is_open, judge(mixed).gather(1, targets), 0.0).sum()
        (gradient,) = torch.autograd.grad(total, free)
    return torch.where(is_open[..., None], gradient, 0.0).clamp(-1, 1)
