"""The pool of earlier guesses against a plain search, and the kernel with its one relaxed condition."""

from __future__ import annotations

import json
import random

import pytest
import torch

from checkpoints import GOLDEN
from replay_jacobi import REPLAYS
from unmask.decoding.ngrams import continuations, push
from unmask.models.checkpoint import load_model


def by_hand(pool: list[list[int]], line: list[int]) -> list[list[int]]:
    found = []
    for entry in reversed(pool[:-1]):
        entry = [t for t in entry if t >= 0]
        if line[0] in entry:
            rest = entry[entry.index(line[0]) :][: len(line)]
            found.append(rest + line[len(rest) :])
    return found


@pytest.mark.parametrize("seed", range(20))
def test_continuations_are_those_of_a_search_by_hand(seed):
    rng = random.Random(seed)
    rows, entries, length, size = 5, rng.randint(1, 6), rng.randint(1, 9), rng.randint(1, 9)
    pools = [
        [[rng.randrange(5) for _ in range(used)] + [-1] * (length - used) for used in drawn]
        for drawn in ([rng.randint(0, length) for _ in range(entries)] for _ in range(rows))
    ]
    lines = [[rng.randrange(5) for _ in range(size)] for _ in range(rows)]
    got, count = continuations(torch.tensor(pools), torch.tensor(lines))
    assert got.shape == (rows, entries - 1, size)
    for pool, line, candidates, n in zip(pools, lines, got.tolist(), count.tolist()):
        assert candidates[:n] == by_hand(pool, line)


def test_the_oldest_leave_where_something_is_pushed():
    pool = torch.tensor([[[1], [2], [3]], [[4], [5], [6]]])
    after = push(pool, torch.tensor([[[7], [8]], [[9], [0]]]), torch.tensor([True, False]))
    assert after.tolist() == [[[3], [7], [8]], [[4], [5], [6]]]
    assert push(pool[:, :1], torch.tensor([[[7], [8]], [[9], [0]]]), torch.tensor([True, True])).tolist() == [
        [[8]],
        [[0]],
    ]


@pytest.mark.parametrize("number", [1, 2, 5, 10, 13])
def test_single_candidates_are_used_as_the_kernel_does_with_that_condition_relaxed(number):
    lines = (GOLDEN / "jacobi-mr-causal.jsonl").read_text().splitlines()
    case = json.loads(lines[number - 1])
    case["options"]["min_candidates"] = 1
    relaxed = case["expect"]["single_candidate_used"]
    got = REPLAYS["jacobi-mr"](load_model(GOLDEN / "models" / case["model"], dtype=torch.float32), case)
    assert got.trace == [relaxed["trace"]]
    assert len(got.kinds) == relaxed["forwards"]
