"""Scores of logits in one pass: the proposed token of each row, its probability and its rank.

The vocabulary of a row is cut into splits of BLOCK tokens. `_split` reads each split once and leaves a few numbers of
it; `_merge`, one program a row, combines them and draws the token. What is computed, and when it may be used, is told
by `unmask.decoding.sampling.score` and `unmask.engine.scoring`.

Shapes: B rows, R asked rows, V vocabulary, N = B * R, P splits of a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from unmask import hashing

GOLDEN, FIRST, SECOND = (tl.constexpr(v) for v in (hashing._GOLDEN, hashing._FIRST, hashing._SECOND))

# What `_split` leaves of a split, float32. "Basis" are the logits that the confidence is taken of.
BEST = tl.constexpr(0)  # the largest logit of an allowed token
TOP = tl.constexpr(1)  # the largest of the basis
SECOND_TOP = tl.constexpr(2)  # the next one, equal to TOP where that occurs twice
MASS = tl.constexpr(3)  # sum of exp(x - TOP) over the basis
MOMENT = tl.constexpr(4)  # sum of exp(x - TOP) * (x - TOP) over the basis
POOL_TOP = tl.constexpr(5)  # the largest logit at temperature of an allowed token
FIELDS = tl.constexpr(6)


@triton.jit
def _shift(x: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    """Logical right shift of int64."""
    return (x >> BITS) & ((1 << (64 - BITS)) - 1)


@triton.jit
def _mix(x: tl.tensor) -> tl.tensor:
    x = (x ^ _shift(x, 30)) * FIRST
    x = (x ^ _shift(x, 27)) * SECOND
    return x ^ _shift(x, 31)


@triton.jit
def _uniform(seed: tl.tensor, number: tl.tensor, position: tl.tensor) -> tl.tensor:
    """`sampling.uniform` of one row, bit for bit: in torch it would be some fifty launches."""
    bits = seed * GOLDEN + 1
    bits = _mix((bits ^ number) * SECOND + GOLDEN)
    bits = _mix((bits ^ position) * SECOND + GOLDEN)
    bits = _mix(bits * SECOND + GOLDEN)
    return (_shift(bits, 12).to(tl.float64) + 0.5) * 2.220446049250313e-16  # 2 ** -52


@triton.jit
def _without(x: tl.tensor, index: tl.tensor, IDS: tl.constexpr) -> tl.tensor:
    """x with the tokens IDS at -inf."""
    for i in tl.static_range(len(IDS)):
        x = tl.where(index == IDS[i], -float("inf"), x)
    return x


@triton.jit
def _heat(temperature: tl.tensor, b: tl.tensor) -> tl.tensor:
    """What the logits of batch row b are divided by."""
    given = tl.load(temperature + b).to(tl.float32)
    return tl.where(given > 0, given, 1.0)


@triton.jit
def _or_zero(top: tl.tensor) -> tl.tensor:
    """What to subtract before exp, so that a set of nothing but -inf gives sums of 0 and not NaN."""
    return tl.where(top == -float("inf"), 0.0, top)


@triton.jit
def _read(
    row_logits: tl.tensor, split: tl.tensor, V: tl.tensor, BLOCK: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The tokens of a split, which of them there are, and their logits, -inf where there is none."""
    index = split * BLOCK + tl.arange(0, BLOCK)
    inside = index < V
    return index, inside, tl.load(row_logits + index, mask=inside, other=-float("inf")).to(tl.float32)


