"""FreeDave: a diffusion model drafts its own next steps and verifies them in one forward; the text is unchanged.

Paper: "Free Draft-and-Verification: Toward Lossless Parallel Decoding for Diffusion Large Language Models" (arXiv
2510.00294; official code cychomatica/FreeDave). The logits that decide the next token also guess those after it. Up to
`depth` states are built from these guesses and forwarded as copies of one window; kept is the longest chain in which
each state is what one-token decoding makes of the one before. With `threshold` the same on threshold decoding
(FreeDave++).

Ours (`verify`): "sliding" (block models) never closes a window at a block: the keys of finished blocks are taken over
from the accepted copy, so no forward is spent on storing them or on a first look at a block. "block" has the official
windows. Both decide at once what is certain, so a state that leaves nothing to verify costs no forward, and choose
drafts that branch where the next position or token is doubtful (`branch`). "official" is the released code, forward
for forward. On purpose different: drafts of a threshold decoder have to match exactly unless `match` says otherwise
(the code's subset rule is not lossless), random draws belong to a state and a position, so sampling is lossless as
well, the mask token is never proposed, rows of a batch are independent.

    unmask generate JetLM/SDAR-4B-Chat "..." --method freedave --set depth=8
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from unmask.decoding.copies import Copies, D
from unmask.decoding.method import need_mask, option, register, resolve
from unmask.decoding.reveal import Reveal, branches, chain
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.models.families import Family


@register("freedave", title="FreeDave", arxiv="2510.00294")
@dataclass(frozen=True, kw_only=True)
class FreeDave(Copies[D]):
    """The options; `bind` gives the form that fits the checkpoint (`freedave_blocks`, `freedave_full`)."""

    forms: ClassVar[dict[str, type[FreeDave[Any]]]] = {}
    fixed = "the text is that of one-token or threshold decoding, against which drafts are checked"

    depth: int | None = option(
        None, "copies of the window a forward; None: 4 for LLaDA, else 8", alias=("draft_steps",), low=1, high=64
    )
    verify: str | None = option(
        None,
        "which windows are verified; None: sliding for block models, else block",
        choices=("sliding", "block", "official"),
    )
    branch: bool | None = option(
        None, "drafts branch; False: each holds one token more than the one before; None: yes unless official"
    )
    eager: bool | None = option(
        None,
        "drafts run into the next blocks (block models alone); None: yes where they can",
        alias=("eager_acceptance_mode",),
    )
    threshold: float | None = option(
        None,
        "confidence from which a position is revealed; None: one token a step",
        alias=("confidence_threshold",),
        low=0.0,
    )
    match: str | None = option(
        None,
        "when a draft counts as reached; None: exact, and subset for verify=official under full attention",
        choices=("exact", "subset"),
    )
    leftmost: bool = option(False, "reveal from left to right (official alg_temp -1), not the surest first")
    cache: str = option("dual", "what full attention does not recompute", choices=("dual", "prefix"))
    eos_block: bool = option(False, "end a row at a block of end tokens alone, as the official early exit does")

    def bind(self, family: Family, new_tokens: int) -> FreeDave[Any]:
        need_mask(self.name, family)
        full = family.attention == "full"
        verify = self.verify or ("block" if full or self.eager is False else "sliding")
        match = self.match or ("subset" if full and verify == "official" else "exact")
        self._refuse(family, full, verify, match)
        trained = resolve(self.block_size, 32 if full else resolve(family.block_size, 4))
        bound: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)} | {
            "block_size": min(trained, new_tokens) if full else trained,
            "depth": resolve(self.depth, 4 if full and not family.shift else 8),
            "verify": verify,
            "branch": verify != "official" and match == "exact" and self.branch is not False,
            "eager": not full and self.eager is not False,
            "match": match,
        }
        return self.forms["full" if full else "sliding" if verify == "sliding" else "block"](**bound)

    def _refuse(self, family: Family, full: bool, verify: str, match: str) -> None:
        if full and verify == "sliding":
            raise UnmaskError("freedave: verify=sliding needs the exact keys of a block model; use block")
        if full and self.eager:
            raise UnmaskError("freedave: under full attention drafts of later blocks see other keys; leave eager out")
        if not full and self.cache != "dual":
            raise UnmaskError(f"freedave: the cache of this {family.name} model is exact; leave cache={self.cache} out")
        if not full and family.shift:
            raise UnmaskError(
                f"freedave: this {family.name} model predicts the next position (token shift); use fast_dllm_v2"
            )
        if verify == "sliding" and self.eager is False:
            raise UnmaskError("freedave: a sliding window always runs into the next blocks; use verify=block")
        if self.leftmost and self.threshold is not None:
            raise UnmaskError("freedave: leftmost reveals one token a step; leave threshold out")
        if self.branch and (verify == "official" or match == "subset"):
            raise UnmaskError("freedave: branching drafts need verify=block or sliding, and match=exact")

    @property
    def count(self) -> int:
        return resolve(self.depth, 8)

    @property
    def width(self) -> int:
        return self.size * (1 - (-self.count // self.size) if self.eager else 1)

    @property
    def reveal(self) -> Reveal:
        return Reveal(self.size, self.threshold, self.leftmost)

    @property
    def subset(self) -> bool:
        return self.match == "subset"

    @property
    def at_once(self) -> bool:
        return self.verify != "official"

    def tree(self) -> Tensor:
        return branches(self.count, not self.leftmost) if self.branch else chain(self.count)

    def ended(self, state: D, blocks: Tensor) -> Tensor:
        """Rows of which one of the first `blocks` [B] blocks of the window holds end tokens alone: bool [B]."""
        at = self.positions(state)
        eos = at >= state.limit[:, None]
        for i in state.facts.eos_ids:
            eos |= state.tokens_at(at) == i
        whole = eos.unflatten(-1, (-1, self.size)).all(-1)
        first = torch.arange(whole.shape[1], device=at.device) < blocks[:, None]
        return (whole & first).any(-1) & self.eos_block
