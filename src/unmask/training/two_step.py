"""A student that writes in two steps, all masks -> z -> x, with the log-probability of what it drew.

The draws decide beforehand which places each step reveals, so the places that are scored, and all counts of them, are
known before any forward. Logits are asked for these places alone, and each token is drawn from the very logits that
score it.

Shape legend: B samples, each in a row of its own; N = B G rows of W tokens, the G members of a sample one behind the
other; U canvases [U, W] with M members each (N = U M): one canvas where all samples start alike; P answer places of
the canvases; S places masked in z.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmask.decoding.mdlm import FLOOR, reveal_chance
from unmask.layout import PAD, Layout, full
from unmask.training.noise import Noise
from unmask.training.policy_gradient import divergence, entropy, inverse_cdf, token_law
from unmask.training.recipes.base import IGNORE, Batch, Supervised
from unmask.training.states import Models, States, score_rows


@dataclass(frozen=True, slots=True)
class Score:
    """Draws tokens at masked places and scores them.

    Args:
        mask_id: token id of the mask.
        reverse: share of KL(student || teacher), see `policy_gradient.divergence`.
    """

    mask_id: int
    reverse: float = 0.0

    def __call__(self, student: States, teacher: States | None, draw: Tensor) -> dict[str, Tensor]:
        """From the states at P places and draws [P, M]: `token` and `logp` [P, M], `kl` (0 without a teacher) and
        `entropy` [P]."""
        return score_rows(self._rows, [student] if teacher is None else [student, teacher], draw)

    def _rows(self, student_PV: Tensor, *rest: Tensor) -> dict[str, Tensor]:
        law = token_law(student_PV, self.mask_id)
        token = inverse_cdf(law, rest[-1])
        out = {"token": token, "logp": law.gather(1, token), "entropy": entropy(law)}
        if len(rest) == 1:
            return out | {"kl": torch.zeros_like(out["entropy"])}
        return out | {"kl": divergence(token_law(rest[0], self.mask_id), law, self.reverse)}


def one_sample_rows(batch: Batch) -> Batch:
    """Each sample in a row of its own, at its own positions; the width is the longest one's, [B', W'].

    Of a batch without samples one row of padding is left.
    """
    real = batch.segment != PAD
    row = ((batch.positions == 0) & real).flatten().cumsum(0)[real.flatten()] - 1
    column = batch.positions[real]
    shape = (int(row.max()) + 1, int(column.max()) + 1) if len(row) else (1, 1)

    def lay(x: Tensor, empty: int) -> Tensor:
        return torch.full(shape, empty).index_put((row, column), x[real])

    return replace(
        batch,
        tokens=lay(batch.tokens, 0),
        labels=lay(batch.labels, IGNORE),
        segment=lay(torch.zeros_like(batch.segment), PAD),
        positions=torch.arange(shape[1]).expand(shape),
        sample=lay(batch.sample, -1),
        prompt=lay(batch.prompt, 0),
        answer=lay(batch.answer, 0),
        drafts=None,
    )


@dataclass(frozen=True, slots=True)
class Draws:
    """The noise of N rows.

    Args:
        tau: [N], the level at which the first step ends.
        time: [N], the level of the corruption.
        shown: bool [N, W], revealed by the first step.
        hidden: bool [N, W], masked in z: not shown, or masked again.
        left: bool [N, W], still masked in x, where hidden.
        first, second: [N, W], of the tokens of each step: uniform numbers, or (int64) the tokens themselves.
        fake, real: bool [N, W], what the corruption masks of x and of the target sample.
    """

    tau: Tensor
    time: Tensor
    shown: Tensor
    hidden: Tensor
    left: Tensor
    first: Tensor
    second: Tensor
    fake: Tensor
    real: Tensor


def draw(
    rows: Batch, noise: Noise, group: int, tau: Tensor, time: Tensor, t0: float, remask_prob: float, first_purpose: int
) -> Draws:
    """The noise of rows of one sample each, by (sample, member, position).

    Args:
        tau, time: [N].
        t0: where the second step ends.
        remask_prob: a token of the first step is masked again with this probability.
        first_purpose: of seven numbers that tell these draws from the recipe's others.
    """
    keys = rows.sample[:, :1, None], torch.arange(group).unsqueeze(1), rows.positions[:, None]
    show, again, stay, first, second, fake, real = (
        noise.uniform(first_purpose + i, *keys).flatten(0, 1) for i in range(7)
    )
    shown = show < reveal_chance(torch.ones(1), tau).unsqueeze(1)
    corrupted = (1 - FLOOR) * time.unsqueeze(1)
    return Draws(
        tau=tau,
        time=time,
        shown=shown,
        hidden=~shown | (again < remask_prob),
        left=stay >= reveal_chance(tau, torch.tensor(t0)).unsqueeze(1),
        first=first,
        second=second,
        fake=fake < corrupted,
        real=real < corrupted,
    )


@dataclass(frozen=True, slots=True)
class Canvases:
    """The rows before the first step.

    Args:
        tokens: [N, W], masks where the answers go.
        layout: full attention within each row; [N, W], or [W] where no row has padding.
        targets: [N, W], the data's answers, else -100.
        answers: bool [N, W].
        count: U.
    """

    tokens: Tensor
    layout: Layout
    targets: Tensor
    answers: Tensor
    count: int


def canvases(batch: Batch, group: int, mask_id: int) -> Canvases:
    """Each row of the batch (one sample a row) `group` times with its answer masked."""
    real, answers = batch.segment != PAD, batch.labels != IGNORE
    tokens = torch.where(answers, mask_id, batch.tokens)
    alike = all(bool((x == x[:1]).all()) for x in (tokens, answers, real))
    rows = [x.repeat_interleave(group, 0) for x in (tokens, batch.labels, answers, real)]
    layout = full(tokens.shape[1])
    if not bool(real.all()):
        layout = layout.batch(len(rows[0])).with_padding(rows[3])
    return Canvases(rows[0], layout, rows[1], rows[2], 1 if alike else len(tokens))


def every(layout: Layout, count: int) -> Layout:
    """The layout of every `count`-th row; one of [W] is that of all rows."""
    return layout if layout.order.dim() == 1 else layout.map(lambda x: x[::count])


def places(start: Canvases, draws: Draws) -> dict[str, Tensor]:
    """The scored places of both steps with their draws.

    Returns:
        `first_place` [P] in the flattened [U, W], `first_draw`, `first_shown`, `first_hidden` [P, M]; `second_place`
        [S] in the flattened [N, W], `second_draw` [S, 1], `second_left` [S].
    """
    count, width = start.tokens.shape
    members = count // start.count
    first = start.answers[::members].flatten().nonzero().squeeze(1)
    row, column = first // width, first % width
    second = (draws.hidden & start.answers).flatten().nonzero().squeeze(1)

    def by_place(x: Tensor) -> Tensor:
        return x.view(-1, members, width)[row, :, column]

    return {
        "first_place": first,
        "first_draw": by_place(draws.first),
        "first_shown": by_place(draws.shown),
        "first_hidden": by_place(draws.hidden),
        "second_place": second,
        "second_draw": draws.second.flatten()[second, None],
        "second_left": draws.left.flatten()[second],
    }


@dataclass(frozen=True, slots=True)
class Rollout:
    """What the student wrote.

    Args:
        z: [N, W] after the first step.
        tokens: [N, W], x.
        first, second: what the score returned at the places of each step.
        first_row, second_row: [P] canvas and [S] row of the places.
    """

    z: Tensor
    tokens: Tensor
    first: dict[str, Tensor]
    second: dict[str, Tensor]
    first_row: Tensor
    second_row: Tensor

    def log_prob(self, first_counted: Tensor, second_counted: Tensor) -> Tensor:
        """The sum [N] of the log-probabilities of the counted draws, bool [P, M] and [S]."""
        count, members = len(self.z), self.first["logp"].shape[1]
        zeros = torch.zeros(count // members, members, device=self.z.device)
        drawn = torch.where(first_counted, self.first["logp"], 0.0)
        total = zeros.index_add(0, self.first_row, drawn).flatten()
        return total.index_add(0, self.second_row, torch.where(second_counted, self.second["logp"].squeeze(1), 0.0))


def rollout(models: Models, view: Supervised, score: Score, teacher: bool) -> Rollout:
    """Plays both steps on a view whose tokens are canvases and whose extra holds `places`."""
    extra, (count, width) = view.extra, view.tokens.shape
    members = extra["first_draw"].shape[1]
    first_row, column = extra["first_place"] // width, extra["first_place"] % width

    def step(tokens: Tensor, layout: Layout, name: str) -> dict[str, Tensor]:
        asked = (tokens, layout, extra[f"{name}_place"])
        held = models.teacher(*asked) if teacher else None
        return score(models.student(*asked), held, extra[f"{name}_draw"])

    first = step(view.tokens[::members], every(view.layout, members), "first")
    z = view.tokens.view(-1, members, width).clone()
    z[first_row, :, column] = torch.where(extra["first_hidden"], score.mask_id, first["token"])
    z = z.view(count, width)
    second = step(z, view.layout, "second")
    written = torch.where(extra["second_left"], score.mask_id, second["token"].squeeze(1))
    x = z.flatten().scatter(0, extra["second_place"], written).view(count, width)
    return Rollout(z, x, first, second, first_row, extra["second_place"] // width)


def target_places(batch: Batch, noise: Noise, first_purpose: int) -> dict[str, Tensor]:
    """What `ancestral` needs, of rows of one sample each.

    Returns:
        `target_place` [P] in the flattened [B, W]; uniform numbers, of two purposes: `target_moment` [P], when each
        place is revealed, and `target_draw` [P, 1].
    """
    place = (batch.labels != IGNORE).flatten().nonzero().squeeze(1)
    keys = batch.sample.flatten()[place], batch.positions.flatten()[place]
    moment, token = (noise.uniform(first_purpose + i, *keys) for i in range(2))
    return {"target_place": place, "target_moment": moment, "target_draw": token.unsqueeze(1)}


@torch.no_grad()
def ancestral(models: Models, view: Supervised, group: int, score: Score, steps: int) -> Tensor:
    """Samples [N, W] of the teacher by `steps` equal ancestral steps, the members of a group alike."""
    extra = view.extra
    tokens, layout = view.tokens[::group].clone(), every(view.layout, group)
    when = (extra["target_moment"] * steps).long()
    for step in range(steps):
        due = (when == step).nonzero().squeeze(1)
        states = models.teacher(tokens, layout, extra["target_place"][due])
        drawn = score(states, None, extra["target_draw"][due])["token"].squeeze(1)
        tokens = tokens.flatten().scatter(0, extra["target_place"][due], drawn).view_as(tokens)
    return tokens.repeat_interleave(group, 0)
