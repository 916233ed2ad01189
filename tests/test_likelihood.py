"""Likelihoods: exact ones against plain sums, bounds against all orders of decoding, blocks against the decoder's
view."""

from __future__ import annotations

import json
from itertools import combinations, permutations

import pytest
import torch
from torch import Tensor

from checkpoints import GOLDEN, tiny
from replay_likelihood import check_likelihood
from unmask import UnmaskError
from unmask.attention.dense import DenseAttention
from unmask.layout import Layout, block_causal, causal, full
from unmask.likelihood import loglikelihood, mask_counts
from unmask.lm import LM

CASES = [json.loads(line) for line in (GOLDEN / "likelihood-llada.jsonl").read_text().splitlines()]
PROMPT = [5, 6, 7, 8, 9]


def log_probs(lm: LM, tokens: list[int], layout: Layout) -> Tensor:
    with torch.no_grad():
        logits = lm.model(torch.tensor([tokens]), layout.positions[None], DenseAttention(layout))[0]
    if lm.family.name in ("mdlm", "bd3lm"):
        logits[:, lm.family.mask_id] = -torch.inf
    return logits.double().log_softmax(-1)


@pytest.mark.parametrize("case", CASES, ids=[c["id"] for c in CASES])
def test_official_likelihoods_and_greedy_checks(case):
    assert check_likelihood(GOLDEN, case) == ""


@pytest.mark.parametrize("name", ["qwen2-tiny", "wedlm-tiny"])
def test_causal_models_are_exact_in_one_forward(name):
    lm, answer = tiny(name), [11, 3, 40, 11]
    found = lm.loglikelihood(PROMPT, answer, samples=7)
    rows = log_probs(lm, PROMPT + answer, causal(9))
    assert found.value == pytest.approx(sum(float(rows[4 + i, t]) for i, t in enumerate(answer)), abs=1e-4)
    assert (found.exact, found.forwards) == (True, 1)


@pytest.mark.parametrize("name", ["llada-tiny", "dream-tiny", "mdlm-dit-tiny"])
def test_one_token_answers_are_exact_where_masks_are_filled(name):
    lm = tiny(name)
    found = lm.loglikelihood(PROMPT, [44])
    row = log_probs(lm, [*PROMPT, lm.family.mask_id], full(6))[5 - lm.family.shift]
    assert found.value == pytest.approx(float(row[44]), abs=1e-4)
    assert (found.exact, found.forwards) == (True, 1)


@pytest.mark.parametrize("name", ["llada-tiny", "dream-tiny", "mdlm-dit-tiny"])
def test_the_bound_is_the_mean_over_all_orders_of_decoding(name):
    lm, answer = tiny(name), [11, 3, 40]
    each = []
    for order in permutations(range(3)):
        canvas, total = PROMPT + [lm.family.mask_id] * 3, 0.0
        for i in order:
            total += float(log_probs(lm, canvas, full(8))[5 + i - lm.family.shift, answer[i]])
            canvas[5 + i] = answer[i]
        each.append(total)
    # Every number of masks with equal weight, every choice of that number with equal weight: a row for each of 6.
    every = [list(c) for n in (1, 2, 3) for c in combinations(range(3), n) for _ in range(6 if n == 3 else 2)]
    found = lm.loglikelihood(PROMPT, answer, masks=[every])
    assert found.value == pytest.approx(sum(each) / 6, abs=1e-3)
    assert not found.exact
    drawn = lm.loglikelihood(PROMPT, answer, samples=1536, batch=48)
    assert drawn.forwards == 32
    assert drawn.value == pytest.approx(found.value, abs=0.6)


def test_drawn_masks_follow_the_seed_alone():
    lm, answer = tiny("llada-tiny"), [11, 3, 40, 7, 9]
    first = lm.loglikelihood(PROMPT, answer, samples=16)
    assert lm.loglikelihood(PROMPT, answer, samples=16) == first
    assert first.forwards == 2
    assert len({lm.loglikelihood(PROMPT, answer, samples=16, seed=s).value for s in range(4)}) == 4


@pytest.mark.parametrize(
    ("first", "rows", "length", "expected"),
    [
        (1, 4, 4, [1, 2, 3, 4]),
        (3, 4, 4, [3, 4, 1, 2]),
        (2, 4, 8, [2, 4, 6, 8]),
        (1, 8, 32, [1, 5, 9, 13, 17, 21, 25, 29]),
        (1, 2, 15, [1, 8]),  # 8.5 rounds to even
    ],
)
def test_numbers_of_masks_are_spread_as_the_official_code_spreads_them(first, rows, length, expected):
    counts = mask_counts(torch.tensor([first]), rows, torch.tensor([length]))
    assert counts[:, 0].tolist() == expected


BLOCKS = {"sdar-tiny": 4, "bd3lm-dit-tiny": 4, "fast-dllm-v2-tiny": 4}


