"""DiDi-Instruct on networks: no cut of a step matters, trainer equals decoder, the discriminator, whole runs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sample_rows import packed, sample, stacked
from seen_when_decoding import moments
from torch import Tensor, nn
from toy_didi import MASK, STATES, TEXTS, Toy, code, corruption, random_law, text_law, texts, time_of

from checkpoints import GOLDEN, tiny
from unmask.decoding import build
from unmask.decoding.forward import Facts
from unmask.decoding.loop import decode
from unmask.decoding.sampling import Draw
from unmask.errors import UnmaskError
from unmask.layout import full
from unmask.models.config import DiTConfig, ModelConfig
from unmask.models.discriminator import load_discriminator
from unmask.models.dit import DiT
from unmask.models.families import Family
from unmask.tasks.grammar import Grammar
from unmask.training import two_step
from unmask.training.config import from_mapping
from unmask.training.discriminator import SpectralLinear, judged, new_discriminator
from unmask.training.noise import Noise
from unmask.training.objective import Objective
from unmask.training.ranks import Ranks
from unmask.training.recipes import make_recipe
from unmask.training.recipes.base import Batch, Recipe, Supervised, View
from unmask.training.recipes.didi_instruct import DidiInstruct
from unmask.training.recipes.mdlm import Mdlm
from unmask.training.step import Step
from unmask.training.times import StepNoise
from unmask.training.trainer import Trainer
from vectors_didi import objective_of
from vectors_dit import network

FOLDER = GOLDEN / "models" / "didi-dit-tiny"
DIT_MASK = 160
CPU = torch.device("cpu")


def some(batch: Batch, rows: slice) -> Batch:
    return Batch(**{f.name: getattr(batch, f.name)[rows] for f in fields(Batch) if f.name != "drafts"})


def rows_of(count: int) -> Batch:
    """Samples of 2 prompt tokens and 6 of an answer."""
    draw = torch.Generator().manual_seed(9)
    made = [torch.randint(0, DIT_MASK, (8,), generator=draw).tolist() for _ in range(count)]
    return stacked([sample(x[:2], x[2:], 20 + i) for i, x in enumerate(made)])


def step_gradients(objective: Objective, views: list[View]) -> dict[str, Tensor]:
    """Of all trained weights, after the forwards of one step."""
    objective.zero_grad()
    totals = {name: sum(v.normalisers[name] for v in views) for name in views[0].normalisers}
    for view in views:
        sums = objective(Supervised.of(view)).sums
        torch.stack([value / max(totals[name], 1e-8) for name, value in sums.items()]).sum().backward()
    return {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, grad in ours.items():
        torch.testing.assert_close(grad, theirs[name], rtol=1e-3, atol=1e-4 * float(grad.abs().max()) + 1e-9)


@pytest.mark.parametrize("stage", ["sft", "pretrain"])
@pytest.mark.parametrize("norm", ["loo", "mean_std"])
def test_one_forward_of_eight_rows_equals_two_of_four_and_eight_of_one(stage, norm):
    # Without prompts all samples share one canvas, with them each has its own.
    recipe, batch = DidiInstruct(mask_id=DIT_MASK, stage=stage, norm=norm), rows_of(8)
    objective = objective_of(FOLDER, recipe).train()
    whole = step_gradients(objective, [recipe.views(batch, Noise(1))])
    assert {name.partition(".")[0] for name in whole} == {"network", "modules_of_recipe"}
    for size in (4, 1):
        views = [recipe.views(some(batch, slice(i, i + size)), Noise(1)) for i in range(0, 8, size)]
        assert_same(step_gradients(objective, views), whole)


def test_packed_samples_train_as_in_rows_of_their_own():
    recipe = DidiInstruct(mask_id=DIT_MASK, stage="sft", target="teacher", teacher_steps=3)
    one, two = sample([5, 11, 7], [3, 9, 1, 14, 20, 2], 4), sample([8], [12, 30, 31], 9)
    objective = objective_of(FOLDER, recipe).train()
    apart = step_gradients(objective, [recipe.views(b, Noise(1)) for b in (one, two)])
    joined = recipe.views(packed([one, two], 16), Noise(1))
    assert joined.tokens.shape == (8, 9)
    assert_same(step_gradients(objective, [joined]), apart)


def test_rows_without_samples_add_nothing():
    recipe, batch = DidiInstruct(mask_id=DIT_MASK), rows_of(1)
    gone = torch.full_like(batch.tokens, -1)
    view = recipe.views(replace(batch, segment=gone, sample=gone, labels=100 * gone), Noise(0))
    assert set(view.normalisers.values()) == {0}
    sums = objective_of(FOLDER, recipe)(Supervised.of(view)).sums
    assert [value.item() for value in sums.values()] == [0.0] * 7


def test_before_the_first_update_the_student_is_its_teacher():
    student, recipe = network(FOLDER), DidiInstruct(mask_id=DIT_MASK, kl_reverse=0.5, kl_steps=(1.0, 1.0))
    objective = Objective(student, recipe, copy.deepcopy(student))
    view = Supervised.of(recipe.views(rows_of(4), Noise(0)))
    sums = {name: value.item() for name, value in objective(view).sums.items()}
    assert abs(sums["kl_first"]) < 1e-4 and abs(sums["kl_second"]) < 1e-4
    with torch.no_grad():
        student.output_layer.linear.weight.mul_(1.5)
    moved = {name: value.item() for name, value in objective(view).sums.items()}
    assert moved["kl_first"] > 1 and moved["kl_second"] > 1


class Watched:
    """`Models` that remember what the student was asked."""

    def __init__(self, inner: Objective) -> None:
        self.inner, self.asked = inner, []

    def student(self, tokens: Tensor, layout: Any, index: Tensor) -> Any:
        states = self.inner.student(tokens, layout, index)
        self.asked.append((tokens, index, states.head(states.hidden)))
        return states


@torch.no_grad()
def test_the_student_sees_the_canvases_and_logits_that_the_decoder_sees():
    lm = tiny("didi-dit-tiny")
    assert lm.facts.mask_id == DIT_MASK
    recipe, compared = DidiInstruct(mask_id=DIT_MASK, group=2), 0
    for state, forward, logits in moments(lm, build("mdlm", {"steps": 6}), [[5, 80, 33], [90, 12, 44]], 12):
        tokens, is_open = (x.repeat_interleave(2, 0) for x in (torch.where(state.open, 0, state.canvas), state.open))
        batch = stacked([sample(row[:3], row[3:], i) for i, row in enumerate(tokens[::2].tolist())])
        half, nothing = torch.full((4,), 0.5), torch.zeros_like(is_open)
        draws = two_step.Draws(half, half, ~is_open, is_open, nothing, tokens, tokens, nothing, nothing)
        models = Watched(Objective(lm.model, recipe))
        view = Supervised.of(recipe.view_of(batch, draws))
        two_step.rollout(models, view, two_step.Score(DIT_MASK), teacher=False)
        seen, index, ours = models.asked[1]
        assert torch.equal(seen[::2], state.canvas)
        column = {place: c for c, place in enumerate(index.tolist())}
        for row, c in (forward.targets >= 0).nonzero().tolist():
            place = 2 * row * seen.shape[1] + int(forward.targets[row, c])
            torch.testing.assert_close(ours[column[place]], logits[row, c], atol=1e-4, rtol=1e-4)
            compared += 1
    assert compared == 24


# The discriminator.


def test_the_discriminator_starts_as_the_network_and_trains_its_upper_part_alone():
    student = network(FOLDER)
    judge = new_discriminator(student, trained_blocks=1)
    assert torch.equal(judge.embedding, student.embedding) and judge.embedding is not student.embedding
    free = {name for name, p in judge.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[0] for name in free} >= {"blocks.1.attn_qkv", "output_layer.main.0"}
    assert all(name.startswith(("blocks.1.", "output_layer.")) for name in free)
    again = new_discriminator(student, 1)
    assert all(torch.equal(a, b) for a, b in zip(judge.state_dict().values(), again.state_dict().values()))
    assert not any(p.requires_grad for p in new_discriminator(student, 0).blocks.parameters())
    with pytest.raises(UnmaskError, match="needs a DiT"):
        new_discriminator(tiny("qwen2-tiny").model, 4)


def test_the_discriminators_head_has_norm_one_and_is_saved_as_the_decoder_loads_it(tmp_path):
    judge = new_discriminator(network(FOLDER), 4)
    with torch.no_grad():
        for layer in (judge.output_layer.main[0], judge.output_layer.main[2]):
            assert isinstance(layer, SpectralLinear)
            layer.weight_orig.mul_(3).add_(0.01)
    tokens = torch.randint(0, 161, (3, 7), generator=torch.Generator().manual_seed(0))
    said = judged(judge, full(7), tokens, torch.ones(3)).detach()
    first = judge.output_layer.main[0]
    inner = torch.randn(500, 64, generator=torch.Generator().manual_seed(1))
    stretched = (first(inner) - first.bias).norm(dim=1) / inner.norm(dim=1)
    assert 0.3 < stretched.max().item() <= 1 + 1e-5
    largest = torch.linalg.matrix_norm(first.weight_orig, 2).item()
    assert float(first.weight_u @ first.weight_orig.detach() @ first.weight_v) == pytest.approx(largest, rel=1e-5)
    save_file(judge.state_dict(), tmp_path / "discriminator.safetensors")
    (tmp_path / "config.json").write_text((FOLDER / "config.json").read_text())
    loaded = load_discriminator(str(tmp_path), CPU)
    torch.testing.assert_close(judged(loaded, full(7), tokens, torch.ones(3)), said)


def test_the_discriminator_learns_at_its_own_pace_and_first(tmp_path):
    recipe = DidiInstruct(mask_id=DIT_MASK, discriminator_lead=2)
    objective = objective_of(FOLDER, recipe).train()
    values = {"recipe": {}, "output": str(tmp_path), "model": "none", "weight_decay": 0.5}
    trainer = Trainer(from_mapping(values), Ranks(0, 1, CPU), objective)
    moved = []
    for number in range(3):
        held = {name: p.detach().clone() for name, p in objective.named_parameters()}
        view = recipe.views(rows_of(2), Noise(number))
        trainer.update(Step(number, [Supervised.of(view)], dict(view.normalisers), 0), 1e-3)
        change = {name: (p - held[name]).abs().max().item() for name, p in objective.named_parameters()}
        parts = ("network.", "modules_of_recipe.discriminator.", "frozen.")
        moved.append([max(size for name, size in change.items() if name.startswith(part)) for part in parts])
    assert [m[0] > 0 for m in moved] == [False, False, True]
    assert all(m[1] > 5e-3 and m[2] == 0 for m in moved)


# Options.


def test_options_are_checked_and_the_decoder_is_known():
    recipe = make_recipe({"name": "didi_instruct"}, mask_id=3)
    options = dict(recipe.decoder)
    assert options.pop("temperature") == 1
    assert build(options.pop("method"), options).name == "mdlm"
    assert recipe.pace()["discriminator"].rate == 10
    for wrong, message in [
        ({"norm": "lo"}, "did you mean 'loo'"),
        ({"target": "student"}, "unknown target"),
        ({"stage": "sfd"}, "did you mean 'sft'"),
        ({"group": 1}, "group must be at least 2 with norm 'loo', got 1"),
        ({"tau_law": [0, 1]}, "tau_law must be two whole numbers of at least 1"),
        ({"tau_range": [0.0, 1.0], "t0": 0.0}, "tau_range must lie above 0"),
        ({"label_smoothing": 0.5}, "label_smoothing must be in 0 .. 0.5, got 0.5"),
    ]:
        with pytest.raises(UnmaskError, match=message):
            make_recipe({"name": "didi_instruct", **wrong}, mask_id=3)


# Whole runs.


class Table(nn.Module):
    """A discriminator that is a table of canvases and 25 times."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(25, len(STATES)))

    def forward(self, tokens: Tensor, sigma: Tensor) -> Tensor:
        bins = ((time_of(sigma) - 0.02) / 0.96 * 24).round().long().clamp(0, 24)
        return self.logits[bins, code(tokens)]