@triton.jit
def _split(
    logits: tl.tensor,
    temperature: tl.tensor,
    parts: tl.tensor,
    masses: tl.tensor,
    R: tl.tensor,
    V: tl.tensor,
    splits: tl.tensor,
    stride_b: tl.tensor,
    stride_r: tl.tensor,
    BAN: tl.constexpr,
    BAN_CONFIDENCE: tl.constexpr,
    RANK: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    RAW: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The numbers of one split of one row: parts [N, FIELDS, P], and masses [N, P], the sum of exp(x - POOL_TOP) over
    the allowed tokens at temperature."""
    program = tl.program_id(0)
    row, split = (program // splits).to(tl.int64), program % splits
    b, r = row // R, row % R
    index, _, z = _read(logits + b * stride_b + r * stride_r, split, V, BLOCK)
    into = parts + row * FIELDS * splits + split

    tl.store(into + BEST * splits, tl.max(_without(z, index, BAN), 0))

    x = z
    if STOCHASTIC:
        x = tl.div_rn(z, _heat(temperature, b))
        pool = _without(x, index, BAN)
        pool_top = tl.max(pool, 0)
        tl.store(into + POOL_TOP * splits, pool_top)
        mass = tl.sum(tl.exp(pool - _or_zero(pool_top)).to(tl.float64), 0)
        tl.store(masses + row * splits + split, mass)

    basis = _without(z if RAW else x, index, BAN_CONFIDENCE)
    top = tl.max(basis, 0)
    below = basis - _or_zero(top)
    weight = tl.exp(below)
    tl.store(into + TOP * splits, top)
    tl.store(into + MASS * splits, tl.sum(weight, 0))
    if RANK == "margin":
        equal = basis == top
        second = tl.max(tl.where(equal, -float("inf"), basis), 0)
        tl.store(into + SECOND_TOP * splits, tl.where(tl.sum(equal.to(tl.int32), 0) > 1, top, second))
    if RANK == "entropy":
        tl.store(into + MOMENT * splits, tl.sum(weight * tl.where(weight > 0, below, 0.0), 0))


@triton.jit
def _first(
    row_logits: tl.tensor,
    best: tl.tensor,
    V: tl.tensor,
    splits: tl.tensor,
    s: tl.tensor,
    BAN: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The first token with the largest of these logits. Where it is in its split costs `_split` more for all of them
    than to read the one again."""
    top = tl.max(best, 0)
    split = tl.min(tl.where(best == top, s, splits - 1), 0)
    index, inside, z = _read(row_logits, split, V, BLOCK)
    token = tl.min(tl.where(inside & (_without(z, index, BAN) == top), index, V), 0)
    return tl.minimum(token, V - 1)  # NaN equals nothing


@triton.jit
def _draw(
    row_logits: tl.tensor,
    heat: tl.tensor,
    u: tl.tensor,
    tops: tl.tensor,
    mass: tl.tensor,
    V: tl.tensor,
    s: tl.tensor,
    BAN: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The first token whose cumulated probability exceeds u, and the largest logit it was drawn among (-inf: there is
    none to draw). Only the split that holds the bound is read again."""
    top = tl.max(tops, 0)
    mass = mass * tl.exp(tops.to(tl.float64) - _or_zero(top).to(tl.float64))
    bound = u * tl.sum(mass, 0)
    # Sums of another order may differ in the last bit: if none exceeds the bound it is the last that has any mass.
    split = tl.min(tl.where((tl.cumsum(mass, 0) > bound) & (mass > 0), s, SPLITS), 0)
    split = tl.where(split < SPLITS, split, tl.max(tl.where(mass > 0, s, 0), 0))
    before = tl.sum(tl.where(s < split, mass, 0.0), 0)

    index, _, z = _read(row_logits, split, V, BLOCK)
    weight = tl.exp(_without(tl.div_rn(z, heat), index, BAN) - _or_zero(top))
    total = before + tl.cumsum(weight.to(tl.float64), 0)
    token = tl.min(tl.where((total > bound) & (weight > 0), index, V), 0)
    return tl.where(token < V, token, tl.max(tl.where(weight > 0, index, 0), 0)), top


@triton.jit
def _merge(
    logits: tl.tensor,
    temperature: tl.tensor,
    seeds: tl.tensor,
    numbers: tl.tensor,
    targets: tl.tensor,
    parts: tl.tensor,
    masses: tl.tensor,
    tokens: tl.tensor,
    greedy: tl.tensor,
    probs: tl.tensor,
    scores: tl.tensor,
    R: tl.tensor,
    V: tl.tensor,
    splits: tl.tensor,
    stride_b: tl.tensor,
    stride_r: tl.tensor,
    number_b: tl.tensor,
    number_r: tl.tensor,
    target_b: tl.tensor,
    target_r: tl.tensor,
    BAN: tl.constexpr,
    BAN_CONFIDENCE: tl.constexpr,
    RANK: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    RAW: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
) -> None:
    """The scores of one row, to tokens, greedy, probs and scores [N]. SPLITS: P rounded up to a power of two."""
    row = tl.program_id(0).to(tl.int64)
    b, r = row // R, row % R
    row_logits = logits + b * stride_b + r * stride_r
    s = tl.arange(0, SPLITS)
    held = s < splits
    part = parts + row * FIELDS * splits + s

    token = _first(row_logits, tl.load(part + BEST * splits, mask=held, other=-float("inf")), V, splits, s, BAN, BLOCK)
    tl.store(greedy + row, token.to(tl.int64))

    heat = 1.0
    if STOCHASTIC:
        heat = _heat(temperature, b)
        number = tl.load(numbers + b * number_b + r * number_r)
        u = _uniform(tl.load(seeds + b), number, tl.load(targets + b * target_b + r * target_r))
        tops = tl.load(part + POOL_TOP * splits, mask=held, other=-float("inf"))
        mass = tl.load(masses + row * splits + s, mask=held, other=0.0)
        drawn, pool_top = _draw(row_logits, heat, u, tops, mass, V, s, BAN, BLOCK, SPLITS)
        token = tl.where((tl.load(temperature + b) > 0) & (pool_top > -float("inf")), drawn, token)
    tl.store(tokens + row, token.to(tl.int64))

    # Few numbers are left; in float64 what they give differs from the eager float32 by the rounding of that alone.
    top = tl.load(part + TOP * splits, mask=held, other=-float("inf"))
    mass = tl.load(part + MASS * splits, mask=held, other=0.0).to(tl.float64)
    highest = tl.max(top, 0)
    ahead = (_or_zero(top) - highest).to(tl.float64)
    scale = tl.where(top == -float("inf"), 0.0, tl.exp(ahead))
    total = tl.sum(mass * scale, 0)
    divisor = total.to(tl.float32)

    x = tl.load(row_logits + token).to(tl.float32)
    if STOCHASTIC and not RAW:
        x = tl.div_rn(x, heat)
    x = _without(x, token, BAN_CONFIDENCE)
    prob = tl.div_rn(tl.exp((x - highest).to(tl.float64)).to(tl.float32), divisor)
    tl.store(probs + row, prob)
    if RANK == "margin":
        following = tl.max(tl.load(part + SECOND_TOP * splits, mask=held, other=-float("inf")), 0)
        first = tl.sum((top == highest).to(tl.int32), 0) == 1
        others = tl.max(tl.where(top == highest, -float("inf"), top), 0)
        following = tl.where(first, tl.maximum(following, others), highest)
        rest = tl.exp((following - highest).to(tl.float64)).to(tl.float32)
        tl.store(scores + row, tl.div_rn(1.0, divisor) - tl.div_rn(rest, divisor))
    if RANK == "entropy":
        moment = tl.load(part + MOMENT * splits, mask=held, other=0.0).to(tl.float64)
        moment = tl.where(top == -float("inf"), 0.0, scale * (moment + ahead * mass))
        tl.store(scores + row, (tl.sum(moment, 0) / total - tl.log(total)).to(tl.float32))


def _block(rows: int, vocab: int) -> int:
    """Tokens a split: few where there are few rows, so that all of the card has work."""
    block = 1024 if rows <= 4 else 2048
    return min(block, triton.next_power_of_2(vocab))


def score(
    logits: Tensor,
    temperature: Tensor,
    seed: Tensor,
    number: Tensor,
    targets: Tensor,
    *,
    ban: tuple[int, ...] = (),
    ban_confidence: tuple[int, ...] = (),
    rank: str = "prob",
    stochastic: bool = False,
    raw: bool = False,
    block: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """token, greedy (int64), prob and score (float32), all [B, R], of logits [B, R, V] with unit stride in V.

    Args:
        temperature, seed: [B]; with number [B] or [B, R] and targets [B, R] what a draw is made of.
        ban, ban_confidence, rank, raw: as in `ScoreRule`; raw: its confidence is "raw".
        stochastic: whether any row may have a temperature.
        block: tokens a split, a power of two; None: as many as suit the number of rows.

    Two launches, no host read. With rank "prob" the last two are one tensor. With rank "entropy" the score is that of
    the probabilities themselves; the eager one, which adds 1e-10 inside the logarithm, is higher by at most V * 1e-10.
    """
    (B, R, V), device = logits.shape, logits.device
    block = _block(B * R, V) if block is None else block
    splits = triton.cdiv(V, block)
    parts = torch.empty(B * R, FIELDS.value, splits, device=device, dtype=torch.float32)
    masses = torch.empty(B * R, splits, device=device, dtype=torch.float64)
    token, greedy = (torch.empty(B, R, device=device, dtype=torch.int64) for _ in range(2))
    prob = torch.empty(B, R, device=device, dtype=torch.float32)
    ranked = prob if rank == "prob" else torch.empty_like(prob)
    numbers = number.unsqueeze(-1).expand(B, R) if number.dim() == 1 else number
    rule = {"BAN": ban, "BAN_CONFIDENCE": ban_confidence, "RANK": rank, "STOCHASTIC": stochastic, "RAW": raw}
    shape = (R, V, splits, *logits.stride()[:2])
    warps = 2 if block <= 2048 else 4  # the fewest that hold a split: each waits for the others at every sum
    _split[(B * R * splits,)](logits, temperature, parts, masses, *shape, **rule, BLOCK=block, num_warps=warps)
    _merge[(B * R,)](
        *(logits, temperature, seed, numbers, targets, parts, masses, token, greedy, prob, ranked),
        *(*shape, *numbers.stride(), *targets.stride()),
        **rule,
        BLOCK=block,
        SPLITS=triton.next_power_of_2(splits),
        num_warps=warps,
    )
    return token, greedy, prob, ranked