def block_by_block(lm: LM, block: int, answer: list[int], masked: list[int]) -> float:
    """The estimate of one row of masks from one forward a block, as a decoder would see it."""
    start, total = len(PROMPT), 0.0
    text = PROMPT + answer
    for first in range(start // block * block, len(text), block):
        stop = min(first + block, len(text))
        inside = [p for p in range(max(first, start), stop) if not (lm.family.shift and p % block == 0)]
        hidden = [p for p in inside if p - start in masked]
        if lm.family.shift and first >= start:
            total += float(log_probs(lm, text[:first], block_causal(first, block))[first - 1, text[first]])
        canvas = [lm.family.mask_id if p in hidden else t for p, t in enumerate(text[:stop])]
        rows = log_probs(lm, canvas, block_causal(stop, block))
        total += sum(float(rows[p - lm.family.shift, text[p]]) for p in hidden) * len(inside) / max(len(hidden), 1)
    return total


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_scored_as_they_are_decoded_all_in_one_forward(name):
    lm, block = tiny(name), BLOCKS[name]
    family = lm.family.override(block_size=block)
    answer = [11, 3, 40, 7, 9, 2, 30]  # positions 5..11: the rest of block 1 and block 2
    rows = [[0, 1, 2, 3, 4, 5, 6], [1, 5], [2, 4, 6]]
    found = loglikelihood(lm.model, family, PROMPT, answer, masks=[rows])
    expected = [block_by_block(lm, block, answer, row) for row in rows]
    assert found.value == pytest.approx(sum(expected) / 3, abs=2e-3)
    assert (found.exact, found.forwards) == (False, 1)
    drawn = loglikelihood(lm.model, family, PROMPT, answer, samples=256, batch=64)
    every = loglikelihood(lm.model, family, PROMPT, answer, samples=256, batch=64, seed=1)
    assert drawn.value == pytest.approx(every.value, rel=0.08)


def test_blocks_of_one_token_are_exact():
    lm, answer = tiny("sdar-tiny"), [11, 3, 40]
    found = loglikelihood(lm.model, lm.family.override(block_size=1), PROMPT, answer)
    expected = 0.0
    for i, token in enumerate(answer):
        canvas = [*PROMPT, *answer[:i], lm.family.mask_id]
        expected += float(log_probs(lm, canvas, block_causal(6 + i, 1))[-1, token])
    assert found.value == pytest.approx(expected, abs=1e-3)
    assert (found.exact, found.forwards) == (True, 1)


@pytest.mark.parametrize("name", ["qwen2-tiny", "llada-tiny", "dream-tiny", "sdar-tiny", "fast-dllm-v2-tiny"])
def test_what_greedy_decoding_says_is_greedy_and_nothing_else_is(name):
    lm = tiny(name)
    method = {"dream-tiny": {"schedule": "even"}, "fast-dllm-v2-tiny": {"threshold": 1.0}, "sdar-tiny": {"steps": 4}}
    options = method.get(name, {}) | ({"strategy": "static"} if name == "sdar-tiny" else {})
    said = lm.generate(PROMPT, max_new_tokens=6, early_exit=False, **options).ids
    assert lm.is_greedy(PROMPT, said)
    assert not lm.is_greedy(PROMPT, [*said[:-1], (said[-1] + 1) % 100])


@pytest.mark.parametrize(
    ("name", "answer", "options", "message"),
    [
        ("llada-tiny", [], {}, "the answer is empty"),
        ("llada-tiny", [999], {}, "999 is not a token id"),
        ("llada-tiny", "text", {}, "has no tokenizer; give token ids"),
        ("llada-tiny", [1] * 1024, {}, "exceed the context of 512 tokens"),
        ("llada-tiny", [1, 2], {"samples": 10}, r"samples \(10\) must be a multiple of batch \(8\)"),
        ("llada-tiny", [1, 2], {"masks": [[[0], []]]}, "must mask at least one token"),
        ("llada-tiny", [1, 2], {"masks": [[[2]]]}, "outside of the answer of 2 tokens"),
        ("llada-tiny", [1, 2], {"masks": []}, "masks are empty"),
        ("sdar-tiny", [1, 2], {"cfg_scale": 1.0}, "guidance needs a model that fills masks anywhere"),
        ("qwen2-tiny", [1, 2], {"masks": [[[0]]]}, "masks have no part"),
    ],
)
def test_bad_input_is_said_in_one_line(name, answer, options, message):
    with pytest.raises(UnmaskError, match=message):
        tiny(name).loglikelihood(PROMPT, answer, **options)


def test_text_is_tokenized_and_scored():
    from unmask import load

    lm = load("nano-ar", device="cpu")
    assert lm.tokenizer is not None
    ids = lm.tokenizer.encode_answer(" 36")
    assert lm.loglikelihood("3 boxes of 12 pens.", " 36") == lm.loglikelihood("3 boxes of 12 pens.", ids)
