"""WeDLM: masks filled under plain causal attention, text committed from the left as soon as it closes up.

Paper: "WeDLM: Reconciling Diffusion Language Models with Standard Causal Attention for Fast Inference" (arXiv
2512.22737; official code Tencent/WeDLM). Follows the released engine; the paper's listing appends masks one forward
later. In the window known tokens stand before masks, each at its own position, so every mask sees every known token.
The leading filled run stands where it belongs: its keys are exact, and the window moves past it. On purpose different:
masks are known by flags, not by their id, and the mask token is never proposed; entropies in float32; the prompt is run
together with the first masks (`own_prefill` undoes that and, with `early_exit` off, gives the engine's forwards).

`verify` is ours: filled tokens are drafts, checked by the row of the real token before each of them. The text is that
of autoregressive decoding of the same weights, sampled text too: a position's random number is the same in both.
`schedule="block"` is the paper's block-wise baseline; with `select="threshold:tau=0.9,strict=false"` it is the official
`generate_wedlm`, which takes no notice of end tokens.

    unmask generate tencent/WeDLM-8B-Instruct "..." --method wedlm --set entropy_threshold=0.6
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from unmask.decoding.forward import Forward, Kind, State, prompt_window, window
from unmask.decoding.method import doubling, extend, option, register
from unmask.decoding.sampling import ScoreRule, Scores
from unmask.decoding.select import Rule, Threshold
from unmask.decoding.selecting import Selecting
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.models.families import Family


@dataclass(frozen=True, kw_only=True)
class WindowState(State):
    """start [B]: slots before it are permanent, the window begins there.

    drafts, waiting [B, N]: with `verify`, canvas and open positions as they would be if all drafts held.
    """

    start: Tensor
    drafts: Tensor | None = None
    waiting: Tensor | None = None

    def drafted(self) -> State:
        """The state with drafts taken for text."""
        if self.drafts is None or self.waiting is None:
            return self
        return replace(self, canvas=self.drafts, open=self.waiting)


@register("wedlm", title="WeDLM: Diffusion Language Models with Standard Causal Attention", arxiv="2512.22737")
@dataclass(frozen=True, kw_only=True)
class WeDLM(Selecting[WindowState]):
    """Sliding window of masks behind the text; masks of low entropy are filled, the leading filled run is committed."""

    any_length: ClassVar[bool] = True
    one_block = False
    why_not = "the window slides"

    window_size: int = option(16, "masks in the window", alias=("wedlm_window_size", "block_size"), low=1)
    entropy_threshold: float = option(
        0.4, "nats below which a mask is filled; None or 0: one a forward", alias=("wedlm_entropy_threshold",), low=0.0
    )
    position_penalty: float = option(
        0.02, "added to the entropy per position behind the first mask", alias=("wedlm_pos_penalty_factor",), low=0.0
    )
    schedule: str = option("streaming", "block: no new masks before all are filled", choices=("streaming", "block"))
    verify: bool = option(False, "check what was filled: exactly the text of autoregressive decoding")
    bounded: bool = option(False, "no masks behind max_new_tokens or a filled end token (may change the text)")
    own_prefill: bool = option(False, "run the prompt in a forward of its own, without masks (never changes the text)")

    def __post_init__(self) -> None:
        # No entropy is below 0, so no threshold is a threshold of 0; infinity is more than any entropy.
        tau = 0.0 if self.entropy_threshold is None else self.entropy_threshold
        object.__setattr__(self, "entropy_threshold", 1e9 if tau == torch.inf else tau)
        super().__post_init__()

    def bind(self, family: Family, new_tokens: int) -> WeDLM:
        if family.attention != "causal" or family.shift:
            raise UnmaskError(f"wedlm: this {family.name} model was not trained to fill masks under causal attention")
        if family.mask_id is None:
            raise UnmaskError(f"wedlm: this {family.name} checkpoint names no mask token; give mask_token_id=...")
        if self.verify and (self.schedule == "block" or self.own_prefill):
            raise UnmaskError("wedlm: verify excludes schedule block and own_prefill; drop one of them")
        return self

    def score_rule(self, state: WindowState) -> ScoreRule:
        own = ScoreRule("raw", "entropy", ban=(state.facts.mask_id,))
        # With verify the filters act as in autoregressive decoding.
        return self.ranked(own if self.verify else replace(own, filters=("top_k", "top_p"), filter_first=True))

    def own_rule(self) -> Rule:
        return Threshold(-self.entropy_threshold)

    @property
    def clipped(self) -> bool:
        """The window ends with the text; with verify that changes nothing."""
        return self.bounded or self.verify or self.schedule == "block"

    def limit(self, prompt: int, new_tokens: int) -> int:
        return prompt + new_tokens + (0 if self.clipped else self.window_size - 1)

    def grain(self) -> int | None:
        return 1

    def reaches(self, new_tokens: int) -> tuple[int, ...]:
        return () if self.schedule == "block" else doubling(1, self.window_size)

    def start(self, state: State) -> WindowState:
        if not self.verify:
            return extend(WindowState, state, start=state.prompt)
        # The last token of the text stands in the window: its row speaks of the next one.
        return extend(WindowState, state, start=state.prompt - 1, drafts=state.canvas, waiting=state.open)

    def _bound(self, known: State) -> Tensor:
        """Where a window ends at the latest [B]."""
        return torch.minimum(known.limit, known.first_eos() + 1) if self.bounded or self.verify else known.limit

    def _leading(self, state: WindowState) -> Tensor:
        """Filled tokens at the front of the window [B]: the next forward gives them their final keys."""
        known = state.drafted()
        at = state.start[:, None] + torch.arange(self.window_size, device=state.start.device)
        here = at < self._bound(known)[:, None]
        run = (~known.open_at(at) & here).long().cumprod(-1).sum(-1)
        return torch.where(run == here.sum(-1), run, 0) if self.schedule == "block" else run

    def _window(self, state: WindowState, base: Tensor, width: int, kind: int) -> Forward:
        """The forward over [base, end of the window), `width` positions at most: known tokens first, then masks.

        Scored are the masks; with verify the leading run, and the masks but the first, of which the run speaks.
        """
        known, run = state.drafted(), self._leading(state)
        column = torch.arange(width, device=base.device)
        positions = base[:, None] + column
        stop = torch.minimum(state.start + run + state.within(self.window_size), self._bound(known))
        inside = positions < stop[:, None]
        is_mask = known.open_at(positions) & inside
        physical = positions.gather(1, (is_mask + 2 * ~inside).argsort(dim=-1, stable=True))
        masks, filled = is_mask.sum(-1), (inside & ~is_mask).sum(-1)
        checked, first = (run, 1) if self.verify else (torch.zeros_like(run), 0)
        index = torch.arange((1 + first) * self.window_size - first, device=base.device)
        ahead = index < checked[:, None]
        offset = torch.where(ahead, (state.start - base)[:, None], (filled + first - checked)[:, None])
        used = index < (checked + (masks - first).clamp(min=0))[:, None]
        rows = torch.where(used, index + offset, 0)
        targets = torch.where(used, physical.gather(1, rows) + ahead, -1)
        forward = window(
            known,
            physical,
            column < (masks + filled)[:, None],
            column.expand_as(physical),
            visible=base,
            rows=rows,
            targets=targets,
            kind=torch.full_like(base, kind),
        )
        draws = targets - state.prompt[:, None] - 1 if self.verify else None  # the numbers of autoregressive decoding
        return replace(forward, store=torch.where(forward.valid, positions, -1), draws=draws)

    def prefill(self, state: WindowState) -> Forward:
        if not self.own_prefill:
            return self._window(state, torch.zeros_like(state.prompt), state.longest + self.window_size, Kind.PREFILL)
        none = state.canvas[:, :0]
        return prompt_window(state, state.prompt, state.longest, 1, rows=none, targets=none)

    def plan(self, state: WindowState) -> Forward:
        return self._window(state, state.start, 2 * self.window_size, Kind.DENOISE)

    def commit(self, state: WindowState, forward: Forward, scores: Scores) -> WindowState:
        run, targets = self._leading(state), forward.targets
        if self.verify:
            return self._check(state, targets, scores, run)
        start = state.start + run
        done = (start >= state.end) | (state.first_eos() < start)
        chosen = self._choose(targets, scores, start, (targets >= 0) & ~done[:, None])
        return replace(state.fill(targets, scores.token, chosen), start=start, done=done)

    def _choose(self, targets: Tensor, scores: Scores, first: Tensor, eligible: Tensor) -> Tensor:
        """Which masks are filled [B, R]; `first` [B] is the position of the first of them."""
        prob, rank = scores.prob, scores.prob if self.rule().rank is None else scores.score
        if self.select is None:
            entropy = (-scores.score).clamp(min=0)
            prob = rank = -(entropy + self.position_penalty * (targets - first[:, None]))
        return self.rule()(prob, rank, eligible, torch.ones_like(first))

    def _check(self, state: WindowState, targets: Tensor, scores: Scores, run: Tensor) -> WindowState:
        """Commits what the leading run's rows say; drafts behind one they contradict become masks again."""
        known, token = state.drafted(), scores.token
        ahead = torch.arange(targets.shape[1], device=run.device) < run[:, None]
        agrees = (token == known.tokens_at(targets)) & ~known.open_at(targets)
        reached = torch.cat([torch.ones_like(agrees[:, :1]), agrees[:, :-1]], dim=1).long().cumprod(-1).bool()
        right = ahead & reached
        whole = (right.sum(-1) == run)[:, None]
        chosen = self._choose(targets, scores, state.start + run, (targets >= 0) & ~ahead & whole)
        state = state.fill(targets, token, right)
        known = known.fill(targets, token, right | chosen)
        return replace(
            state,
            start=state.start + right.sum(-1),
            drafts=torch.where(whole, known.canvas, state.canvas),
            waiting=torch.where(whole, known.open, state.open),
            done=~state.unfinished() | state.settled(),
        )
