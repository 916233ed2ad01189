"""An exact denoiser: a joint distribution over a few positions, and what it says of each one given the others."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

from unmask.decoding import build
from unmask.decoding.forward import Facts
from unmask.decoding.loop import Row, decode
from unmask.decoding.mdlm import reveal_chance, time_at
from unmask.decoding.sampling import Draw
from unmask.models.config import ModelConfig
from unmask.models.families import Family


class Tabular:
    """The joint [X] over all texts of L real tokens out of V, as a model with one prompt token before them.

    Ids: 0..V-1 real, V the mask, V + 1 the prompt token.
    """

    def __init__(self, vocab: int, length: int, joint: Tensor) -> None:
        self.vocab, self.length, self.mask, self.joint = vocab, length, vocab, joint.double()
        self.texts = torch.tensor(list(product(range(vocab), repeat=length)))
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.config = ModelConfig("mdlm", vocab + 2, 8, 8, 1, 1, 1, 4, 1e-6, 1e4, 64)
        self.family = Family("mdlm", "full", "full", 0, False, vocab + 2, vocab)

    def probs(self, canvas: Tensor) -> Tensor:
        """Exact conditionals [B, L, V] given the canvases [B, L] with masks."""
        fits = ((canvas[:, None] == self.texts) | (canvas[:, None] == self.mask)).all(-1)
        weight = fits * self.joint
        onehot = torch.nn.functional.one_hot(self.texts, self.vocab).double()
        mass = torch.einsum("bx,xlv->blv", weight, onehot)
        return mass / mass.sum(-1, keepdim=True)

    def __call__(self, tokens: Tensor, positions: Tensor, attend: Any, rows: Tensor) -> Tensor:
        # Logits must be finite: e^-60 is nothing in float32.
        logits = torch.full((*tokens.shape, self.vocab + 2), -60.0)
        logits[:, 1:, : self.vocab] = self.probs(tokens[:, 1:]).log().clamp(min=-60).float()
        logits[..., self.mask] = 5.0  # a sampler that forgets to take the mask out would choose it
        return logits.gather(1, rows[..., None].expand(-1, -1, logits.shape[-1]))


def sample(model: Tabular, method: str, options: dict[str, Any], count: int, temperature: float = 1.0) -> list[Row]:
    """`count` decodings with seeds 0, 1, ..."""
    draw = Draw(torch.full((count,), temperature), torch.ones(count), torch.zeros(count).long(), torch.arange(count))
    bound = build(method, options).bind(model.family, model.length)
    facts = Facts(model.mask, (), 0)
    prompts = [[model.vocab + 1]] * count
    return decode(model, bound, prompts, facts=facts, draw=draw, new_tokens=model.length)  # type: ignore[arg-type]


def counts(model: Tabular, rows: list[Row]) -> Tensor:
    """How often each text was sampled: float64 [X]. Fails on a text that holds a mask."""
    place = model.vocab ** torch.arange(model.length - 1, -1, -1)
    canvas = torch.tensor([r.canvas for r in rows])
    assert int(canvas.max()) < model.vocab
    return torch.bincount((canvas * place).sum(-1), minlength=len(model.texts)).double()


def exact_law(model: Tabular, steps: int) -> Tensor:
    """The law [X] of the ancestral sampler in `steps` steps and a clean-up, by enumeration of every canvas."""
    canvases = torch.tensor(list(product(range(model.vocab + 1), repeat=model.length)))
    mass = (canvases == model.mask).all(-1).double()
    for i in range(steps + 1):
        t, s = (time_at(torch.tensor(k), steps) for k in (i, i + 1))
        mass = mass @ transition(model, canvases, float(reveal_chance(t, s)))
    finished = (canvases != model.mask).all(-1)
    return mass[finished]


def transition(model: Tabular, canvases: Tensor, chance: float) -> Tensor:
    """Probability [Z, Z] of one step from each canvas to each other, positions revealed with this chance."""
    reachable = ((canvases[:, None] == canvases) | (canvases[:, None] == model.mask)).all(-1)
    probs = torch.nan_to_num(model.probs(canvases))
    rows = torch.cat([probs * chance, torch.full((*canvases.shape, 1), 1 - chance).double()], -1)
    each = rows[:, torch.arange(model.length), canvases]  # [from, to, position]
    each = torch.where((canvases == model.mask)[:, None], each, 1.0)
    return each.prod(-1) * reachable


def excess(observed: Tensor, expected: Tensor) -> float:
    """By how many standard deviations a chi-square statistic exceeds what it should be; cells below 5 are pooled."""
    expected = expected / expected.sum() * observed.sum()
    small = expected < 5
    pairs = [(observed[~small], expected[~small])]
    if float(expected[small].sum()) >= 5:
        pairs.append((observed[small].sum()[None], expected[small].sum()[None]))
    seen, due = (torch.cat(x) for x in zip(*pairs))
    degrees = len(due) - 1
    return float((((seen - due) ** 2 / due).sum() - degrees) / (2 * degrees) ** 0.5)
