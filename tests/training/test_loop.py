"""The loop: learns, does not care how a step is cut, resumes exactly, leaves a checkpoint that loads."""

from pathlib import Path

import pytest
import torch

from unmask.errors import UnmaskError
from unmask.models.checkpoint import load_model
from unmask.training.log import read_log
from unmask.training.loop import run
from unmask.training.optimizer import rate
from unmask.training.step import Share, prefetch

DIFFUSION = {"name": "fast_dllm_v2", "block_size": 16, "clean_weight": 1.0}


def weights(config):
    return load_model(config.output).model.state_dict()


def losses(config):
    return [e["loss"] for e in read_log(Path(config.output) / "log.jsonl") if "loss" in e]


@pytest.mark.parametrize("recipe", [{"name": "autoregressive"}, DIFFUSION], ids=["ar", "diffusion"])
def test_a_few_steps_lower_the_loss(make, recipe):
    config = make("run", recipe=recipe, steps=15, rows_per_step=4, rows_per_forward=4, learning_rate=1e-2)
    figures = run(config)
    assert losses(config)[0] == pytest.approx(7.8, abs=0.3)
    assert losses(config)[-1] < 4.6
    assert figures["step"] == 15 and figures["validation_loss"] < 4.8


@pytest.mark.parametrize("recipe", [{"name": "autoregressive"}, DIFFUSION], ids=["ar", "diffusion"])
def test_one_forward_of_eight_rows_equals_two_of_four_and_eight_of_one(tiny, recipe):
    states = []
    for size in (8, 4, 1):
        config = tiny(f"rows{size}", recipe=recipe, rows_per_step=8, rows_per_forward=size, steps=2)
        run(config)
        states.append((weights(config), losses(config)))
    for state, loss in states[1:]:
        assert loss == pytest.approx(states[0][1], rel=1e-4)
        for name, tensor in states[0][0].items():
            # Adam divides by the gradient's size, so rounding shows where a gradient is next to nothing.
            assert (tensor - state[name]).abs().mean() < 1e-5, name


def test_a_resumed_run_equals_one_that_never_stopped(tiny):
    same = {"recipe": {"name": "fast_dllm_v2", "block_size": 16}, "schedule": "constant"}
    same |= {"problems": 20}  # 5 steps an epoch
    through = tiny("through", steps=7, **same)
    run(through)
    run(tiny("stopped", steps=4, save_every=4, **same))
    resumed = tiny("stopped", steps=7, resume=True, **same)
    run(resumed)
    assert losses(resumed) == losses(through)
    for name, tensor in weights(through).items():
        assert torch.equal(tensor, weights(resumed)[name]), name


def test_a_conversion_starts_from_the_checkpoint_and_writes_one_the_family_reads(tiny):
    base = tiny("base", steps=3)
    run(base)
    changes = {
        "architectures": ["Fast_dLLM_QwenForCausalLM"],
        "model_type": "Fast_dLLM_Qwen",
        "bd_size": 16,
        "mask_token_id": 3,
    }
    options = {"recipe": DIFFUSION, "model": None, "init": base.output, "config_changes": changes}
    config = tiny("converted", **options, mask_init="mean", learning_rate=0.0, dtype="bfloat16")
    run(config)
    loaded = load_model(config.output)
    assert (loaded.family.name, loaded.family.mask_id, loaded.family.block_size) == ("fast-dllm-v2", 3, 16)
    assert loaded.family.eos_ids == (2,)
    before, after = weights(base), loaded.model.state_dict()
    for name, tensor in before.items():
        if name == "model.embed_tokens.weight":
            mask = torch.arange(len(tensor)) == 3
            torch.testing.assert_close(after[name][3], tensor[~mask].mean(0), atol=1e-3, rtol=1e-2)
            tensor, after[name] = tensor[~mask], after[name][~mask]
        torch.testing.assert_close(after[name], tensor, atol=1e-3, rtol=1e-2)


def test_the_schedule_warms_up_and_falls(make):
    config = make("x", learning_rate=1.0, warmup_steps=10, final_rate=0.1)
    assert rate(config, 0, 0.0) == pytest.approx(0.1)
    assert rate(config, 9, 0.0) == pytest.approx(1.0)
    assert rate(config, 50, 0.5) == pytest.approx(0.55)
    assert rate(config, 99, 1.0) == pytest.approx(0.1)
    assert rate(make("x", schedule="linear", learning_rate=1.0, final_rate=0.1), 50, 0.25) == pytest.approx(0.775)
    assert rate(make("x", schedule="constant", learning_rate=1.0), 50, 0.9) == 1.0


def test_a_time_limit_ends_the_run_and_still_saves(make):
    config = make("short", steps=100_000, max_minutes=0.02)
    figures = run(config)
    assert 0 < figures["step"] < 100_000
    assert load_model(config.output).config.num_layers == 2


def test_the_rows_of_a_step_are_shared_evenly_or_not_at_all():
    shares = [Share.of(8, 2, index, 2) for index in range(2)]
    assert [share.groups(list(range(8))) for share in shares] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert Share.of(8, 8, 1, 4).groups(list(range(8))) == [[2, 3]]
    with pytest.raises(UnmaskError, match="rows_per_step 8 cannot be shared evenly by 3 processes"):
        Share.of(8, 2, 0, 3)
    with pytest.raises(UnmaskError, match="the 6 rows of a step and process are no multiple of rows_per_forward 4"):
        Share.of(12, 4, 0, 2)


def test_prefetching_keeps_the_order_and_raises_what_the_thread_raised():
    assert list(prefetch(iter(range(20)), depth=3)) == list(range(20))

    def broken():
        yield 1
        raise RuntimeError("no more")

    items = prefetch(broken(), depth=2)
    assert next(items) == 1
    with pytest.raises(RuntimeError, match="no more"):
        next(items)
