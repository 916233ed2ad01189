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
from unmask.decoding.method import Method, need_mask, option, register, resolve
from unmask.decoding.sampling import ScoreRule, Scores, rank_of, uniform
from unmask.decoding.select import best
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
class Masked(Method[State]):
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
        return replace(self, block_size=block, steps=steps, schedule="timestep" if timed else "even")

    def start(self, state: State) -> State:
        return state

    def score_rule(self, state: State) -> ScoreRule:
        eos = state.facts.eos_ids
        timed = self.schedule == "timestep"
        return ScoreRule(
            "filtered" if timed else "raw",
            rank_of(self.algorithm),
            filter_greedy=timed,
            ban=(state.facts.mask_id, *(eos[:1] if self.ban_eos else ())),
            ban_confidence=eos if self.eos_last else eos[:1] if self.ban_eos else (),
        )

    def _place(self, state: State) -> tuple[Tensor, Tensor, int]:
        """First position of the block in work [B], the step inside it [B], and the steps a block has."""
        size = resolve(self.block_size, 1)
        per_block = resolve(self.steps, 1) * size // state.new_tokens
        return state.prompt + state.step // per_block * size, state.step % per_block, per_block

    def plan(self, state: State) -> Forward:
        device = state.canvas.device
        index = torch.arange(state.canvas.shape[1], device=device).expand(len(state.prompt), -1)
        first, _, _ = self._place(state)
        targets = first[:, None] + torch.arange(resolve(self.block_size, 1), device=device)
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
        eligible = state.open_at(forward.targets)
        noise = uniform(state.draw.seed, state.step, forward.targets, salt=1)
        rank = scores.score
        if self.algorithm == "random":
            rank = noise.to(rank.dtype)
        if self.algorithm_temperature:  # draws without replacement from softmax(rank / temperature)
            rank = rank / self.algorithm_temperature - (-noise.log()).log().to(rank.dtype)
        if self.schedule == "timestep":
            chosen = self._timed(state, rank, noise, eligible)
        else:
            _, step, per_block = self._place(state)
            size = resolve(self.block_size, 1)
            quota = size // per_block + (step < size % per_block).long()
            chosen = best(rank, eligible, quota)
        state = state.fill(forward.targets, scores.token, chosen)
        return replace(state, done=state.step + 1 >= resolve(self.steps, 1))

    def _timed(self, state: State, rank: Tensor, noise: Tensor, eligible: Tensor) -> Tensor:
        """Dream's choice: the share 1 - t[i+1] / t[i] of what is left, all of it at the last step."""
        steps = resolve(self.steps, 1)
        # float32 as in the official sampler: the truncation below depends on it.
        grid = torch.linspace(1, self.eps, steps + 1, device=rank.device)
        share = 1 - grid[(state.step + 1).clamp(max=steps)] / grid[state.step.clamp(max=steps)]
        last = state.step + 1 >= steps
        if self.algorithm == "origin":
            return eligible & ((noise < share[:, None]) | last[:, None])
        left = eligible.sum(-1)
        return best(rank, eligible, torch.where(last, left, (left * share).long()))
