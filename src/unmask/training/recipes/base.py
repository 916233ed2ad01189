"""What a recipe is: from a batch of packed rows to what the networks see, and the loss of what they answer.

A recipe is a frozen dataclass of its paper's options. `views` says, without a network, what is noised and how tokens
see each other; `loss` turns the networks' answers into sums. Loop, packing, optimiser, adapters and checkpoints are
common. Shapes: B rows of L tokens in, N rows of W tokens out (N counts the views), S supervised rows out of N * W.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.layout import Layout
from unmask.models.network import Network
from unmask.training.noise import Noise
from unmask.training.states import Models, score_rows

IGNORE = -100
Stage = Literal["sft", "pretrain"]
"""What is noised and learnt: the answers behind clean prompts, or every token."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rows, all int64 [B, L].

    Args:
        tokens: token ids.
        labels: the token where it is to be learnt, else -100.
        segment: number of the sample within the row; `layout.PAD` behind the last one.
        positions: index within the sample.
        sample: id of the sample in the data set, the key of its noise; -1 behind the last one.
        prompt: length of the sample's prompt.
        answer: number of labels of the sample, filled-in end tokens included.
        drafts: for data made of trajectories, the noisy token of each place (the clean one in prompts), else None.
    """

    tokens: Tensor
    labels: Tensor
    segment: Tensor
    positions: Tensor
    sample: Tensor
    prompt: Tensor
    answer: Tensor
    drafts: Tensor | None = None

    @classmethod
    def of(cls, tokens: Tensor, labels: Tensor, **changes: Tensor) -> Batch:
        """Rows of one sample each, where the prompt ends at the first label."""
        supervised = labels != IGNORE
        index = torch.arange(tokens.shape[1]).expand_as(tokens)
        row = torch.arange(len(tokens)).unsqueeze(1).expand_as(tokens)
        prompt = supervised.long().argmax(1, keepdim=True).expand_as(tokens)
        answer = supervised.sum(1, keepdim=True).expand_as(tokens)
        return replace(cls(tokens, labels, torch.zeros_like(tokens), index, row, prompt, answer), **changes)


@dataclass(frozen=True, slots=True)
class View:
    """One forward: what the network sees and what its rows are to predict.

    Args:
        tokens: [N, W] token ids.
        layout: of the tokens, [W] or [N, W].
        targets: [N, W], the token that the logits at this place must predict, -100 for none; any shift is done.
        weights: [N, W] float32, of each target's term.
        normalisers: for each sum that `Recipe.loss` returns what it is divided by; added up over the whole step, all
            forwards and processes, before the division. Known before any forward, so that no cut of a step matters.
        extra: further tensors the recipe's loss needs, of any shape, moved to the device with the rest.
    """

    tokens: Tensor
    layout: Layout
    targets: Tensor
    weights: Tensor
    normalisers: Mapping[str, float]
    extra: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Supervised:
    """A view made ready for the device: the S supervised rows are listed.

    Args:
        tokens: [N, W].
        layout: [N, W] or [W].
        index: [S] increasing, where the supervised rows are in the flattened [N * W].
        targets, weights: [S].
        normalisers, extra: see `View`.
    """

    tokens: Tensor
    layout: Layout
    index: Tensor
    targets: Tensor
    weights: Tensor
    normalisers: Mapping[str, float]
    extra: Mapping[str, Tensor]

    @classmethod
    def of(cls, view: View) -> Supervised:
        index = (view.targets.flatten() != IGNORE).nonzero().squeeze(1)
        targets, weights = view.targets.flatten()[index], view.weights.flatten()[index]
        return cls(view.tokens, view.layout, index, targets, weights, view.normalisers, view.extra)

    @property
    def row(self) -> Tensor:
        """[S], the row (of N) of each supervised place."""
        return self.index // self.tokens.shape[1]

    def to(self, device: torch.device) -> Supervised:
        """On the device; from pinned memory without waiting."""

        def move(x: Tensor) -> Tensor:
            if device.type == "cuda" and x.device.type == "cpu":
                return x.contiguous().pin_memory().to(device, non_blocking=True)
            return x.to(device)

        tensors = {name: move(value) for name, value in self.extra.items()}
        moved = {name: move(getattr(self, name)) for name in ("tokens", "index", "targets", "weights")}
        return replace(self, layout=self.layout.map(move), extra=tensors, **moved)


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast one of `Recipe.modules` learns; `rate` and `clip` are multiples of the network's.

    Args:
        rate: of the learning rate.
        clip: of the largest norm of the gradient; modules are clipped each by itself.
        lead: updates that the module gets before the network begins to learn.
    """

    rate: float = 1.0
    clip: float = 1.0
    lead: int = 0


