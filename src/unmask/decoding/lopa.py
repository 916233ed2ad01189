"""LoPA: D2F that looks one token further in several directions at once and goes on from the most promising one.

Paper: "LoPA: Scaling dLLM Inference via Lookahead Parallel Decoding" (arXiv 2512.16229; official code
zhijie-group/LoPA). Beside the ordinary result of a forward, the anchor, stand K branches: the anchor with one more of
its surest masks filled, threshold or not. The next forward holds them all, as copies of the window that do not see each
other. The branch whose masks are the surest becomes the anchor, and D2F's acceptance works on the same logits. A branch
keeps the block of its extra token unfinished, so the anchor alone can end.

On purpose different: block-causal by default, as D2F was trained, with an exact cache that no branch changes;
`full_window` is the released code, where the window sees all of itself and the keys of the winner, made among masks,
stay. All branches are one forward (officially one each, or one for each GPU), so forwards are rounds. An end token ends
a row when the text before it is decided, but drops no later block: that would change what branches are worth.
`num_lookahead` counts the branches beside the anchor, as `branching_factor` does from 2 on (there 1 means none).

    unmask generate Dream-org/Dream-v0-Base-7B --adapter SJTU-Deng-Lab/D2F_Dream_Base_7B_Lora "..." --method lopa
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.decoding.branches import surest, unweave, weave, worth
from unmask.decoding.d2f import D2F, RANKS, PipelineState
from unmask.decoding.forward import Forward, Kind, State
from unmask.decoding.method import Method, extend, option, register
from unmask.decoding.sampling import Scores


@dataclass(frozen=True, kw_only=True)
class BranchState(PipelineState):
    """The anchor's pipeline, and K branches that fill one position more.

    ready [B]: leading blocks the anchor has finished; the next forward makes them permanent. place, guess, belief
    [B, K]: the position a branch fills (-1: no such branch), its token and the confidence it had. lengths [B, K + 1],
    awake [B, K + 1, n]: `blocks` (0: no such branch) and `active` of each branch, the anchor last. winner [B]: which of
    them became the anchor; before [B]: what `cached` was then.
    """

    ready: Tensor
    place: Tensor
    guess: Tensor
    belief: Tensor
    lengths: Tensor
    awake: Tensor
    winner: Tensor
    before: Tensor


@register("lopa", title="LoPA: Lookahead Parallel Decoding", arxiv="2512.16229")
@dataclass(frozen=True, kw_only=True)
class LoPA(D2F):
    """Pipelined blocks as in D2F, with lookahead branches in every forward."""

    reaches = Method.reaches  # nowhere: what branches gain and cost is another count

    num_lookahead: int = option(3, "branches beside the anchor; 0: D2F", low=0, high=64)
    rank: str = option("entropy", "what ranks branches and forced tokens", alias=("sampling_strategy",), choices=RANKS)
    full_window: bool = option(
        False,
        "let the window see all of itself (approximate keys), as the released code",
        alias=("use_full_attention",),
    )
    worst_share: float = option(
        1.0, "least sure share of a branch's masks that its score averages", alias=("branch_topp",), low=0.0, high=1.0
    )
    creation_weight: float = option(
        0.0, "weight of its token's confidence in that score", alias=("selection_conf_alpha",), low=0.0, high=1.0
    )

    @property
    def copies(self) -> int:
        """Windows in a forward."""
        return self.num_lookahead + 1

    def slots(self, limit: int) -> int:
        """With `full_window` the keys of branch j wait in slots of their own, limit * (j + 1) further on."""
        return limit * self.copies if self.full_window else limit

    def grain(self) -> int | None:
        return None if self.full_window else 0

    def start(self, state: State) -> BranchState:
        base = super().start(state)
        none = torch.zeros_like(base.prompt)
        empty = none[:, None].expand(-1, self.num_lookahead)
        return extend(
            BranchState,
            base,
            ready=none,
            place=empty - 1,
            guess=empty,
            belief=empty.float(),
            lengths=torch.cat([empty, base.blocks[:, None]], 1),
            awake=base.active[:, None].expand(-1, self.copies, -1),
            winner=none + self.num_lookahead,
            before=none,
        )

    def _order(self, state: PipelineState, positions: Tensor) -> Tensor:
        return torch.zeros_like(positions) if self.full_window else super()._order(state, positions)

    def _leading(self, state: PipelineState) -> Tensor:
        assert isinstance(state, BranchState)
        return state.ready

    def _tree(self, state: BranchState) -> BranchState:
        """Every branch as a row: B * (K + 1) rows of what a window is made of."""

        def tile(x: Tensor) -> Tensor:
            return x.repeat_interleave(self.copies, 0)

        names = ("canvas", "open", "prompt", "limit", "cached", "ready")
        tree = replace(state, **{n: tile(getattr(state, n)) for n in names})
        tree = replace(tree, blocks=state.lengths.flatten(), active=state.awake.flatten(0, 1))
        place, guess = (F.pad(x, (0, 1), value=-1).reshape(-1, 1) for x in (state.place, state.guess))
        return tree.fill(place, guess, place >= 0)

    def prefill(self, state: PipelineState) -> Forward:
        """D2F's: there is the anchor alone."""
        forward = super().prefill(state)
        rows, targets = (x.repeat_interleave(self.copies, 1) for x in (forward.rows, forward.targets))
        branch = torch.arange(targets.shape[1], device=targets.device) % self.copies
        return replace(forward, rows=rows, targets=torch.where(branch == self.num_lookahead, targets, -1))

    def plan(self, state: PipelineState) -> Forward:
        """The windows of all branches beside each other, one lane each."""
        assert isinstance(state, BranchState)
        base, shift = state.prompt + state.cached * self.block_size, state.facts.shift
        width = state.active.shape[1] * self.block_size
        kind = torch.where(state.ready > state.cached, Kind.COMMIT, Kind.WINDOW if self.full_window else Kind.DENOISE)
        tree = self._window(self._tree(state), base.repeat_interleave(self.copies), width, kind)
        column = torch.arange(width * self.copies, device=base.device).expand(len(base), -1)
        branch = column % self.copies
        layout = tree.layout.map(lambda x: weave(x, self.copies))
        store = weave(tree.store, self.copies)
        # With exact keys those of finished blocks are the same in all branches.
        aside = store + state.limit[:, None] * (branch + 1) if self.full_window else torch.full_like(store, -1)
        return replace(
            tree,
            tokens=weave(tree.tokens, self.copies),
            layout=replace(layout, lane=branch + 1),
            visible=base,
            store=torch.where((branch == self.num_lookahead) | (store < 0), store, aside),
            rows=(column - shift * self.copies).clamp(min=-1),
            targets=weave(tree.targets, self.copies),
            kind=kind,
            carry=state.carry,
            move=self._move(state, width) if self.full_window else None,
        )

    def _move(self, state: BranchState, width: int) -> tuple[Tensor, Tensor]:
        """The keys of finished blocks as the last winner computed them, from its slots to their place."""
        block = torch.arange(width, device=state.prompt.device) // self.block_size
        place = state.prompt[:, None] + torch.arange(width, device=block.device)
        new = (block >= state.before[:, None]) & (block < state.cached[:, None])
        new &= state.winner[:, None] < self.num_lookahead
        return torch.where(new, place + (state.limit * (state.winner + 1))[:, None], -1), torch.where(new, place, -1)

    def commit(self, state: PipelineState, forward: Forward, scores: Scores) -> BranchState:
        assert isinstance(state, BranchState)
        row = torch.arange(len(state.prompt), device=state.prompt.device)
        asked = (forward.targets, scores.token, scores.prob, scores.score)
        targets, token, prob, score = (unweave(x, self.copies) for x in asked)
        tree = self._tree(state)
        masked = tree.open_at(targets.flatten(0, 1)).view(targets.shape)
        belief = F.pad(state.belief, (0, 1), value=1.0)
        value = self.creation_weight * belief + (1 - self.creation_weight) * worth(score, masked, self.worst_share)
        best = value.masked_fill(state.lengths == 0, -torch.inf).argmax(-1)  # the first of equals

        targets, token, prob, score = (x[row, best] for x in (targets, token, prob, score))
        canvas, is_open = (x.view(*state.lengths.shape, -1)[row, best] for x in (tree.canvas, tree.open))
        won = replace(
            state, canvas=canvas, open=is_open, blocks=state.lengths[row, best], active=state.awake[row, best]
        )
        filled = self._accept(won, targets, Scores(token, token, prob, score, scores.logits))
        at = self._next_row(state, state.ready) * self.copies + best
        carry = scores.logits[row, at.clamp(max=scores.logits.shape[1] - 1)] if state.facts.shift else state.carry
        anchor = replace(won, canvas=filled.canvas, open=filled.open, carry=carry, winner=best)
        anchor = replace(anchor, before=state.cached, cached=state.ready, ready=super()._leading(anchor))
        return self._spawn(anchor, targets, token, score)

    def _spawn(self, anchor: BranchState, targets: Tensor, token: Tensor, score: Tensor) -> BranchState:
        """The branches of the next forward: the anchor's surest masks of `targets` [B, W], and the blocks of each."""
        k = self.num_lookahead
        column, found = surest(score, anchor.open_at(targets), k)
        place, guess, belief = (x.gather(1, column) for x in (targets, token, score))
        state = replace(
            anchor,
            place=torch.where(found, place, -1),
            guess=guess,
            belief=belief,
            lengths=anchor.blocks[:, None].expand(-1, k + 1),
            awake=anchor.active[:, None].expand(-1, k + 1, -1),
        )
        grown = self._grow(self._tree(state))
        lengths = grown.blocks.view(-1, k + 1).masked_fill(F.pad(~found, (0, 1)), 0)
        awake = grown.active.view(-1, k + 1, grown.active.shape[1])
        state = replace(state, lengths=lengths, awake=awake, blocks=lengths[:, -1], active=awake[:, -1])
        return replace(state, done=self._complete(state, state.blocks))
