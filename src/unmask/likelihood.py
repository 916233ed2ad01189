"""How likely a checkpoint finds an answer to a prompt: exactly, or by a Monte-Carlo estimate of a lower bound.

- Causal models: the sum of next-token log-probabilities, exact, from one forward.
- Models that fill masks anywhere (LLaDA, Dream, MDLM): LLaDA's estimator (arXiv 2502.09992, eval_llada.py): mask x of
  the L answer tokens, x spread evenly over 1..L among the rows of a batch, sum the log-probabilities of what is masked
  times L / x, average. Its expectation is a lower bound of the log-likelihood (the mean over all orders of decoding).
- Block models: the same bound inside each block given the true blocks before it, summed over the blocks; all of them
  in one forward over [noisy ; clean] (BD3-LM, arXiv 2503.09573). Where rows predict the next token (Fast-dLLM v2) the
  first token of a block is scored from the clean row before it, as it is decoded, and is known inside the block.

A bound is exact where at most one token is masked at a time: one-token answers, blocks of size 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmask.attention.dense import DenseAttention
from unmask.decoding import build
from unmask.decoding.forward import Facts
from unmask.decoding.loop import decode
from unmask.decoding.sampling import Draw, uniform
from unmask.decoding.sequential import sequential
from unmask.errors import UnmaskError
from unmask.layout import Layout, causal, doubled, full
from unmask.models.families import Family
from unmask.models.network import Network

Masks = Sequence[Sequence[Sequence[int]]]
# Families whose networks are defined with the mask token taken out of the softmax; LLaDA's code leaves it in.
NO_MASK_LOGIT = ("mdlm", "bd3lm")


@dataclass(frozen=True, slots=True)
class Likelihood:
    """value: log-likelihood in nats; exact: whether it is that, or an estimate of a lower bound; forwards: model calls
    spent."""

    value: float
    exact: bool
    forwards: int


@dataclass(frozen=True)
class Question:
    """Prompt and answer as one row of tokens [P + A], and how a row with masks is scored.

    layout: of the tokens that run. rows: [A], the column that speaks of each answer token. group: [A], which answer
    tokens are masked together, counted from 0; -1: never masked.
    """

    tokens: Tensor
    answer: Tensor
    layout: Layout
    rows: Tensor
    group: Tensor

    @property
    def sizes(self) -> Tensor:
        """How many answer tokens each group has."""
        return torch.bincount(self.group[self.group >= 0])

    def to(self, device: torch.device) -> Question:
        tokens, answer, rows, group = (x.to(device) for x in (self.tokens, self.answer, self.rows, self.group))
        return Question(tokens, answer, self.layout.to(device), rows, group)


def question(family: Family, prompt: Sequence[int], answer: Sequence[int]) -> Question:
    """How this family scores an answer.

    Raises:
        UnmaskError: the family names no mask token.
    """
    tokens = torch.tensor([*prompt, *answer])
    length, first = len(tokens), len(prompt)
    at = torch.arange(first, length)
    part = Question(tokens, tokens[first:], causal(length), at - 1, torch.full_like(at, -1))
    if family.attention == "causal":
        return part
    if family.mask_id is None:
        raise UnmaskError(f"this {family.name} checkpoint names no mask token; load it with mask_token_id=...")
    if family.attention == "full":
        return replace(part, layout=full(length), rows=at - family.shift, group=torch.zeros_like(at))
    block = family.block_size or 1
    bridge = (at % block == 0) & (family.shift == 1)
    rows = torch.where(bridge, length + at - 1, at - family.shift)
    # Numbers of the blocks with something to mask, without gaps.
    inside = (at // block)[~bridge].unique(return_inverse=True)[1]
    group = torch.full_like(at, -1).masked_scatter(~bridge, inside)
    return replace(part, layout=doubled(length, block), rows=rows, group=group)


def loglikelihood(
    model: Network,
    family: Family,
    prompt: Sequence[int],
    answer: Sequence[int],
    *,
    samples: int = 128,
    batch: int = 8,
    seed: int = 0,
    masks: Masks | None = None,
    cfg_scale: float = 0.0,
) -> Likelihood:
    """Log-likelihood of the answer given the prompt; see the module.

    Args:
        prompt, answer: token ids, neither empty.
        samples: rows with masks in all (no part where the value is exact).
        batch: rows a forward, over which the numbers of masks are spread.
        masks: [forward][row], positions within the answer that are masked, instead of drawn ones.
        cfg_scale: guidance weight of models that fill masks anywhere (LLaDA).

    Raises:
        UnmaskError: samples that are no multiple of batch, masks that miss a block, guidance where it has no meaning.
    """
    if family.attention != "full" and cfg_scale:
        raise UnmaskError(f"guidance needs a model that fills masks anywhere; this {family.name} model does not")
    if family.attention == "causal" and masks is not None:
        raise UnmaskError(f"this {family.name} model predicts the next token; masks have no part in its likelihood")
    asked = question(family, prompt, answer).to(model.device)
    exact = bool((asked.sizes <= 1).all())
    drawn = _given(masks, len(answer)) if masks is not None else _drawn(asked, samples, batch, seed, exact)
    total = 0.0
    for masked in drawn:
        masked = masked.to(model.device) & (asked.group >= 0)
        weight = _weights(asked, masked)
        total += float((weight * _log_probs(model, family, asked, masked, cfg_scale)).sum(-1).mean())
    return Likelihood(total / len(drawn), exact, len(drawn))


def _weights(asked: Question, masked: Tensor) -> Tensor:
    """What each log-probability counts, [rows, A]: what is masked the size of its group over how much of it is masked
    in the row, what is never masked 1, the rest nothing."""
    never = (asked.group < 0).expand_as(masked).double()
    sizes = asked.sizes
    if not len(sizes):
        return never
    group = asked.group.clamp(min=0).expand_as(masked)
    count = torch.zeros(len(masked), len(sizes), dtype=torch.long, device=masked.device)
    count.scatter_add_(1, group, masked.long())
    if bool((count == 0).any()):
        raise UnmaskError("every row of masks must mask at least one token of the answer, in every block of it")
    return never + (sizes / count.double()).gather(1, group) * masked


def _given(masks: Masks, length: int) -> list[Tensor]:
    out = []
    for rows in masks:
        masked = torch.zeros(len(rows), length, dtype=torch.bool)
        for row, positions in zip(masked, rows):
            if not all(0 <= p < length for p in positions):
                raise UnmaskError(f"masks hold a position outside of the answer of {length} tokens")
            row[list(positions)] = True
        out.append(masked)
    if not out or not all(len(rows) for rows in out):
        raise UnmaskError("masks are empty; give at least one row")
    return out


def _drawn(asked: Question, samples: int, batch: int, seed: int, exact: bool) -> list[Tensor]:
    """Masks [batch, A] of each forward, functions of the seed alone."""
    if exact:
        return [(asked.group >= 0).unsqueeze(0)]
    if samples < 1 or batch < 1 or samples % batch:
        raise UnmaskError(f"samples ({samples}) must be a multiple of batch ({batch})")
    group, sizes = asked.group.cpu(), asked.sizes.cpu()
    key = torch.tensor([seed])
    # Groups are runs of columns, so sorting by group and then by chance ranks the columns inside each.
    before = (sizes.cumsum(0) - sizes)[group.clamp(min=0)] + (group < 0).sum()
    out = []
    for forward in range(samples // batch):
        number = torch.tensor([forward])
        u = uniform(key, number, torch.arange(len(sizes))[None], salt=3)[0]
        counts = mask_counts((u * sizes).long() + 1, batch, sizes)
        chance = uniform(
            key.expand(batch), number * batch + torch.arange(batch), torch.arange(len(group))[None], salt=4
        )
        rank = (group + chance).argsort(-1).argsort(-1) - before
        out.append((rank < counts[:, group.clamp(min=0)]) & (group >= 0))
    return out


def mask_counts(first: Tensor, rows: int, length: Tensor) -> Tensor:
    """How many tokens each row masks: from `first`, in steps of length / rows, around the numbers 1..length.

    Args:
        first, length: [G], the first row's number, 1..length, and the tokens there are.

    Returns:
        [rows, G]; rounded half to even as in the official code.
    """
    step = torch.arange(rows, dtype=torch.float64)[:, None] * length / rows
    return ((first + step).round().long() - 1) % length + 1


@torch.inference_mode()
def _log_probs(model: Network, family: Family, asked: Question, masked: Tensor, cfg_scale: float) -> Tensor:
    """Log-probability of every answer token in each row of masks: float64 [rows, A]."""
    rows, length = len(masked), len(asked.tokens)
    tokens = asked.tokens.repeat(rows, 1)
    first = length - len(asked.answer)
    hidden = torch.full_like(tokens, -1 if family.mask_id is None else family.mask_id)
    noisy = tokens.clone()
    noisy[:, first:] = torch.where(masked, hidden[:, first:], noisy[:, first:])
    run = noisy if asked.layout.shape[-1] == length else torch.cat([noisy, tokens], 1)
    if cfg_scale:
        blind = torch.cat([hidden[:, :first], noisy[:, first:]], 1)
        run = torch.cat([run, blind])
    layout = asked.layout.batch(len(run))
    logits = model(run, layout.positions, DenseAttention(asked.layout), asked.rows.expand(len(run), -1)).float()
    if cfg_scale:
        seen, unseen = logits.chunk(2)
        logits = unseen + (1 + cfg_scale) * (seen - unseen)
    if family.name in NO_MASK_LOGIT and family.mask_id is not None:
        logits[..., family.mask_id] = -torch.inf
    log_probs = logits.log_softmax(-1)
    return log_probs.gather(-1, asked.answer.expand(rows, -1).unsqueeze(-1)).squeeze(-1).double()


def greedy_answer(
    model: Network, family: Family, prompt: Sequence[int], length: int, *, cfg_scale: float = 0.0
) -> tuple[list[int], int]:
    """The answer of `length` tokens that greedy decoding gives when one token, the surest, is fixed a forward.

    End tokens are tokens like any other. Returns the ids and the forwards spent.
    """
    name, options = sequential(family)
    if family.attention == "full":
        options["cfg_scale"] = cfg_scale
    method = build(name, options | {"early_exit": False}).bind(family, length)
    one = torch.zeros(1, device=model.device)
    draw = Draw(one, one + 1, one.long(), one.long())
    facts = Facts(-1 if family.mask_id is None else family.mask_id, (), family.shift)
    (row,) = decode(model, method, [list(prompt)], facts=facts, draw=draw, new_tokens=length)
    return row.canvas[:length], sum(row.counters.forwards.values())
