"""Scoring in the engine gives what `sampling.score` gives, whichever code runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unmask.decoding import sampling
from unmask.decoding.sampling import Draw, ScoreRule
from unmask.engine.scoring import score, with_carry

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DRAWS = {
    "greedy": ([0.0, 0.0], [1.0, 1.0], [0, 0]),
    "greedy with filters": ([0.0, 0.0], [0.5, 1.0], [0, 3]),
    "sampled": ([0.7, 0.0], [1.0, 1.0], [0, 0]),
    "sampled with filters": ([0.7, 1.2], [0.5, 0.9], [0, 5]),
}
OPTIONS = [
    ("raw", "prob", False),
    ("raw", "entropy", True),
    ("filtered", "margin", False),
    ("filtered", "prob", True),
]


def draw_of(name: str, device: str) -> Draw:
    temperature, top_p, top_k = DRAWS[name]
    given = (torch.tensor(temperature), torch.tensor(top_p), torch.tensor(top_k), torch.tensor([4, 5]))
    return Draw(*(x.to(device) for x in given))


def logits_of(seed: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(2, 3, 45, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", DRAWS)
def test_scores_are_those_of_sampling(name, dtype, device):
    torch.use_deterministic_algorithms(device == "cpu")  # a cumulated sum on the GPU is not, as torch has it
    try:
        number, targets = torch.tensor([3, -1]), torch.tensor([[1, 2, -1], [7, 8, 9]])
        logits = logits_of(len(name), dtype)
        given = (draw_of(name, device), number.to(device), targets.to(device))
        expected = (draw_of(name, "cpu"), number, targets)
        for confidence, rank, filter_greedy in OPTIONS:
            rule = ScoreRule(confidence, rank, filter_greedy=filter_greedy, ban=(44,), ban_confidence=(2,))
            held = logits.to(device)
            ours, theirs = score(held, rule, *given), sampling.score(logits.float(), rule, *expected)
            assert ours.logits is held
            assert torch.equal(ours.token.cpu(), theirs.token)
            assert torch.equal(ours.greedy.cpu(), theirs.greedy)
            torch.testing.assert_close(ours.prob.cpu(), theirs.prob, rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(ours.score.cpu(), theirs.score, rtol=1e-5, atol=1e-6)
    finally:
        torch.use_deterministic_algorithms(True)


@pytest.mark.parametrize("device", DEVICES)
def test_no_asked_row_gives_empty_scores(device):
    given = (draw_of("greedy", device), torch.zeros(2).long().to(device), torch.zeros(2, 0).long().to(device))
    assert score(torch.zeros(2, 0, 45, device=device), ScoreRule(), *given).token.shape == (2, 0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_carried_logits_stand_where_the_row_is_minus_one(dtype, device):
    rows = torch.tensor([[-1, 0, 1], [0, -1, -1]])
    logits, carry = logits_of(0, dtype), torch.randn(2, 90, generator=torch.Generator().manual_seed(1))
    expected = logits.clone()
    for b, r in ((0, 0), (1, 1), (1, 2)):
        expected[b, r] = carry[b, ::2].to(dtype)
    moved = logits.to(device)
    assert torch.equal(with_carry(moved, rows.to(device), carry.to(device)[:, ::2]).cpu(), expected)
    assert with_carry(moved, rows, None) is moved