@dataclass(frozen=True, slots=True)
class Terms:
    """What a loss returns.

    Args:
        sums: the loss's terms, scalars before the division by `View.normalisers` (same names); a factor between terms
            is already in them. What is minimised is the sum of the quotients.
        right: bool [S], whether the best token of each supervised row is its target.
    """

    sums: dict[str, Tensor]
    right: Tensor


class Recipe(ABC):
    """A way to train. A recipe is a frozen dataclass of this base; the registry is in `recipes`.

    Class attributes:
        anchored: blocks are counted from the end of the prompt, so the answer alone is padded to whole blocks.
        needs_drafts: the data must hold trajectories (`Batch.drafts`).
    """

    __slots__ = ()
    anchored: ClassVar[bool] = False
    needs_drafts: ClassVar[bool] = False

    @property
    def block(self) -> int:
        """Samples (answers, where `anchored`) are padded to a multiple of this many tokens."""
        return 1

    @property
    def wants_teacher(self) -> bool:
        """Whether `Models.teacher` is called: the network as it was when the run began, never trained."""
        return False

    @property
    @abstractmethod
    def decoder(self) -> dict[str, Any]:
        """How the trained model is decoded: `method` and its options, as `LM.generate` takes them."""

    def published_as(self, family: str) -> dict[str, Any]:
        """What config.json is to say of the trained model, so that its decoder takes it.

        Args:
            family: of the model the run starts from (`families.TABLE`).

        Returns:
            Entries that replace its own; none where it stays what it is, or the weights would not fit another class.
        """
        del family
        return {}

    @abstractmethod
    def views(self, batch: Batch, noise: Noise) -> View:
        """What the network sees of these rows."""

    def loss(self, models: Models, view: Supervised) -> Terms:
        """The terms of one forward; cross-entropy where a recipe says nothing else."""
        return cross_entropy(models, view)

    def modules(self, network: Network) -> dict[str, nn.Module]:
        """Further networks that are trained along (a discriminator), made from the one the run starts with."""
        del network
        return {}

    def pace(self) -> dict[str, Pace]:
        """How fast each of `modules` learns; one that is not named learns as the network does."""
        return {}


def cross_entropy(models: Models, view: Supervised, name: str = "loss", ban: int | None = None) -> Terms:
    """The weighted sum of the supervised rows' cross-entropies as the one term `name`; `ban`: see `token_losses`."""
    states = models.student(view.tokens, view.layout, view.index)
    rows = score_rows(partial(token_losses, ban=ban), [states], view.targets)
    return Terms({name: (rows["loss"] * view.weights).sum()}, rows["right"])


def token_losses(logits_SV: Tensor, targets_S: Tensor, ban: int | None = None) -> dict[str, Tensor]:
    """`loss` (cross-entropy) and `right` of each row.

    `ban`: token id taken out of the softmax (the mask, where a network is defined by SUBS: it never predicts it).
    """
    if ban is not None:
        column = torch.arange(logits_SV.shape[1], device=logits_SV.device) == ban
        logits_SV = logits_SV.masked_fill(column, -torch.inf)
    losses = F.cross_entropy(logits_SV, targets_S, reduction="none")
    return {"loss": losses, "right": logits_SV.detach().argmax(-1) == targets_S}


def learnt(batch: Batch, stage: Stage, mask_id: int) -> Tensor:
    """The tokens that noise may mask and the network learns, bool [B, L]; never the mask itself, which fills up the
    last block of a sample."""
    chosen = batch.labels != IGNORE if stage == "sft" else batch.segment >= 0
    return chosen & (batch.tokens != mask_id)


def previous_row_targets(batch: Batch, wanted: Tensor) -> Tensor:
    """Targets [B, L] of a model with token shift: row i-1 predicts token i where `wanted` (bool [B, L]).

    A token whose predecessor belongs to another sample cannot be predicted and is left out.
    """
    same = batch.segment[:, 1:] == batch.segment[:, :-1]
    targets = torch.where(wanted[:, 1:] & same, batch.tokens[:, 1:], IGNORE)
    return F.pad(targets, (0, 1), value=IGNORE)


def same_row_targets(batch: Batch, wanted: Tensor) -> Tensor:
    """Targets [B, L] of a model without token shift: row i predicts token i where `wanted` (bool [B, L])."""
    return torch.where(wanted, batch.tokens, IGNORE)
