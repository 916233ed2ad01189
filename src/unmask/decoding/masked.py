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
from unmask.decoding.method import need_mask, option, register, resolve
from unmask.decoding.sampling import ScoreRule, Scores, rank_of, uniform
from unmask.decoding.select import Rule, Static
from unmask.decoding.selecting import Selecting
from unmask.decoding.stop import Span
from unmask.errors import UnmaskError

if TYPE_CHECKING:
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

    steps: int | None = option(None, "forwards in all; None: one for each token", low=1)
    block_size: int | None = option(
        None, "semi-autoregressive blocks; None: the whole canvas", alias=("block_length",), low=1
    )
    algorithm: str = option("confidence", "what ranks positions", alias=("remasking", "alg"), choices=ALGORITHMS)
    schedule: str | None = option(
        None,
        "how many positions a step commits; None: even for LLaDA, timestep for Dream",
        choices=("even", "timestep"),
    )
    eps: float = option(1e-3, "end of the time grid (timestep)", low=0.0, high=1.0)
    algorithm_temperature: float = option(0.0, "randomness of the order (timestep)", alias=("alg_temp",), low=0.0)
    cfg_scale: float = option(0.0, "classifier-free guidance weight; 0: off", alias=("cfg",), low=0.0)
    ban_eos: bool = option(False, "never propose an end token", alias=("logits_eos_inf",))
    eos_last: bool = option(False, "commit end tokens last", alias=("confidence_eos_eot_inf",))

    def bind(self, family: Family, new_tokens: int) -> Masked:
        need_mask(self.name, family)
        if family.attention != "full":
            raise UnmaskError(
                f"masked: this {family.name} model was trained with {family.attention} attention, this method shows it "
                f"the whole canvas; use {'fast_dllm_v2' if family.shift else 'block_diffusion'}"
            )
        timed = bool(family.shift) if self.schedule is None else self.schedule == "timestep"
        block, steps = resolve(self.block_size, new_tokens), resolve(self.steps, new_tokens)
        if timed and block != new_tokens:
            raise UnmaskError(
                f"masked: schedule timestep works on the whole canvas; block_size {block} needs schedule even"
            )
        if new_tokens % block:
            raise UnmaskError(f"masked: block_size {block} does not divide max_new_tokens {new_tokens}")
        if steps % (new_tokens // block):
            raise UnmaskError(f"masked: steps {steps} is not a multiple of the {new_tokens // block} blocks")
        if not timed and self.algorithm == "origin":
            raise UnmaskError("masked: algorithm origin is defined by schedule timestep alone; use random")
        if self.algorithm == "origin" and (self.select is not None or self.stop is not None):
            raise UnmaskError("masked: algorithm origin draws its positions at random; no selection or stop rule fits")
        if self.select is not None and self.select.rank is not None and self.algorithm != "confidence":
            raise UnmaskError(
                f"masked: the selection rule ranks by {self.select.rank} itself; leave algorithm {self.algorithm} out"
            )
        return replace(self, block_size=block, steps=steps, schedule="timestep" if timed else "even")

    def start(self, state: State) -> State:
        return state

    def score_rule(self, state: State) -> ScoreRule:
        eos = state.facts.eos_ids
        timed = self.schedule == "timestep"
        own = ScoreRule(
            "filtered" if timed else "raw",
            rank_of(self.algorithm),
            filter_greedy=timed,
            ban=(state.facts.mask_id, *(eos[:1] if self.ban_eos else ())),
            ban_confidence=eos if self.eos_last else eos[:1] if self.ban_eos else (),
        )
        return self.ranked(own)

    def own_rule(self) -> Rule:
        return Static()

    def span(self, state: State) -> Span:
        """The block in work; a stop rule counts the forwards of the whole answer."""
        return Span(self._first(state), resolve(self.block_size, 1), state.step, resolve(self.steps, 1))

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
        even = torch.full_like(state.step, size // per_block)
        if self.select is not None:
            return even.clamp(min=1)
        return even + (state.step % per_block < size % per_block).long()

    def plan(self, state: State) -> Forward:
        device = state.canvas.device
        index = torch.arange(state.canvas.shape[1], device=device).expand(len(state.prompt), -1)
        # A stop rule takes everything that is open, so it must see all of it.
        first = self._first(state) if self.stop is None else state.prompt
        width = resolve(self.block_size, 1) if self.stop is None else state.new_tokens
        targets = first[:, None] + torch.arange(width, device=device)
        forward = window(
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
        if self.cfg_scale:
            blind = torch.where(index < state.prompt[:, None], state.facts.mask_id, state.canvas)
            forward = replace(forward, guide=blind, guide_scale=self.cfg_scale)
        return forward

    def commit(self, state: State, forward: Forward, scores: Scores) -> State:
        first, size = self._first(state)[:, None], resolve(self.block_size, 1)
        inside = (forward.targets >= first) & (forward.targets < first + size)
        eligible = state.open_at(forward.targets) & inside
        noise = uniform(state.draw.seed, state.step, forward.targets, salt=1)
        rank = scores.score
        if self.algorithm == "random":
            rank = noise.to(rank.dtype)
        if self.algorithm_temperature:  # draws without replacement from softmax(rank / temperature)
            rank = rank / self.algorithm_temperature - (-noise.log()).log().to(rank.dtype)
        last = state.step + 1 >= resolve(self.steps, 1)
        if self.algorithm == "origin":
            token, chosen = scores.token, eligible & ((noise < self._share(state)[:, None]) | last[:, None])
        else:
            ranked = replace(scores, score=rank)
            state, token, chosen = self.choose(state, forward, ranked, eligible, self._quota(state, eligible))
        state = state.fill(forward.targets, token, chosen)
        if self.select is not None or self.stop is not None:
            last = ~state.unfinished()
        return replace(state, done=last)

    def _share(self, state: State) -> Tensor:
        """The share 1 - t[i+1] / t[i] of what is left that Dream commits at this step: float [B]."""
        steps = resolve(self.steps, 1)
        # float32 as in the official sampler: the truncation to whole positions depends on it.
        grid = torch.linspace(1, self.eps, steps + 1, device=state.canvas.device)
        return 1 - grid[(state.step + 1).clamp(max=steps)] / grid[state.step.clamp(max=steps)]
