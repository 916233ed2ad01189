"""The scoring kernels against `sampling.score` on the CPU in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from chi_square import surprise
from unmask.decoding import sampling
from unmask.decoding.sampling import Draw, ScoreRule, Scores

pytest.importorskip("triton")

from unmask.kernels.carry import carry_into
from unmask.kernels.score import score

CASES = [
    (rank, confidence, stochastic)
    for rank in ("prob", "margin", "entropy")
    for confidence in ("raw", "filtered")
    for stochastic in (False, True)
]
REAL = 152064  # the vocabulary of Qwen2.5


def draw_of(temperature: list[float], seed: int = 0) -> Draw:
    rows = len(temperature)
    ones = torch.ones(rows)
    return Draw(torch.tensor(temperature), ones, torch.zeros(rows).long(), torch.arange(rows) * 977 + seed)


def run(
    logits: Tensor, rule: ScoreRule, draw: Draw, number: Tensor, targets: Tensor, block: int | None = None
) -> Scores:
    """The kernels' scores of logits on their device, on the CPU."""
    at = logits.device
    made = score(
        logits,
        draw.temperature.to(at),
        draw.seed.to(at),
        number.to(at),
        targets.to(at),
        ban=rule.ban,
        ban_confidence=rule.ban_confidence,
        rank=rule.rank,
        stochastic=draw.stochastic,
        raw=rule.confidence == "raw",
        block=block,
    )
    return Scores(*(x.cpu() for x in made), logits.cpu())


def eager(logits: Tensor, rule: ScoreRule, draw: Draw, number: Tensor, targets: Tensor) -> Scores:
    return sampling.score(logits.float().cpu(), rule, draw, number, targets)


def agree(ours: Scores, theirs: Scores, rtol: float = 1e-5) -> None:
    """Tokens are equal, numbers up to the rounding of float32 sums; NaN where the eager ones are."""
    assert torch.equal(ours.greedy, theirs.greedy)
    assert torch.equal(ours.token, theirs.token)
    assert ours.token.dtype == ours.greedy.dtype == torch.int64
    vocab = theirs.logits.shape[-1]
    torch.testing.assert_close(ours.prob, theirs.prob, rtol=rtol, atol=1e-7, equal_nan=True)
    torch.testing.assert_close(ours.score, theirs.score, rtol=rtol, atol=1e-6 + vocab * 1e-10, equal_nan=True)


def numbers_and_targets(B: int, R: int) -> tuple[Tensor, Tensor]:
    targets = torch.arange(B * R).view(B, R) * 13 % 101
    targets[:, -1] = -1
    return torch.arange(B) * 3 - 1, targets


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("rank", "confidence", "stochastic"), CASES)
def test_scores_are_those_of_the_eager_code(device, rank, confidence, stochastic, dtype):
    rule = ScoreRule(confidence, rank, ban=(17, 3), ban_confidence=(40,))
    draw = draw_of([0.0, 1.3] if stochastic else [0.0, 0.0])
    generator = torch.Generator().manual_seed(CASES.index((rank, confidence, stochastic)))
    logits = torch.randn(2, 4, 41, generator=generator) * 3
    logits[0, 0] = logits[0, 0].round()  # ties, inside a split and across
    logits[:, 1, ::3] = -torch.inf
    logits[:, 2, 16:32] = -torch.inf  # a whole split
    logits[1, 3, 17] = 200.0  # banned, and by far the largest
    logits = logits.to(dtype)
    given = (rule, draw, *numbers_and_targets(2, 4))
    agree(run(logits.to(device), *given, block=16), eager(logits, *given))


@pytest.mark.parametrize("rank", ["prob", "margin", "entropy"])
def test_equal_logits_go_to_the_lowest_allowed_index(device, rank):
    rule = ScoreRule("raw", rank, ban=(0,))
    given = (rule, draw_of([0.0]), *numbers_and_targets(1, 2))
    logits = torch.zeros(1, 2, 40)
    logits[0, 1, [20, 21, 33]] = 5.0
    ours = run(logits.to(device), *given, block=16)
    agree(ours, eager(logits, *given))
    assert ours.token.tolist() == [[1, 20]]
    if rank == "margin":
        assert ours.score.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("ban", [(), (5,), (0, 1, 2, 3, 4)], ids=len)
def test_what_may_not_be_proposed_keeps_its_share_of_the_confidence(device, ban):
    logits = torch.linspace(0, 4, 35)[torch.randperm(35, generator=torch.Generator().manual_seed(1))].view(1, 1, 35)
    for confidence in ((), (5, 6)):
        rule = ScoreRule("filtered", "prob", ban=ban, ban_confidence=confidence)
        for temperature in (0.0, 0.5):
            given = (rule, draw_of([temperature]), *numbers_and_targets(1, 1))
            agree(run(logits.to(device), *given, block=16), eager(logits, *given))


def test_without_a_token_to_draw_the_greedy_one_stands(device):
    logits = torch.full((1, 2, 40), -torch.inf)
    logits[0, :, 7] = 1.0
    logits[0, 1, 39] = -50.0
    given = (ScoreRule("raw", ban=(7,)), draw_of([1.0]), *numbers_and_targets(1, 2))
    ours = run(logits.to(device), *given, block=16)
    agree(ours, eager(logits, *given))
    assert ours.token.tolist() == [[0, 39]]


