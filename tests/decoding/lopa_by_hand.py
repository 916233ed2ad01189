"""LoPA for one prompt, written down from the description of the algorithm: lists, loops, one forward a branch.

Shares nothing with the method but the model, its cache and the mask rule.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unmask.cache.contiguous import ContiguousCache
from unmask.layout import Layout, block_index
from unmask.lm import LM


@dataclass
class Branch:
    """Tokens behind the prompt (None: masked), and of each block whether it is done and whether it may force."""

    tokens: list[int | None] = field(default_factory=list)
    done: list[bool] = field(default_factory=list)
    forces: list[bool] = field(default_factory=list)
    belief: float = 1.0
    token: list[int] | None = None


@dataclass
class Settings:
    block_size: int
    add_threshold: float
    activate_threshold: float
    threshold: float
    rank: str
    num_lookahead: int
    full_window: bool = False
    worst_share: float = 1.0
    creation_weight: float = 0.0


class ByHand:
    """`run` gives the answer's tokens by position, and of each round the branches, the winner and what it filled."""

    def __init__(self, lm: LM, settings: Settings, blocks: int) -> None:
        self.lm, self.s, self.most = lm, settings, blocks

    def filled(self, branch: Branch, block: int) -> float:
        size = self.s.block_size
        return sum(t is not None for t in branch.tokens[block * size : (block + 1) * size]) / size

    def grow(self, branch: Branch) -> None:
        ended = any(t in self.lm.family.eos_ids for t in branch.tokens)
        last = self.filled(branch, len(branch.done) - 1) if branch.done else 1.0
        if len(branch.done) < self.most and not ended and last >= self.s.add_threshold:
            branch.tokens += [None] * self.s.block_size
            branch.done.append(False)
            branch.forces.append(False)
        for b in range(len(branch.done)):
            before = self.filled(branch, b - 1) if b else 1.0
            branch.forces[b] |= before >= self.s.activate_threshold

    def logits(self, branch: Branch) -> tuple[Tensor, ContiguousCache]:
        """Logits for each answer position from `self.first` on, and the cache this forward leaves behind."""
        family, n, kept = self.lm.family, len(self.prompt), self.kept
        ids = self.prompt + [family.mask_id if t is None else t for t in branch.tokens]
        index = torch.arange(kept, len(ids))[None]
        order = block_index(index, self.s.block_size, torch.tensor([[n]]))
        if self.s.full_window:
            order = torch.zeros_like(order)
        cache = deepcopy(self.cache)
        layout = Layout(order, torch.zeros_like(order), torch.zeros_like(order), index)
        attend = cache.window(layout, torch.tensor([kept]), index)
        with torch.inference_mode():
            z = self.lm.model(torch.tensor([ids[kept:]]), index, attend, torch.arange(len(ids) - kept)[None])[0]
        if family.shift:
            first = z[:1] if self.carry is None else self.carry[None]  # position 0 is prompt, nobody asks for it
            self.raw, z = z, torch.cat([first, z[:-1]])
        return (z if kept else z[n:]), cache

    def confidence(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p = z.softmax(-1)
        allowed = z.index_fill(-1, torch.tensor([self.lm.family.mask_id]), -torch.inf)
        token = allowed.argmax(-1)
        prob = p.gather(-1, token[:, None])[:, 0]
        top = p.topk(2, -1).values
        kinds = {"prob": prob, "margin": top[:, 0] - top[:, 1], "entropy": (p * (p + 1e-10).log()).sum(-1)}
        return token, prob, kinds[self.s.rank]

    def run(self, prompt: list[int]) -> tuple[list[int | None], list[dict[str, object]]]:
        size = self.s.block_size
        config = self.lm.model.config
        slots = len(prompt) + self.most * size
        self.prompt, self.kept, self.carry = prompt, 0, None
        self.cache = ContiguousCache(config.num_layers, 1, config.num_kv_heads, slots, config.head_dim)
        live, parked = [Branch()], []
        rounds: list[dict[str, object]] = []
        todo = -1  # the prompt
        while True:
            for branch in live:
                self.grow(branch)
            parked += [(len(rounds), b) for b in live if None not in b.tokens and all(b.done)]
            live = [b for b in live if None in b.tokens or not all(b.done)]
            if not live:
                return min(parked, key=lambda p: p[0])[1].tokens, rounds
            first = max(self.kept - len(prompt), 0)
            seen = [self.look(branch, first) for branch in live]
            best = max(range(len(live)), key=lambda i: (seen[i][0], -i))
            _, z, cache, raw = seen[best]
            winner, before = live[best], list(live[best].tokens)
            # The keys of finished blocks become permanent, and the row behind them is remembered.
            stop = len(prompt) + (todo + 1) * size if todo >= 0 else len(prompt)
            if stop > self.kept:
                self.carry = raw[stop - self.kept - 1] if self.lm.family.shift else None
                self.kept, self.cache = stop, cache
            self.fill(winner, z, first)
            log = {"branches": [b.token for b in live], "winner": best}
            log["filled"] = {
                i: t for i, (t, old) in enumerate(zip(winner.tokens, before)) if old is None and t is not None
            }
            rounds.append(log)
            for b in range(len(winner.done)):
                if all(winner.done[:b]) and self.filled(winner, b) == 1:
                    winner.done[b], todo = True, b
            winner.belief, winner.token = 1.0, None
            live = [*self.lookahead(winner, z, first), winner]

    def look(self, branch: Branch, first: int) -> tuple[float, Tensor, ContiguousCache, Tensor]:
        z, cache = self.logits(branch)
        raw = self.raw if self.lm.family.shift else z
        conf = self.confidence(z)[2].tolist()
        masked = sorted(conf[i - first] for i in range(first, len(branch.tokens)) if branch.tokens[i] is None)
        future = 1.0
        if masked:
            count = max(1, int(self.s.worst_share * len(masked)))
            future = sum(masked[:count]) / count
        return self.s.creation_weight * branch.belief + (1 - self.s.creation_weight) * future, z, cache, raw

    def fill(self, branch: Branch, z: Tensor, first: int) -> None:
        token, prob, rank = self.confidence(z)
        for b in range(len(branch.done)):
            if branch.done[b]:
                continue
            span = range(b * self.s.block_size, (b + 1) * self.s.block_size)
            masked = [i for i in span if branch.tokens[i] is None]
            chosen = [i for i in masked if prob[i - first] > self.s.threshold]
            if masked and not chosen and branch.forces[b]:
                chosen = [max(masked, key=lambda i: (float(rank[i - first]), -i))]
            for i in chosen:
                branch.tokens[i] = int(token[i - first])

    def lookahead(self, anchor: Branch, z: Tensor, first: int) -> list[Branch]:
        token, _, rank = self.confidence(z)
        masked = [i for i, t in enumerate(anchor.tokens) if t is None]
        out = []
        for i in sorted(masked, key=lambda i: (-float(rank[i - first]), i))[: self.s.num_lookahead]:
            branch = deepcopy(anchor)
            branch.tokens[i], branch.belief = int(token[i - first]), float(rank[i - first])
            branch.token = [i, int(token[i - first])]
            out.append(branch)
        return out
