"""Recorded training steps of D2F's official code against the recipe, for conform.py and the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.utils import parametrize

from unmask.layout import Layout, visible
from unmask.models.adapter import read_adapter
from unmask.models.checkpoint import load_model
from unmask.models.names import checkpoint_pieces
from unmask.models.network import Network
from unmask.training.objective import Objective
from unmask.training.recipes.base import IGNORE, Batch, Supervised, View, token_losses
from unmask.training.recipes.d2f import D2f, teacher_losses
from unmask.training.states import States, score_rows
from vectors_training import loss_of

Case = dict[str, Any]
Check = Callable[[Path, Case], None]


class GivenLogits:
    """`Models` whose answers are recorded logits; notes the layouts that it was called with."""

    def __init__(self, student: Tensor, teacher: Tensor | None = None) -> None:
        self.logits = {"student": student, "teacher": teacher}
        self.layouts: dict[str, Layout] = {}

    def student(self, tokens: Tensor, layout: Layout, index: Tensor | None = None) -> States:
        return self._states("student", layout, index)

    def teacher(self, tokens: Tensor, layout: Layout, index: Tensor | None = None) -> States:
        return self._states("teacher", layout, index).detach()

    def module(self, name: str) -> nn.Module:
        raise AssertionError(f"no network {name} was recorded")

    def _states(self, who: str, layout: Layout, index: Tensor | None) -> States:
        logits = self.logits[who]
        assert logits is not None, f"no {who} was recorded"
        self.layouts[who] = layout
        rows = logits.flatten(0, 1)
        return States(rows if index is None else rows[index], lambda hidden: hidden, logits.shape[-1])


class Lora(nn.Module):
    """W + scale B A as a parametrisation of W."""

    def __init__(self, a: Tensor, b: Tensor, scale: float) -> None:
        super().__init__()
        self.a, self.b, self.scale = nn.Parameter(a), nn.Parameter(b), scale

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * self.b @ self.a


def with_adapter(network: Network, folder: Path) -> dict[str, nn.Parameter]:
    """Puts an adapter onto the network, everything else frozen; its matrices by the names in the adapter's file."""
    adapter = read_adapter(folder)
    network.requires_grad_(False)
    pieces = checkpoint_pieces(network.config.names, network.state_dict())
    found: dict[str, nn.Parameter] = {}
    for module, (a, b) in adapter.pairs.items():
        own = pieces[f"{module}.weight"].own.removesuffix(".weight")
        lora = Lora(a, b, adapter.scale(module))
        parametrize.register_parametrization(network.get_submodule(own), "weight", lora)
        found |= {f"{module}.lora_A.weight": lora.a, f"{module}.lora_B.weight": lora.b}
    return found