@pytest.mark.parametrize("block", [16, 64])
def test_draws_are_those_of_the_eager_code(device, block):
    rows = 20000 if device == "cuda" else 64
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(8, rows // 8, 50, generator=generator) * 4
    logits[..., 30:37] = -torch.inf
    draw = draw_of([0.7, 1.0, 1.5, 3.0, 0.2, 1.0, 0.0, 1.1], seed=2**61)
    number = torch.randint(0, 99, (8, rows // 8), generator=generator)  # a number of its own for each row
    targets = torch.arange(rows // 8).expand(8, -1)  # strides of 0 are taken as they are
    given = (ScoreRule(ban=(2,)), draw, number, targets)
    ours = run(logits.to(device), *given, block=block)
    agree(ours, eager(logits, *given))
    drawn = ours.token[[0, 1, 2, 3, 4, 5, 7]]
    assert not bool(((drawn == 2) | ((drawn >= 30) & (drawn < 37))).any())


@pytest.mark.gpu
def test_draws_follow_the_law():
    logits = torch.tensor([0.0, 1.0, -2.0, 3.0, 0.5, -torch.inf, 2.0]).repeat(6)[:40]
    rows = 20000
    given = (ScoreRule(ban=(3,)), draw_of([0.8]), torch.tensor([4]), torch.arange(rows)[None])
    ours = run(logits.expand(1, rows, -1).cuda(), *given, block=16)
    p = (logits.double() / 0.8).index_fill(0, torch.tensor([3]), -torch.inf).softmax(-1)
    assert surprise(ours.token[0].tolist(), dict(enumerate(p.tolist()))) < 3.3


def test_logits_may_be_part_of_a_wider_tensor(device):
    wide = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(2))
    given = (ScoreRule("raw", "margin"), draw_of([0.0, 1.0, 2.0]), *numbers_and_targets(3, 2))
    logits = wide.to(device)[:, 1:3, :45]
    assert not logits.is_contiguous()
    agree(run(logits, *given, block=16), eager(wide[:, 1:3, :45], *given))


def test_carried_logits_replace_the_rows_that_ask_for_them(device):
    generator = torch.Generator().manual_seed(3)
    logits, carry = (torch.randn(*n, 37, generator=generator).bfloat16() for n in ((3, 4), (3,)))
    rows = torch.tensor([[-1, 0, 1, 2], [0, 1, -1, -1], [3, 2, 1, 0]])
    expected = torch.where((rows == -1)[..., None], carry[:, None], logits)
    for block in (8, 64):  # of several blocks and of one
        given = logits.to(device)
        carry_into(given, rows.to(device), carry.to(device), block)
        assert torch.equal(given.cpu(), expected)


@pytest.mark.gpu
@pytest.mark.parametrize(("B", "R"), [(1, 1), (1, 7), (3, 5), (8, 32)])
@pytest.mark.parametrize(("rank", "confidence", "stochastic"), CASES)
def test_scores_of_a_real_vocabulary(rank, confidence, stochastic, B, R):
    rule = ScoreRule(confidence, rank, ban=(151665,), ban_confidence=(151643, 151645))
    draw = draw_of([1.0 + 0.1 * i if i % 4 < 3 else 0.0 for i in range(B)] if stochastic else [0.0] * B)
    logits = (torch.randn(B, R, REAL, generator=torch.Generator().manual_seed(B + R)) * 3).bfloat16()
    given = (rule, draw, *numbers_and_targets(B, R))
    ours, theirs = run(logits.cuda(), *given), eager(logits, *given)
    if stochastic:
        # So many tokens share the interval that the rounding of one exponential may move a draw to a neighbour.
        other = ours.token != theirs.token
        assert int(other.sum()) <= 1 + B * R // 20
        for i, j in other.nonzero().tolist():
            heated = logits[i, j].double() / float(draw.temperature[i])
            law = heated.index_fill(0, torch.tensor(rule.ban), -torch.inf).softmax(-1)
            behind = float(law[: int(ours.token[i, j]) + 1].sum())
            u = float(sampling.uniform(draw.seed, *given[2:])[i, j])
            assert behind - float(law[ours.token[i, j]]) - 1e-6 < u < behind + 1e-6
        for x, y in ((ours.token, theirs.token), (ours.prob, theirs.prob), (ours.score, theirs.score)):
            x[other] = y[other]
    agree(ours, theirs, rtol=2e-5)  # the eager sum of so many tokens is itself off by 1.1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("stochastic", [False, True])
def test_a_captured_call_reads_what_its_inputs_hold_when_it_is_replayed(stochastic):
    rule = ScoreRule("raw", "entropy", ban=(9,))
    number, targets = numbers_and_targets(2, 3)
    draw = draw_of([0.9, 1.2] if stochastic else [0.0, 0.0])
    first, then = torch.randn(2, 2, 3, 5000, generator=torch.Generator().manual_seed(6)).bfloat16() * 3
    held = [x.cuda() for x in (first, draw.temperature, draw.seed, number, targets)]
    settings = {"ban": (9,), "rank": "entropy", "stochastic": stochastic, "raw": True}
    score(*held, **settings)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = score(*held, **settings)
    for logits, ahead in ((first, 0), (then, 5)):
        held[0].copy_(logits)
        held[3].copy_(number + ahead)
        graph.replay()
        agree(Scores(*(x.cpu() for x in made), logits), eager(logits, rule, draw, number + ahead, targets))
