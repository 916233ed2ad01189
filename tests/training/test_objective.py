"""What stands around the networks changes nothing but time and memory."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch

from checkpoints import GOLDEN
from unmask.attention.flex import FlexAttention
from unmask.errors import UnmaskError
from unmask.layout import causal, doubled
from unmask.models.checkpoint import load_model
from unmask.training import states, wrap
from unmask.training.attending import KEPT, Attending
from unmask.training.noise import Noise
from unmask.training.objective import Objective
from unmask.training.recipes.base import IGNORE, Batch, Supervised
from unmask.training.recipes.fast_dllm_v2 import FastDllmV2

CPU = torch.device("cpu")
RECIPE = FastDllmV2(mask_id=190, block_size=16)


def batch(seed, rows=2, length=64):
    tokens = torch.randint(0, 180, (rows, length), generator=torch.Generator().manual_seed(seed))
    labels = tokens.clone()
    labels[:, :10] = IGNORE
    return Batch.of(tokens, labels)


def trained(forwards=1, **changes):
    """Losses of some forwards, and the gradients of all together."""
    network = load_model(GOLDEN / "models" / "fast-dllm-v2-tiny", mask_token_id=190).model.train()
    objective = Objective(network, RECIPE, **changes)
    losses = []
    for seed in range(forwards):
        loss = objective(Supervised.of(RECIPE.views(batch(seed), Noise(0)))).sums["loss"]
        loss.backward()
        losses.append(loss.item())
    return losses, {name: p.grad for name, p in network.named_parameters()}


def test_recomputed_layers_and_logits_in_pieces_give_the_same_gradients(monkeypatch):
    losses, gradients = trained()
    assert trained(recomputed=True)[0] == losses
    monkeypatch.setattr(states, "PIECE", 190 * 7)
    pieces, others = trained(recomputed=True)
    assert pieces == pytest.approx(losses, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=1e-3, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_all_layers_and_forwards_share_one_compiled_graph(monkeypatch, backend):
    from torch._dynamo import reset
    from torch._dynamo.utils import counters

    plain, gradients = trained(forwards=3)
    compile_ = partial(torch.compile, backend=backend)
    monkeypatch.setattr(wrap.torch, "compile", compile_)
    reset()
    counters.clear()
    losses, others = trained(forwards=3, compiled=True, recomputed=True)
    assert losses == pytest.approx(plain, rel=1e-5)
    assert counters["stats"]["unique_graphs"] == 2  # layers, and head with scores
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=2e-2, rtol=1e-3)


def test_decoding_runs_the_plain_layers():
    network = load_model(GOLDEN / "models" / "fast-dllm-v2-tiny", mask_token_id=190).model
    objective = Objective(network, RECIPE, recomputed=True)
    assert objective.layered

    def fails(*given):
        raise AssertionError

    for layer in objective.layered:
        layer.inner = fails
    index = torch.arange(8).unsqueeze(0)
    with torch.inference_mode():
        network(index, index, objective.attend(causal(8)))


def test_a_layout_that_comes_again_has_its_mask_made_once(monkeypatch):
    attending = Attending("dense")
    views = [RECIPE.views(batch(seed), Noise(0)) for seed in range(3)]
    shared = doubled(64, 16)
    alike = [replace(v, layout=replace(shared.map(torch.clone))) for v in views]
    placed = [attending.place(Supervised.of(v), CPU) for v in alike]
    attends = [attending.attend(p.layout, False) for p in placed]
    assert attends[0] is attends[1] is attends[2] and attends[0].mask.shape == (1, 128, 128)
    assert attending.attend(placed[0].layout, True) is not attends[0]
    packed = [attending.place(Supervised.of(v), CPU) for v in views]
    assert attending.attend(packed[0].layout, False) is not attending.attend(packed[1].layout, False)
    other = attending.place(Supervised.of(replace(views[0], layout=doubled(64, 32))), CPU)
    assert not torch.equal(attending.attend(other.layout, False).mask, attends[0].mask)
    for length in range(1, KEPT + 1):
        attending.place(Supervised.of(replace(views[0], layout=replace(causal(length)))), CPU)
    assert len(attending._known) == KEPT
    assert attending.attend(placed[0].layout, False) is not attends[0]  # forgotten, and still right
    assert torch.equal(attending.attend(placed[0].layout, False).mask, attends[0].mask)


def test_flex_takes_one_layout_for_all_rows():
    layout = doubled(32, 16)
    q, k, v = (torch.randn(2, 2, 64, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, all_rows = FlexAttention(layout)(0, q, k, v), FlexAttention(layout.batch(2))(0, q, k, v)
    torch.testing.assert_close(one, all_rows)


def test_attention_is_checked():
    with pytest.raises(UnmaskError, match="did you mean 'dense'"):
        Attending("dens")
    with pytest.raises(UnmaskError, match="needs a GPU"):
        Attending("flex").attend(causal(8), False)