def integrated(table: Tensor, target: Tensor) -> float:
    """The weighted divergence of the student's corrupted law, averaged over 25 times."""
    parts = []
    for t in torch.linspace(0.02, 0.98, 25).tolist():
        ours, theirs = (law @ corruption(t) for law in (text_law(table, t), target))
        parts.append(min(1 / t, 10) * (ours * (ours.log() - theirs.log())).sum())
    return float(torch.stack(parts).mean())


@pytest.mark.slow
def test_a_table_leaves_the_exact_conditionals_for_a_better_joint_law():
    target = random_law(3, 2.0)
    fits = ((STATES[:, None] == TEXTS) | (STATES[:, None] == MASK)).all(-1)
    mass = torch.einsum("sx,xlv->slv", fits * target, nn.functional.one_hot(TEXTS).double())
    table = (mass / mass.sum(-1, keepdim=True)).clamp_min(1e-9).log().float().requires_grad_()
    assert integrated(table.detach().double(), target) == pytest.approx(1.0288, abs=1e-4)
    recipe, judge, steps, lead = DidiInstruct(mask_id=MASK, kl_beta=0.0, entropy_beta=0.0, t0=0.0), Table(), 1500, 200
    optimizer = torch.optim.Adam([{"params": [table]}, {"params": judge.parameters()}])
    data = texts(64 * (steps + lead), target)
    for step in range(-lead, steps):
        view = recipe.views(some(data, slice(64 * (step + lead), 64 * (step + lead + 1))), Noise(0))
        sums = recipe.loss(Toy(table, judge), Supervised.of(view)).sums
        torch.stack([value / view.normalisers[name] for name, value in sums.items()]).sum().backward()
        fall = 1 - max(step, 0) / steps
        for group, rate in zip(optimizer.param_groups, (0.01 * fall * (step >= 0), 0.1 * (0.1 + 0.9 * fall))):
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    assert integrated(table.detach().double(), target) < 0.90


