"""While it trains, a run is measured by the decoder that will serve it, and is not disturbed by that."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import unmask
from unmask.decoding.counters import Counters
from unmask.tasks import get_task
from unmask.training.log import read_log
from unmask.training.loop import run
from unmask.training.watch import Exam, better

DIFFUSION = {"recipe": {"name": "fast_dllm_v2", "block_size": 16}}


def log(config):
    return read_log(Path(config.output) / "log.jsonl")


def losses(config):
    return [e["loss"] for e in log(config) if "loss" in e]


@pytest.mark.parametrize("recipe", [{}, DIFFUSION], ids=["ar", "diffusion"])
def test_figures_are_those_of_the_checkpoint_that_is_left(tiny, recipe):
    config = tiny("run", steps=6, learning_rate=1e-2, decode_problems=5, decode_tokens=16, decode_batch=2, **recipe)
    figures = run(config)
    lm = unmask.load(config.output, device="cpu")
    task = get_task(config.task)
    problems = list(task.generate("validation", 5, seed=config.seed))
    total, right = Counters(), 0
    method = "fast_dllm_v2" if recipe else "autoregressive"
    for problem in problems:
        result = lm.generate(problem.question, method=method, max_new_tokens=16)
        total.add(result.counters)
        right += task.check(problem, result.text)
    assert figures["tpf"] == pytest.approx(total.tpf) and figures["accuracy"] == right / 5
    assert figures["tpf"] > 0


def test_measuring_does_not_disturb_a_run(tiny):
    same = {"ema": 0.5, "decode_problems": 2, "decode_tokens": 8, "steps": 3, **DIFFUSION}
    often, never = tiny("often", eval_every=1, **same), tiny("never", **{**same, "decode_problems": 0})
    run(often)
    run(never)
    assert losses(often) == losses(never)
    one, two = (unmask.load(c.output, device="cpu").model.state_dict() for c in (often, never))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert [e["step"] for e in log(often) if "accuracy" in e] == [1, 2, 3]


def test_a_network_that_its_recipe_cannot_be_decoded_with_is_trained_all_the_same(tiny):
    config = tiny("run", recipe={"name": "block_diffusion", "block_size": 16}, decode_problems=2, steps=1)
    figures = run(config)
    assert "accuracy" not in figures
    assert any("no answers are decoded while training" in e.get("note", "") for e in log(config))


@pytest.mark.parametrize(
    ("recipe", "family", "method"),
    [
        ({"name": "fast_dllm_v2", "block_size": 16}, "fast-dllm-v2", "fast_dllm_v2"),
        ({"name": "block_diffusion", "block_size": 16, "shift": True}, "fast-dllm-v2", "fast_dllm_v2"),
        ({"name": "wedlm", "block_size": 16}, "wedlm", "wedlm"),
        ({"name": "masked", "shift": True}, "dream", "masked"),
        ({"name": "autoregressive"}, "qwen2", "autoregressive"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else value,
)
def test_an_autoregressive_network_becomes_what_its_recipe_makes_of_it(tiny, recipe, family, method):
    config = tiny("run", recipe=recipe, steps=1, decode_problems=1, decode_tokens=16)
    assert "accuracy" in run(config)
    lm = unmask.load(config.output, device="cpu")
    assert (lm.family.name, lm.family.mask_id, lm.default_method) == (family, 3, method)
    assert lm.family.block_size == (16 if family == "fast-dllm-v2" else None)


def test_each_term_is_logged_under_its_name(tiny):
    config = tiny("run", recipe={"name": "dparallel", "block_size": 16}, steps=1, rows_per_forward=2)
    run(config)
    (entry,) = [e for e in log(config) if "loss" in e]
    assert set(entry["terms"]) == {"consistency", "certainty"}
    assert entry["loss"] == pytest.approx(sum(entry["terms"].values()))


def test_what_is_better():
    base = {"accuracy": 0.5, "tpf": 2.0, "validation_loss": 1.0}
    assert better(base, {})
    assert better({**base, "accuracy": 0.6, "tpf": 1.0}, base)
    assert better({**base, "tpf": 2.1, "validation_loss": 2.0}, base)
    assert better({**base, "validation_loss": 0.9}, base)
    assert not better(base, base)
    assert better({"validation_loss": 0.9}, {"validation_loss": 1.0})


def test_curves_are_drawn_at_the_end(tiny, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(Exam, "take", lambda *given: {"accuracy": 0.5, "tpf": 2.0})
    config = tiny("run", decode_problems=2, steps=2, eval_every=1, plot=True)
    run(config)
    picture = (Path(config.output) / "curves.png").read_bytes()
    assert picture[:4] == b"\x89PNG" and len(picture) > 30_000
