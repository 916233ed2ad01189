"""DiDi-Instruct: a masked diffusion model learns to sample in few steps, by policy gradient on its own samples.

Paper: "Ultra-Fast Language Generation via Discrete Diffusion Divergence Instruct" (arXiv 2509.25035; official code
haoyangzheng-ai/didi-instruct, training release of 2026-02). The student writes in two steps, all masks -> z (masked at
level tau) -> x. x and target samples are masked anew, a discriminator learns to tell them apart, and its log odds, less
the mean of the group, weigh the log-probabilities of the student's draws. A frozen teacher holds the student back
(KL at the masked places of both steps). Student and discriminator have terms of their own in one backward pass; as the
first rewards mean nothing, `discriminator_lead` lets the discriminator learn first.

What differs from the official code, on purpose (the official behaviour is an option where one is named):
- each draw is scored by the logits it was made from; the official code samples in passes of their own, under dropout;
- the baseline leaves the sample itself out (`norm` "mean_std": official, scaled and slightly biased), and a group
  shares its tau (`shared_tau`);
- the teacher is called as it was trained: noise level 0, the mask never predicted;
- log-probabilities of chosen tokens only, and without the added 1e-10; rewards are exact log odds (`log_odds_eps`);
- noise comes from (seed, epoch, sample, member, position); a sample shares its row with no other.
A sample of which the corruption masks nothing has reward 0 and counts in its group, as in the official code.

    python -m unmask.training CONFIG.yaml --set recipe.name=didi_instruct
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from unmask.decoding.mdlm import noise_level
from unmask.errors import UnmaskError, unknown
from unmask.models.network import Network
from unmask.training import two_step
from unmask.training.discriminator import judged, new_discriminator
from unmask.training.noise import Noise
from unmask.training.policy_gradient import Norm, advantages, beta_density, beta_draw, label_loss, rewards
from unmask.training.recipes.base import IGNORE, Batch, Pace, Recipe, Stage, Supervised, Terms, View, learnt
from unmask.training.states import Models

_TAU, _TIME, _DRAWS, _TARGET = 1, 2, 3, 10
Target = Literal["data", "teacher"]


@dataclass(frozen=True, slots=True)
class DidiInstruct(Recipe):
    """The recipe's options."""

    mask_id: int
    """Token id of the mask."""
    stage: Stage = "pretrain"
    """"pretrain": samples are written whole. "sft": answers behind clean prompts."""
    group: int = 4
    """Samples of the student for each sample of the data (G); they lie in the same forward."""
    norm: Norm = "loo"
    """The baseline, see `policy_gradient.advantages`."""
    shared_tau: bool = True
    """A group shares its times."""
    coupled: bool = True
    """The corruption's time is tau; False: drawn apart by the same law."""
    tau_law: tuple[int, int] = (1, 1)
    """tau ~ Beta(a, b), whole numbers; (1, 1) is uniform."""
    tau_range: tuple[float, float] = (0.02, 0.98)
    """Times are clamped to it."""
    importance_weight: bool = False
    """Divide the weight by the density of `tau_law`."""
    weight_range: tuple[float, float] = (0.1, 10.0)
    """The weight 1 / t is clamped to it."""
    t0: float = 1e-3
    """Where the second step ends: a masked place stays masked with probability t0 / tau."""
    remask_prob: float = 0.0
    """Tokens of the first step are masked again with this probability."""
    drop_remasked: bool = False
    """Leave out the second step's draws that the corruption hides: same mean, less variance."""
    reward_clip: float = 8.0
    """Of a place's log odds."""
    advantage_clip: float = 3.0
    """0: none, as the unbiased estimator demands."""
    log_odds_eps: float = 0.0
    """Added to both probabilities of the log odds (official: 1e-6)."""
    label_smoothing: float = 0.1
    """The discriminator's labels are 1 - this and this."""
    undo_smoothing: bool = False
    """Rewards are the log ratio that the smoothed discriminator stands for at its optimum."""
    kl_beta: float = 1.0
    """Weight of the divergence from the teacher; 0: no teacher is called."""
    kl_steps: tuple[float, float] = (0.01, 0.01)
    """Its weights at the masked places of the empty canvas and of z."""
    kl_reverse: float = 0.0
    """Share of KL(student || teacher); 0.5 is Jeffreys."""
    entropy_beta: float = 0.0005
    """Weight of the mean entropy of both steps, which is raised."""
    target: Target = "data"
    """What the discriminator takes as real: data, or the teacher's samples (the paper's text)."""
    teacher_steps: int = 64
    """Ancestral steps of a teacher's sample."""
    trained_blocks: int = 4
    """Last blocks of the discriminator that are trained, with its head."""
    discriminator_rate: float = 10.0
    """Learning rate of the discriminator, as a multiple of the student's."""
    discriminator_clip: float = 2.0
    """Largest norm of its gradient, as a multiple of the student's."""
    discriminator_lead: int = 0
    """Updates that the discriminator gets before the student moves."""

    def __post_init__(self) -> None:
        choices = (("stage", self.stage, Stage), ("norm", self.norm, Norm), ("target", self.target, Target))
        for name, value, allowed in choices:
            if value not in get_args(allowed):
                raise unknown(name, value, get_args(allowed))
        least = 1 if self.norm == "none" else 2
        if self.group < least:
            raise UnmaskError(f"group must be at least {least} with norm {self.norm!r}, got {self.group}")
        if min(self.tau_law) < 1:
            raise UnmaskError(f"tau_law must be two whole numbers of at least 1, got {self.tau_law}")
        low, high = self.tau_range
        if low <= 0 or not 0 <= self.t0 <= low <= high <= 1:
            raise UnmaskError(f"tau_range must lie above 0, between t0 {self.t0} and 1, got {self.tau_range}")
        if not 0 <= self.label_smoothing < 0.5:
            raise UnmaskError(f"label_smoothing must be in 0 .. 0.5, got {self.label_smoothing}")

    @property
    def wants_teacher(self) -> bool:
        return self.kl_beta > 0 or self.target == "teacher"

    @property
    def decoder(self) -> dict[str, Any]:
        return {"method": "mdlm", "steps": 16, "temperature": 1.0}

    def modules(self, network: Network) -> dict[str, nn.Module]:
        return {"discriminator": new_discriminator(network, self.trained_blocks)}

    def pace(self) -> dict[str, Pace]:
        return {"discriminator": Pace(self.discriminator_rate, self.discriminator_clip, self.discriminator_lead)}

    def views(self, batch: Batch, noise: Noise) -> View:
        rows = two_step.one_sample_rows(batch)
        rows = replace(rows, labels=torch.where(learnt(rows, self.stage, self.mask_id), rows.tokens, IGNORE))
        view = self.view_of(rows, self.draws(rows, noise))
        if self.target == "data":
            return view
        return replace(view, extra={**view.extra, **two_step.target_places(rows, noise, _TARGET)})

    def draws(self, rows: Batch, noise: Noise) -> two_step.Draws:
        """The noise of rows of one sample each."""
        tau = self._times(rows, noise, _TAU)
        time = tau if self.coupled else self._times(rows, noise, _TIME)
        return two_step.draw(rows, noise, self.group, tau, time, self.t0, self.remask_prob, _DRAWS)

    def _times(self, rows: Batch, noise: Noise, purpose: int) -> Tensor:
        """[N], clamped."""
        a, b = self.tau_law
        member = torch.arange(self.group) * (not self.shared_tau)
        u = noise.uniform(purpose, rows.sample[:, :1, None], member.unsqueeze(1), torch.arange(a + b - 1))
        return beta_draw(u, a).clamp(*self.tau_range).flatten()

    def weights(self, time: Tensor) -> Tensor:
        """w(t), divided by the density of t where the options say so."""
        w = (1 / time).clamp(*self.weight_range)
        return w / beta_density(time, *self.tau_law) if self.importance_weight else w

    def view_of(self, batch: Batch, draws: two_step.Draws) -> View:
        """The view of rows of one sample each and of given draws."""
        start = two_step.canvases(batch, self.group, self.mask_id)
        fake, real = draws.fake & start.answers, draws.real & start.answers
        extra = two_step.places(start, draws)
        counted = ~extra["second_left"] & ~(fake.flatten()[extra["second_place"]] & self.drop_remasked)
        extra |= {"fake": fake, "real": real, "second_counted": counted}
        extra |= {"weight": self.weights(draws.time), "sigma": noise_level(draws.time)}
        answers = {"first": int(start.answers.sum()) / self.group, "second": len(extra["second_place"])}
        normalisers = {f"{term}_{step}": count for term in ("kl", "entropy") for step, count in answers.items()}
        normalisers |= {"policy": int(start.answers.any(1).sum()), "real": int(real.sum()), "fake": int(fake.sum())}
        return View(start.tokens, start.layout, start.targets, torch.ones(fake.shape), normalisers, extra)

    def loss(self, models: Models, view: Supervised) -> Terms:
        extra, score = view.extra, two_step.Score(self.mask_id, self.kl_reverse)
        written = two_step.rollout(models, view, score, teacher=self.kl_beta > 0)
        if self.target == "teacher":
            target = two_step.ancestral(models, view, self.group, score, self.teacher_steps)
        else:
            target = view.tokens.flatten().scatter(0, view.index, view.targets).view_as(view.tokens)
        hidden = torch.cat([extra["real"], extra["fake"]])
        corrupted = torch.where(hidden, self.mask_id, torch.cat([target, written.tokens]))
        real, fake = judged(models.module("discriminator"), view.layout, corrupted, extra["sigma"]).chunk(2)
        unsmooth = self.label_smoothing if self.undo_smoothing else 0.0
        reward = rewards(fake.detach(), extra["fake"], self.reward_clip, self.log_odds_eps, unsmooth)
        advantage = advantages(reward, self.group, self.norm, self.advantage_clip)
        log_prob = written.log_prob(extra["first_shown"], extra["second_counted"])
        # A canvas that many samples share counts once for each of them.
        shared = written.first["token"].shape[1] / self.group
        kl, spread = ([written.first[n].sum() * shared, written.second[n].sum()] for n in ("kl", "entropy"))
        sums = {
            "policy": -(extra["weight"] * advantage * log_prob).sum(),
            "kl_first": self.kl_beta * self.kl_steps[0] * kl[0],
            "kl_second": self.kl_beta * self.kl_steps[1] * kl[1],
            "entropy_first": -self.entropy_beta / 2 * spread[0],
            "entropy_second": -self.entropy_beta / 2 * spread[1],
            "real": label_loss(real, extra["real"], 1 - self.label_smoothing) / 2,
            "fake": label_loss(fake, extra["fake"], self.label_smoothing) / 2,
        }
        return Terms(sums, written.tokens.flatten()[view.index] == view.targets)
