"""On a GPU: an update waits for nothing, FlexAttention and compiled layers train as the plain ones do, errors come late
but change nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unmask.bench.dummy import dummy
from unmask.bench.roofline import Ceilings
from unmask.bench.training import Filled, measure, random_samples
from unmask.training.build import objective_of
from unmask.training.config import from_mapping
from unmask.training.guard import LAG, NotFiniteError
from unmask.training.packing import Format
from unmask.training.ranks import Ranks
from unmask.training.recipes import make_recipe
from unmask.training.step import Share, Source
from unmask.training.trainer import Trainer

pytestmark = pytest.mark.gpu
SHAPE = {
    "architectures": ["Fast_dLLM_QwenForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bd_size": 32,
    "mask_token_id": 511,
}


@pytest.fixture
def shape(tmp_path):
    import json

    path = tmp_path / "config.json"
    path.write_text(json.dumps(SHAPE))
    return str(path)


def trainer_of(shape, **changes):
    """A trainer, and the steps that it is to make."""
    lm = dummy(shape, device="cuda", dtype=torch.float32)
    values = {"model": "none", "output": "none", "recipe": {"name": "fast_dllm_v2"}, "row_tokens": 256}
    config = from_mapping({**values, "rows_per_step": 4, "rows_per_forward": 2, "warmup_steps": 1, **changes})
    recipe = make_recipe(config.recipe, mask_id=511)
    objective = objective_of(lm.model.requires_grad_(True).train(), recipe, config)
    samples = random_samples(4 * 40, 256, 32, 2, 512)
    data = Filled(samples, Format(256, 32, 511, None, False), 4, 0)
    return Trainer(config, Ranks.start(), objective), Source(0, recipe, data, data, Share.of(4, 2), pinned=True)


def losses(shape, count=4, **changes):
    trainer, source = trainer_of(shape, **changes)
    found = []
    for step in source.steps(0):
        if step.number == count:
            return found
        trainer.update(step, 1e-3)
        found.append(sum(trainer.guard.settle().terms))
    raise AssertionError


@pytest.mark.parametrize(
    "changes",
    [
        {"attention": "flex"},
        {"attention": "flex", "compile": True},
        {"attention": "flex", "compile": True, "recompute": True},
    ],
    ids=["flex", "compiled", "recomputed"],
)
def test_fast_paths_give_the_losses_of_the_plain_one(shape, changes):
    torch.set_float32_matmul_precision("highest")
    plain = losses(shape)
    assert losses(shape, **changes) == pytest.approx(plain, rel=1e-4)
    assert losses(shape, precision="bf16", **changes) == pytest.approx(plain, rel=2e-2)


@pytest.mark.parametrize("fast", [False, True], ids=["eager", "compiled"])
def test_an_update_waits_for_nothing(shape, fast):
    attention = "flex" if fast else "dense"
    trainer, source = trainer_of(shape, precision="bf16", attention=attention, compile=fast, ema=0.9)
    try:
        for step in source.steps(0):
            if step.number == 4:  # compiled, and allocated
                torch.cuda.set_sync_debug_mode("error")
            if step.number == 4 + LAG - 1:
                break
            trainer.update(step, 1e-3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.guard.settle().finite


def test_a_gradient_that_is_not_finite_is_found_some_steps_later_and_changes_nothing(shape):
    trainer, source = trainer_of(shape)
    kept = {}
    with pytest.raises(NotFiniteError, match="step 4") as found:
        for step in source.steps(0):
            if step.number == 3:
                kept = {w.name: w.leaf.detach().clone() for w in trainer.weights}
                broken = replace(step.forwards[1], weights=step.forwards[1].weights * float("nan"))
                step.forwards[1] = broken
            trainer.update(step, 1e-3)
    assert found.value.numbers.step == 3 and trainer.done == 3 + 1 + LAG
    assert all(torch.equal(w.leaf, kept[w.name]) for w in trainer.weights)


def test_the_speed_of_training_is_measured(shape):
    config = from_mapping(
        {
            "model": "none",
            "output": "none",
            "recipe": {"name": "fast_dllm_v2"},
            "row_tokens": 256,
            "rows_per_step": 4,
            "rows_per_forward": 4,
            "precision": "bf16",
            "attention": "flex",
        }
    )
    lm = dummy(shape, device="cuda", dtype=torch.float32)
    entry = measure(lm, config, Ranks.start(), Ceilings(1e12, 1e14), steps=3, per_row=2)
    assert entry["ms"] > 0 and entry["peak_bytes"] > 0 and len(entry["walls"]) == 3
