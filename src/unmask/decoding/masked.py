"""Masked diffusion over the whole canvas: the vanilla samplers of LLaDA and Dream.

Papers: "Large Language Diffusion Models" (LLaDA, arXiv 2502.09992; official code ML-GSAI/LLaDA) and "Dream 7B" (arXiv
2508.15487; the sampler published with the checkpoint). They share everything but the count of positions a step
commits: `schedule` "even" splits each block's masks evenly over its steps (LLaDA), "timestep" follows Dream's time
grid over the whole canvas, whose first forward of an N-step run commits nothing. Confidences are LLaDA's raw or
Dream's filtered ones accordingly. On purpose different: both EOS options act at every temperature, guidance needs no
attention mask, ties go to the lowest position.

    unmask generate GSAI-ML/LLaDA-8B-Instruct "..." --method masked --set block_size=32
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.decoding.forward import Forward, Kind, State, window
from unmask.decoding.method import need_full, option, register, resolve
from unmask.decoding.sampling import ScoreRule, Scores, rank_of, uniform
from unmask.decoding.select import Rule, Static
from unmask.decoding.selecting import Selecting
from unmask.decoding.stop import Span
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from typing_extensions import Self

    from unmask.models.families import Family

ALGORITHMS = {
    "confidence": "confidence",
    "low_confidence": "confidence",
    "maskgit_plus": "confidence",
    "margin": "margin",
    "topk_margin": "margin",
    "entropy": "entropy",
    "random": "random",
    "origin": "origin",
}


@register("masked", title="LLaDA (arXiv 2502.09992) and Dream 7B", arxiv="2508.15487")
@dataclass(frozen=True, kw_only=True)
class Masked(Selecting[State]):
    """Every forward sees the whole canvas; each step commits the surest open positions of the block in work."""

    cached = False
    whole = True

    steps: int | None = option(None, "forwards in all; None: one for each token", low=1)
    block_size: int | None = option(
        None, "semi-autoregressive blocks; None: the whole canvas", alias=("block_length",), low=1
    )
    algorithm: str | None = option(
        None, "what ranks positions; None: confidence", alias=("remasking", "alg"), choices=ALGORITHMS
    )
    schedule: str | None = option(
        None, "how many positions a step commits; None: even, timestep for Dream", choices=("even", "timestep")
    )
    confidence: str | None = option(
        None,
        "probability before (raw) or after (filtered) temperature and top-k/top-p; None: filtered for timestep alone",
        choices=("raw", "filtered"),
    )
    eps: float = option(1e-3, "end of the time grid (timestep)", low=0.0, high=1.0)
    algorithm_temperature: float = option(0.0, "randomness of the order (timestep)", alias=("alg_temp",), low=0.0)
    cfg_scale: float = option(0.0, "classifier-free guidance weight; 0: off", alias=("cfg",), low=0.0)
    ban_eos: bool = option(False, "never propose an end token", alias=("logits_eos_inf",))
    eos_last: bool = option(False, "commit end tokens last", alias=("confidence_eos_eot_inf",))

    def bind(self, family: Family, new_tokens: int) -> Self:
        need_full(self.name, family)
        timed = bool(family.shift) if self.schedule is None else self.schedule == "timestep"
        block, steps = resolve(self.block_size, new_tokens), resolve(self.steps, new_tokens)
        trouble = ""
        if timed and block != new_tokens:
            trouble = f"schedule timestep works on the whole canvas; block_size {block} needs schedule even"
        elif new_tokens % block:
            trouble = f"block_size {block} does not divide max_new_tokens {new_tokens}"
        elif steps % (new_tokens // block):
            trouble = f"steps {steps} is not a multiple of the {new_tokens // block} blocks"
        elif self.algorithm == "origin" and not (timed and self.select is None and self.stopping() is None):
            trouble = "algorithm origin is defined by schedule timestep alone, without selection or stop rules"
        elif self.select is not None and self.select.rank is not None and self.algorithm not in (None, "confidence"):
            trouble = f"the selection rule ranks by {self.select.rank} itself; leave algorithm {self.algorithm} out"
        if trouble:
            raise UnmaskError(f"{self.name}: {trouble}")
        return replace(
            self,
            steps=steps,
            block_size=block,
            algorithm=self.algorithm or "confidence",
            schedule="timestep" if timed else "even",
            confidence=self.confidence or ("filtered" if timed else "raw"),
        )

    def start(self, state: State) -> State:
        return state

    def score_rule(self, state: State) -> ScoreRule:
        eos = state.facts.eos_ids
        filtered = self.confidence == "filtered"
        own = ScoreRule(
            "filtered" if filtered else "raw",
            rank_of(self.algorithm or ""),
            filter_greedy=filtered,
            ban=(state.facts.mask_id, *(eos[:1] if self.ban_eos else ())),
            ban_confidence=eos if self.eos_last else eos[:1] if self.ban_eos else (),
        )
        return self.ranked(own)

    def own_rule(self) -> Rule:
        return Static()

    def span(self, state: State) -> Span:
        """The block in work, by the forwards of the whole answer."""
        return Span(self._first(state), resolve(self.block_size, 1), state.step, resolve(self.steps, 1))

    def stop_span(self, state: State) -> Span:
        """The whole answer: where a stop rule fires, all blocks are taken."""
        return Span(state.prompt, state.new_tokens, state.step, resolve(self.steps, 1))

    def _first(self, state: State) -> Tensor:
        """First position of the block in work [B]: by the plan of steps, or where the first open position is when
        another rule than the plan decides how fast blocks fill."""
        size = resolve(self.block_size, 1)
        if self.select is None:
            return state.prompt + state.step // self._per_block(state) * size
        ahead = state.open.int().argmax(-1) - state.prompt
        return state.prompt + torch.div(ahead.clamp(min=0), size, rounding_mode="floor") * size

    def _per_block(self, state: State) -> int:
        """The steps a block has."""
        return resolve(self.steps, 1) * resolve(self.block_size, 1) // state.new_tokens

    def _quota(self, state: State, eligible: Tensor) -> Tensor:
        """How many positions this forward has to commit [B]."""
        if self.schedule == "timestep":
            left = eligible.sum(-1)
            last = state.step + 1 >= resolve(self.steps, 1)
            return torch.where(last, left, (left * self._share(state)).long())
        size, per_block = resolve(self.block_size, 1), self._per_block(state)
        if self.select is not None:
            return torch.full_like(state.step, max(size // per_block, 1))
        return size // per_block + (state.step % per_block < size % per_block).long()

    def plan(self, state: State) -> Forward:
        index = torch.arange(state.canvas.shape[1], device=state.canvas.device).expand(len(state.prompt), -1)
        # A stop rule takes all that is open, so it must see all of it, and one may want to see the prompt too.
        stop = self.stopping()
        span = self.span(state) if stop is None else self.stop_span(state)
        targets = index if getattr(stop, "context", False) else span.first[:, None] + index[:, : span.size]
        forward = window(
            state,
            index,
            index < state.limit[:, None],
            torch.zeros_like(index),
            visible=torch.zeros_like(state.prompt),
            rows=(targets - state.facts.shift).clamp(min=0),
            targets=torch.where(targets < state.limit[:, None], targets, -1),
            kind=torch.full_like(state.prompt, Kind.DENOISE),
            cached=False,
        )
        if self.cfg_scale:
            blind = torch.where(index < state.prompt[:, None], state.facts.mask_id, state.canvas)
            forward = replace(forward, guide=blind, guide_scale=self.cfg_scale)
        return forward

    def commit(self, state: State, forward: Forward, scores: Scores) -> State:
        eligible = state.open_at(forward.targets) & self.span(state).holds(forward.targets)
        noise = uniform(state.draw.seed, state.step, forward.targets, salt=1)
        rank = noise.to(scores.score.dtype) if self.algorithm == "random" else scores.score
        if self.algorithm_temperature:  # draws without replacement from softmax(rank / temperature)
            rank = rank / self.algorithm_temperature - (-noise.log()).log().to(rank.dtype)
        last = state.step + 1 >= resolve(self.steps, 1)
        if self.algorithm == "origin":
            token, chosen = scores.token, eligible & ((noise < self._share(state)[:, None]) | last[:, None])
        else:
            quota, ranked = self._quota(state, eligible), replace(scores, score=rank)
            state, token, chosen = self.choose(state, forward, ranked, eligible, quota)
        state = state.fill(forward.targets, token, chosen)
        if self.select is not None or self.stopping() is not None:
            last = ~state.unfinished()
        return replace(state, done=last)

    def _share(self, state: State) -> Tensor:
        """The share 1 - t[i+1] / t[i] of what is left that Dream commits at this step: float [B]."""
        steps = resolve(self.steps, 1)
        # float32 as in the official sampler: the truncation to whole positions depends on it.
        grid = torch.linspace(1, self.eps, steps + 1, device=state.canvas.device)
        return 1 - grid[(state.step + 1).clamp(max=steps)] / grid[state.step.clamp(max=steps)]