SOURCE = Grammar(vocabulary=6, keys=2, topics=1, weights=(0.8, 0.2), noise=0.02)
LENGTH = 4


def sequences(step: int, rows: int) -> Batch:
    """Samples of the source behind a first token that is always the same, without which a DiT knows no positions."""
    drawn = SOURCE.sample(rows, LENGTH, seed=7, start=step * rows)
    tokens = torch.cat([torch.zeros(rows, 1, dtype=torch.long), drawn], dim=1)
    batch = Batch.of(tokens, torch.where(torch.arange(LENGTH + 1) > 0, tokens, -100))
    return replace(batch, sample=batch.sample + step * rows)


def steps_of(recipe: Recipe, count: int, rows: int) -> Iterator[Step]:
    for number in range(count):
        batch = sequences(number, rows)
        view = recipe.views(batch, StepNoise(0, 0, tuple(batch.sample[:, 0].tolist())))
        yield Step(number, [Supervised.of(view)], dict(view.normalisers), view.tokens.numel())


def train(objective: Objective, count: int, rows: int, rate: float, lead: int = 0) -> None:
    """Linear warm-up over 20 steps and, from step `lead` on, linear fall."""
    config = {"recipe": {}, "output": "", "model": "", "weight_decay": 0.0, "betas": (0.9, 0.98), "steps": count}
    trainer = Trainer(from_mapping(config), Ranks(0, 1, CPU), objective)
    for step in steps_of(objective.recipe, count, rows):
        fall = 1 - max(step.number - lead, 0) / (count - lead)
        trainer.update(step, rate * min(1.0, (step.number + 1) / 20) * fall)