def recorded(path: Path, case: Case) -> dict[str, Tensor]:
    """The tensors of a case."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(key) for name, key in (case.get("tensors") or {}).items()}


def near(ours: float, theirs: float, tolerance: float, what: str) -> None:
    assert abs(ours - theirs) <= tolerance * max(abs(theirs), 1e-6), f"{what} {ours}, expected {theirs}"


def check_d2f(folder: Path, case: Case) -> str:
    """Empty if the recipe does what was recorded, else what differs."""
    try:
        CHECKS[case["kind"]](folder, case)
    except AssertionError as error:
        return " ".join(str(error).split())[:300] or "something differs"
    return ""


def recipe_of(case: Case) -> D2f:
    o = case["options"]
    return D2f(
        mask_id=o.get("mask_token_id", 0),
        block_size=o["block_size"],
        shift=o.get("token_shift", False),
        self_align=o.get("self_align", True),
    )


def batch_of(tokens: Tensor, prompts: list[int]) -> Batch:
    labels = torch.where(torch.arange(tokens.shape[1]) >= torch.tensor(prompts).unsqueeze(1), tokens, IGNORE)
    return Batch.of(tokens, labels)


def noisy(case: Case) -> tuple[D2f, Tensor, View]:
    """The recipe, the level of each token and the view, from the recorded draws."""
    recipe, given = recipe_of(case), case["inputs"]
    batch = batch_of(torch.tensor(given["tokens"]), given["prompt_lengths"])
    block = recipe.blocks(batch)
    later = torch.tensor(given["u_inc"]).reshape(len(block), -1)
    draw = torch.cat([torch.zeros(len(block), 2), later], dim=1).gather(1, block)
    first = torch.tensor(given["u_first"]).expand_as(batch.tokens)
    count = recipe.block_count(batch).amax().expand_as(block)  # official: of the batch
    p = recipe.mask_probability(batch, first, draw, count)
    drawn = torch.tensor([[2.0 if u is None else u for u in row] for row in given["u_tokens"]])
    return recipe, p, recipe.views_of(batch, drawn < p, p)


def _mask(folder: Path, case: Case) -> None:
    recipe, given = recipe_of(case), case["inputs"]
    length, prompts = given["length"], given["prompt_lengths"]
    batch = batch_of(torch.ones(len(prompts), length, dtype=torch.long), prompts)
    view = recipe.views_of(batch, torch.ones_like(batch.tokens).bool(), torch.full(batch.tokens.shape, 0.5))
    seen = GivenLogits(*torch.zeros(2, len(prompts), length, 4))
    recipe.loss(seen, Supervised.of(view))
    for who, layout in seen.layouts.items():
        assert visible(layout, layout).int().tolist() == case["expect"][who], f"the {who} sees something else"


def _noise(folder: Path, case: Case) -> None:
    recipe, p, view = noisy(case)
    expect = case["expect"]
    tokens = torch.tensor(case["inputs"]["tokens"])
    batch = batch_of(tokens, case["inputs"]["prompt_lengths"])
    levels = torch.tensor(expect["p_blocks"]).gather(1, (recipe.blocks(batch) - 1).clamp_min(0))
    answers = batch.labels != IGNORE
    torch.testing.assert_close(p[answers], levels[answers], rtol=1e-6, atol=0)
    assert view.tokens.tolist() == expect["noisy"], "the noisy tokens differ"
    assert (view.targets != IGNORE).int().tolist() == expect["masked"], "the targets differ"


def _loss(folder: Path, case: Case) -> None:
    recipe, _, view = noisy(case)
    expect, parts = case["expect"], case["expect"]["parts"]
    assert view.tokens.tolist() == parts["noisy"], "the noisy tokens differ"
    student = load_model(folder / "models" / case["model"]).model
    matrices = with_adapter(student, folder / "models" / case["adapter"])
    teacher = load_model(folder / "models" / case["model"]).model
    _check_rows(Objective(student, recipe, teacher), recipe, view, parts, recorded(_file(folder), case))
    loss = loss_of(student, recipe, view, teacher)
    near(loss.item(), expect["loss"], 1e-5, "loss")
    loss.backward()
    norms = {name: matrix.grad.norm() for name, matrix in matrices.items() if matrix.grad is not None}
    assert len(norms) == len(matrices) and all(p.grad is None for p in teacher.parameters())
    norms["all_lora"] = torch.stack(list(norms.values())).norm()
    for name, theirs in expect["grad_norm"].items():
        near(norms[name].item(), theirs, 1e-3, f"gradient of {name}")


def _check_rows(networks: Objective, recipe: D2f, view: View, parts: Case, golden: dict[str, Tensor]) -> None:
    """Targets and weights, and each row's cross-entropy and logits where recorded."""
    batch = Supervised.of(view)
    assert len(batch.index) == parts["n_masked"]
    torch.testing.assert_close(batch.weights, torch.tensor(parts["inv_p"]), rtol=1e-5, atol=0)
    with torch.no_grad():
        states = [networks.student(batch.tokens, batch.layout, batch.index)]
        if recipe.self_align:
            whole = Layout(torch.zeros_like(batch.layout.order), *_others(batch.layout))
            states.append(networks.teacher(batch.tokens, whole, batch.index))
        score = teacher_losses if recipe.self_align else token_losses
        rows = score_rows(score, states, batch.targets)
        torch.testing.assert_close(rows["loss"], torch.tensor(parts["ce"]), rtol=1e-5, atol=1e-6)
        logits = [s.head(s.hidden) for s in states]
    if golden:
        torch.testing.assert_close(logits[0], golden["student_logits"], atol=1e-4, rtol=0)
        torch.testing.assert_close(logits[1].softmax(-1), golden["teacher_probs"], atol=1e-5, rtol=0)


def _others(layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    return layout.lane, layout.segment, layout.positions


def _from_logits(folder: Path, case: Case) -> None:
    recipe, _, view = noisy(case)
    expect, golden = case["expect"], recorded(_file(folder), case)
    student = golden["student_logits"].requires_grad_()
    models = GivenLogits(student, golden.get("teacher_logits"))
    batch = Supervised.of(view)
    terms = recipe.loss(models, batch)
    loss = terms.sums["loss"] / view.normalisers["loss"]
    near(loss.item(), expect["loss"], 1e-5, "loss")
    torch.testing.assert_close(batch.weights, torch.tensor(expect["parts"]["inv_p"]), rtol=1e-5, atol=0)
    loss.backward()
    official = golden["grad_student_logits"]
    torch.testing.assert_close(student.grad, official, rtol=0, atol=1e-5 * float(official.abs().max()))


def _file(folder: Path) -> Path:
    return folder / "training-d2f.safetensors"


CHECKS: dict[str, Check] = {"mask": _mask, "noise": _noise, "loss": _loss, "loss-from-logits": _from_logits}
