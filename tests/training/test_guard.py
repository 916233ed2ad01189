"""Numbers that are not finite stop a run, with the samples to blame, and change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unmask.errors import UnmaskError
from unmask.training import main
from unmask.training.guard import Guard, NotFiniteError, blame
from unmask.training.log import read_log
from unmask.training.loop import run
from unmask.training.optimizer import Optimizer, trained
from unmask.training.ranks import Ranks
from unmask.training.recipes.base import Pace
from unmask.training.resume import Saved, newest
from unmask.training.step import Source

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture
def poisoned(monkeypatch):
    """In step 4 the second forward gives a loss that is not a number."""
    steps = Source.steps

    def with_poison(self, first):
        for step in steps(self, first):
            if step.number == 3:
                step.forwards[1].weights[0] = float("nan")
            yield step

    monkeypatch.setattr(Source, "steps", with_poison)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(tiny, poisoned, tmp_path, capsys):
    config = tiny("run", steps=6, save_every=2, rows_per_forward=2)
    with pytest.raises(
        UnmaskError, match=r"stopped at step 4: loss nan, gradient nan; samples .*state-00000002 is kept"
    ):
        run(config)
    entry = read_log(Path(config.output) / "log.jsonl")[-1]["not_finite"]
    data = tiny("run", rows_per_forward=2)
    assert entry["step"] == 4 and 2 <= len(entry["samples"]) < 4 and data.rows_per_step == 4
    assert Saved.open(newest(Path(config.output))).meta["done"] == 2


def test_the_command_ends_with_an_exit_code(tiny, poisoned, tmp_path, capsys):
    import json
    from dataclasses import asdict

    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(asdict(tiny("run", steps=6, rows_per_forward=2))))
    assert main([str(path)]) == 2
    assert "no state was saved" in capsys.readouterr().err


def network():
    module = torch.nn.Module()
    module.network = torch.nn.Linear(2, 2)
    module.modules_of_recipe = torch.nn.ModuleDict({"judge": torch.nn.Linear(2, 1)})
    return module


def optimizer(module, make, **changes):
    config = make("x", learning_rate=0.1, weight_decay=0.1, **changes)
    return Optimizer(trained(module), config, ALONE, {"judge": Pace(rate=3.0, clip=2.0)})


def give(module, value):
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, value)


def test_no_update_is_applied_from_a_gradient_that_is_not_finite_on(make):
    module = network()
    inner = optimizer(module, make)
    give(module, 1.0)
    inner.step(0.1, torch.zeros(1))
    kept = {name: p.detach().clone() for name, p in module.named_parameters()}
    moments = [inner.moments(w) for w in inner.weights]
    moments = [(a.clone(), b.clone(), n) for a, b, n in moments]
    give(module, 1.0)
    module.network.weight.grad[0, 0] = float("inf")
    inner.step(0.1, torch.zeros(1))
    give(module, 1.0)
    inner.step(0.1, torch.zeros(1))
    assert all(torch.equal(p, kept[name]) for name, p in module.named_parameters())
    for (a, b, n), weight in zip(moments, inner.weights):
        now = inner.moments(weight)
        assert torch.equal(a, now[0]) and torch.equal(b, now[1]) and n == now[2]


def test_groups_are_clipped_and_paced_each_by_itself(make):
    module = network()
    inner = optimizer(module, make, clip=0.5)
    give(module, 10.0)
    module.network.weight.grad.fill_(1e-3)
    module.network.bias.grad.fill_(1e-3)
    norms = inner.step(0.01, torch.zeros(1))
    assert inner.groups == ["network", "judge"]
    assert norms.tolist() == pytest.approx([1e-3 * 6**0.5, 10 * 3**0.5])
    first = {w.name: inner.moments(w)[0] for w in inner.weights}
    assert first["network.weight"].mean() == pytest.approx(0.1 * 1e-3)  # betas[0] is 0.9
    assert first["modules_of_recipe.judge.weight"].mean() == pytest.approx(0.1 * 1.0 / 3**0.5)
    rates = {part["multiple"]: part["lr"] for part in inner.inner.param_groups}
    assert rates == pytest.approx({1.0: 0.01, 3.0: 0.03})


def test_the_guard_looks_at_every_step_in_order():
    guard = Guard()
    for step in range(3):
        guard.add(step, torch.tensor([1.0, 2.0]), torch.tensor([0.5]), torch.tensor([3.0]))
    assert (guard.settle().step, guard.settle().terms) == (2, [1.0, 2.0])
    with pytest.raises(NotFiniteError, match="step 4") as found:
        guard.add(3, torch.tensor([1.0, float("inf")]), torch.tensor([0.5]), torch.tensor([float("inf"), 1.0]))
    assert found.value.numbers.forwards[1] == 1.0


def test_only_forwards_that_went_wrong_are_blamed():
    nan = float("nan")
    assert blame([[5, 3], [4]], [1.0, nan], ALONE) == [4]
    assert blame([[5, 3], [4]], [1.0, 2.0], ALONE) == [3, 4, 5]