def sampled(model: DiT, steps: int, count: int = 2000) -> dict[str, float]:
    """What the source says of the decoder's samples."""
    family = Family("mdlm", "full", "full", 0, False, SOURCE.vocabulary + 1, SOURCE.mask_id)
    method = build("mdlm", {"steps": steps}).bind(family, LENGTH)
    one, zero = torch.ones(count), torch.zeros(count).long()
    rows = decode(
        model, method, [[0]] * count, facts=Facts(SOURCE.mask_id, (), 0),
        draw=Draw(one, one, zero, torch.arange(count)), new_tokens=LENGTH,
    )  # fmt: skip
    return SOURCE.report(torch.tensor([row.canvas for row in rows]))


def report(model: DiT) -> dict[int, dict[str, float]]:
    return {steps: sampled(model, steps) for steps in (1, 2, 4)}


@pytest.mark.slow
def test_a_tiny_dit_samples_better_in_two_steps_than_its_teacher_in_four():
    sizes = {"hidden_dim": 32, "n_blocks": 2, "n_heads": 2, "cond_dim": 16, "model_length": 8, "vocab_size": 7}
    config = ModelConfig.from_json({"model_type": "mdlm", "architectures": ["MDLM"], **sizes})
    assert isinstance(config, DiTConfig)
    student = DiT(config)
    student.init_weights(generator=torch.Generator().manual_seed(0))
    train(Objective(student, Mdlm(mask_id=SOURCE.mask_id, stage="sft")), 300, 128, 5e-3)
    teacher, before = copy.deepcopy(student), report(student)
    recipe = DidiInstruct(mask_id=SOURCE.mask_id, stage="sft", discriminator_lead=200, discriminator_rate=15.0)
    train(Objective(student, recipe, teacher), 380, 64, 2e-4, lead=200)
    after = report(student)
    # Seen, in nats a token: 1.70, 1.04, 0.64 in 1, 2, 4 steps before, 0.92, 0.54, 0.39 after.
    assert after[1]["excess"] < 1.2
    assert after[2]["excess"] < min(0.62, before[4]["excess"])
    assert after[4]["excess"] < 0.48
    assert after[2]["unigram_entropy"] > 0.97 * before[2]["unigram_entropy"]
