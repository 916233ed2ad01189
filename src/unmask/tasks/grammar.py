"""`grammar`: a random source of token sequences whose likelihood and entropy are known exactly.

    from unmask.tasks.grammar import Grammar
    source = Grammar()
    ids = source.sample(1000, length=64, seed=1)
    print(source.report(ids))      # of a model's samples: how far they are from the source, in nats a token

Made for samplers of whole sequences (MDLM, DiDi-Instruct): one says of each sample how likely it truly is, instead of
asking a language model. A sequence is [key, word, word, ..., the key again]:

- near: a word has few followers, so neighbours that were decided without each other seldom fit;
- far: the last token repeats the first, and the key says which table of followers holds all along;
- with probability `noise` a token is anything, so that no sequence is impossible and the numbers stay finite.

The state behind a prefix (its key, its last token) can be read off the prefix, so the likelihood is a product and the
entropy a sum over states. Ids are 0 .. vocabulary - 1 (keys first), and `mask_id` is the next one; there is no end
token and no tokenizer. Legend: N samples of L tokens, V tokens, K keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from random import Random

import torch
from torch import Tensor

from unmask.errors import UnmaskError
from unmask.hashing import hashed, shift
from unmask.tasks.base import shuffled


@dataclass(frozen=True)
class Grammar:
    """The source.

    Args:
        vocabulary: number of tokens (V).
        keys: how many of them are keys (K).
        topics: tables of followers; key k has table k mod topics.
        weights: probabilities of the followers that a token has in a table.
        noise: probability that a token is drawn from the whole vocabulary instead.
        seed: which tables.
    """

    vocabulary: int = 32
    keys: int = 8
    topics: int = 2
    weights: tuple[float, ...] = (0.5, 0.3, 0.2)
    noise: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.keys < self.vocabulary or len(self.weights) > self.vocabulary - self.keys:
            raise UnmaskError(
                f"{self.vocabulary} tokens are too few for {self.keys} keys and {len(self.weights)} words"
            )
        if abs(sum(self.weights) - 1) > 1e-9 or not 0 < self.noise < 1:
            raise UnmaskError(f"weights {self.weights} must add up to 1, and noise {self.noise} lie between 0 and 1")

    @property
    def mask_id(self) -> int:
        """The id behind the vocabulary."""
        return self.vocabulary

    @cached_property
    def first(self) -> Tensor:
        """Probabilities [V] of the first token."""
        return self._noisy((torch.arange(self.vocabulary) < self.keys).double() / self.keys)

    @cached_property
    def last(self) -> Tensor:
        """Probabilities [K, V] of the last token under each key."""
        return self._noisy(torch.eye(self.keys, self.vocabulary, dtype=torch.float64))

    @cached_property
    def followers(self) -> Tensor:
        """Ids [topics, V, F] of the words that follow each token, in the order of `weights`."""
        rng = Random(f"grammar {self.seed}")
        words = tuple(range(self.keys, self.vocabulary))
        count = len(self.weights)
        drawn = [[shuffled(rng, words)[:count] for _ in range(self.vocabulary)] for _ in range(self.topics)]
        return torch.tensor(drawn)

    @cached_property
    def tables(self) -> Tensor:
        """Probabilities [K, V, V] of the next token under a key and behind a token."""
        weights = torch.tensor(self.weights, dtype=torch.float64)
        followed = torch.zeros(self.topics, self.vocabulary, self.vocabulary, dtype=torch.float64)
        followed.scatter_(2, self.followers, weights.expand(self.followers.shape))
        return self._noisy(followed)[torch.arange(self.keys) % self.topics]

    def _noisy(self, probabilities: Tensor) -> Tensor:
        return (1 - self.noise) * probabilities + self.noise / self.vocabulary

    def key_of(self, ids: Tensor) -> Tensor:
        """The key [N] that samples [N, L] follow: their first token; a word there stands for a key as well."""
        return ids[:, 0] % self.keys

    def sample(self, count: int, length: int, seed: int = 0, start: int = 0) -> Tensor:
        """Samples number start .. start + count - 1 of the endless list that (length, seed) names, int64 [N, L]."""
        place = torch.arange(_checked(length)).unsqueeze(1)
        bits = hashed(torch.tensor(seed), length, place, torch.arange(start, start + count))
        draws = shift(bits, 11).double() * 2.0**-53
        tokens = [_drawn(self.first.expand(count, -1), draws[0])]
        key = tokens[0] % self.keys
        for row in draws[1:-1]:
            tokens.append(_drawn(self.tables[key, tokens[-1]], row))
        tokens.append(_drawn(self.last[key], draws[-1]))
        return torch.stack(tokens, dim=1)

    def log_prob(self, ids: Tensor) -> Tensor:
        """Log-likelihoods in nats [N] of samples [N, L], float64; -inf where an id is none of the vocabulary's."""
        inside = (ids >= 0) & (ids < self.vocabulary)
        known = torch.where(inside, ids, 0)
        key = self.key_of(known)
        words = self.tables.log()[key[:, None], known[:, :-2], known[:, 1:-1]].sum(1)
        total = self.first.log()[known[:, 0]] + words + self.last.log()[key, known[:, -1]]
        return torch.where(inside.all(1), total, -torch.inf)

    def entropy(self, length: int) -> float:
        """Entropy of a whole sample of `length` tokens, in nats."""
        _checked(length)
        total = _entropy(self.first)
        for state in self._states(length - 2):
            total += (state * _entropy(self.tables)).sum()
        return float(total + (self._key_mass() * _entropy(self.last)).sum())

    def marginals(self, length: int) -> Tensor:
        """Probabilities [L, V] of each token alone: all that positions decided at once can follow."""
        middle = [torch.einsum("kv,kvw->w", state, self.tables) for state in self._states(_checked(length) - 2)]
        return torch.stack([self.first, *middle, self._key_mass() @ self.last])

    def _key_mass(self) -> Tensor:
        """Probabilities [K] of the keys."""
        return torch.zeros(self.keys, dtype=torch.float64).index_add(
            0, torch.arange(self.vocabulary) % self.keys, self.first
        )

    def _states(self, count: int) -> list[Tensor]:
        """Probabilities [K, V] of (key, last token) before the second token, the third, ...: `count` of them."""
        state = torch.zeros(self.keys, self.vocabulary, dtype=torch.float64)
        token = torch.arange(self.vocabulary)
        state[token % self.keys, token] = self.first
        found = []
        for _ in range(count):
            found.append(state)
            state = torch.einsum("kv,kvw->kw", state, self.tables)
        return found

    def fitting(self, ids: Tensor) -> Tensor:
        """Share [N] of the L tokens of samples [N, L] that are as the grammar has them without noise."""
        key = self.key_of(ids)
        topic = (key % self.topics)[:, None]
        token, following = ids[:, :-2].clamp(0, self.vocabulary - 1), ids[:, 1:-1]
        words = (self.followers[topic, token] == following[..., None]).any(-1)
        ends = torch.stack([ids[:, 0] < self.keys, ids[:, -1] == key], dim=1)
        return torch.cat([words, ends], dim=1).double().mean(1)

    def report(self, ids: Tensor) -> dict[str, float]:
        """Of samples [N, L], in nats a token.

        `cross_entropy`: what the true source says of them. `excess`: that minus the source's own entropy; 0 for samples
        of the source, more for samples that do not fit, less for samples that are too much alike. `unigram_entropy`:
        of the tokens within a sample, without their order (as MDLM reports it). `fitting`: see there.
        """
        length = ids.shape[1]
        cross = -float(self.log_prob(ids).mean())
        return {
            "cross_entropy": cross / length,
            "excess": (cross - self.entropy(length)) / length,
            "unigram_entropy": float(unigram_entropy(ids).mean()),
            "fitting": float(self.fitting(ids).mean()),
        }


def unigram_entropy(ids: Tensor) -> Tensor:
    """Shannon entropy in nats [N] of the tokens of each sample [N, L], their order left aside."""
    counts = torch.zeros(len(ids), int(ids.max()) + 1, dtype=torch.float64)
    counts.scatter_add_(1, ids, torch.ones_like(ids, dtype=torch.float64))
    return _entropy(counts / ids.shape[1])


def _checked(length: int) -> int:
    if length < 3:
        raise UnmaskError(f"a sample of the grammar has at least 3 tokens, not {length}")
    return length


def _entropy(probabilities: Tensor) -> Tensor:
    """-sum p log p over the last dimension."""
    return torch.special.entr(probabilities).sum(-1)


def _drawn(probabilities: Tensor, draws: Tensor) -> Tensor:
    """The tokens [N] that uniform draws [N] in [0, 1) stand for under probabilities [N, V]."""
    found = torch.searchsorted(probabilities.cumsum(-1), draws[:, None], right=True)[:, 0]
    return found.clamp(max=probabilities.shape[-1] - 1)
