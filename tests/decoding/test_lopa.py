"""LoPA: equal to its description worked out branch by branch, reduces to D2F, and what its rules imply."""

from __future__ import annotations

from dataclasses import asdict, replace
from random import Random
from typing import Any

import pytest
import torch
from lopa_by_hand import ByHand, Settings
from oracle import EOS, Oracle, run

from random_models import MASK, random_lm, random_prompts
from unmask.cache.contiguous import ContiguousCache
from unmask.decoding import build, loop
from unmask.decoding.branches import surest, unweave, weave, worth
from unmask.decoding.forward import Forward
from unmask.decoding.lopa import BranchState, LoPA
from unmask.decoding.sampling import Draw
from unmask.errors import UnmaskError
from unmask.layout import PAD, block_causal
from unmask.lm import LM

NEW = 12
TEXT = [(i * 7 + 3) % 60 for i in range(200)]


def random_settings(rng: Random, **more: Any) -> Settings:
    return Settings(
        **{
            "block_size": rng.choice([2, 3, 4, 6]),
            "add_threshold": rng.choice([0.0, 0.1, 0.5, 1.0]),
            "activate_threshold": rng.choice([0.3, 0.95]),
            "threshold": rng.choice([0.2, 0.4, 0.7, 1.0]),
            "rank": rng.choice(["prob", "margin", "entropy"]),
            "num_lookahead": rng.choice([1, 2, 3, 5]),
            "full_window": rng.random() < 0.5,
        }
        | more
    )


def lm_for(seed: int) -> LM:
    """One or two layers, token shift or none; end tokens are likely."""
    lm = random_lm(seed, ("llada", "dream")[seed % 2], layers=1 + seed % 4 // 2)
    return LM(replace(lm.checkpoint, family=lm.family.override(eos_token_id=(21, 22))), None)


def decode(lm: LM, prompt: list[int], options: dict[str, Any], observe: loop.Observer | None = None) -> loop.Row:
    """One prompt to the end of its canvas."""
    draw = Draw(torch.zeros(1), torch.ones(1), torch.zeros(1).long(), torch.zeros(1).long())
    bound = build("lopa", options | {"early_exit": False}).bind(lm.family, NEW)
    (row,) = loop.decode(
        lm.model, bound, [prompt], facts=lm.facts, draw=draw, new_tokens=NEW, trace=True, observe=observe
    )
    return row


def forwards(result) -> int:
    return sum(result.counters.forwards.values())


@pytest.fixture
def caches(monkeypatch) -> list[ContiguousCache]:
    """The caches of the runs of a test, their rows kept when these are done."""
    made: list[ContiguousCache] = []

    class Kept(ContiguousCache):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            made.append(self)

        def select(self, rows):
            pass

    monkeypatch.setattr(loop, "ContiguousCache", Kept)
    return made


def kept_blocks(state: BranchState) -> int:
    """Blocks whose keys are in their place. Those a branch computed last wait for a forward that never comes."""
    waits = state.lengths.shape[1] - 1 > int(state.winner[0])
    return int((state.before if waits else state.cached)[0])


@pytest.mark.parametrize("seed", range(24))
def test_all_branches_in_one_forward_equal_one_forward_a_branch(seed, caches):
    rng, lm = Random(seed), lm_for(seed)
    share, weight = rng.choice([1.0, 1.0, 0.5]), rng.choice([0.0, 0.0, 0.6])
    settings = random_settings(rng, worst_share=share, creation_weight=weight, full_window=seed % 8 > 1)
    prompt = random_prompts(seed, 1)[0]
    by_hand = ByHand(lm, settings, -(-NEW // settings.block_size))
    tokens, rounds = by_hand.run(prompt)
    states: list[BranchState] = []
    branches: list[list[int]] = []
    winners: list[list[int] | None] = []

    def observe(numbers, state):
        states.append(state)
        winner = int(state.winner[0])
        winners.append(None if winner == settings.num_lookahead else branches[winner])
        branches[:] = [[int(p) - len(prompt), int(t)] for p, t in zip(state.place[0], state.guess[0])]

    row = decode(lm, prompt, asdict(settings), observe)
    assert [t for t, is_open in zip(row.canvas, row.open) if not is_open] == tokens
    assert len(row.trace) == len(rounds)
    assert winners == [r["branches"][r["winner"]] for r in rounds]
    for step, r in zip(row.trace, rounds):
        own = r["branches"][r["winner"]]
        assert dict(zip(step.positions, step.tokens)) == r["filled"] | ({} if own is None else {own[0]: own[1]})
    kept = len(prompt) + kept_blocks(states[-1]) * settings.block_size
    assert torch.allclose(caches[0].keys[:, :, :, :kept], by_hand.cache.keys[:, :, :, :kept], atol=1e-5)
    assert torch.allclose(caches[0].values[:, :, :, :kept], by_hand.cache.values[:, :, :, :kept], atol=1e-5)
    if lm.family.shift:
        assert torch.allclose(states[-1].carry[0], by_hand.carry, atol=1e-5)


def test_without_lookahead_it_is_d2f_and_the_full_window_is_not():
    differ = 0
    for seed in range(12):
        rng, lm = Random(seed), lm_for(seed)
        settings = asdict(random_settings(rng, num_lookahead=0, full_window=False))
        shared = {k: settings[k] for k in list(settings)[:5]} | {"max_active_blocks": rng.choice([None, 1, 2])}
        same = {"max_new_tokens": 8, "trace": True, "early_exit": False} | shared
        batch = random_prompts(seed, 2)
        d2f = lm.generate(batch, method="d2f", **same)
        ours = lm.generate(batch, method="lopa", num_lookahead=0, **same)
        assert [(r.trace, r.ids) for r in d2f] == [(r.trace, r.ids) for r in ours]
        if seed < 6:
            other = lm.generate(batch, method="lopa", num_lookahead=0, full_window=True, **same)
            differ += [r.ids for r in d2f] != [r.ids for r in other]
    assert differ >= 4


def test_an_early_exit_never_changes_the_text_and_branches_save_forwards():
    spent = {0: 0, 3: 0}
    for seed in range(6):
        rng, lm = Random(seed), lm_for(seed)
        settings = asdict(random_settings(rng, threshold=0.5, rank="entropy", full_window=seed % 4 == 0))
        batch = random_prompts(seed, 3)
        for k in (0, 3):
            same = {"method": "lopa", "max_new_tokens": NEW} | settings | {"num_lookahead": k}
            for short, full in zip(lm.generate(batch, **same), lm.generate(batch, early_exit=False, **same)):
                assert (short.ids, short.finish_reason) == (full.ids, full.finish_reason)
                assert forwards(short) <= forwards(full)
                spent[k] += forwards(full)
    assert spent[3] < 0.85 * spent[0]


@pytest.mark.parametrize("full_window", [False, True])
def test_branches_are_the_anchor_with_one_mask_filled_over_the_same_window(monkeypatch, full_window):
    plans: list[tuple[BranchState, Forward]] = []
    plan = LoPA.plan

    def spy(self, state):
        plans.append((state, plan(self, state)))
        return plans[-1][1]

    monkeypatch.setattr(LoPA, "plan", spy)
    lm, k = lm_for(7), 3
    options = {"block_size": 4, "threshold": 0.6, "num_lookahead": k, "full_window": full_window}
    for prompt in random_prompts(3, 3):
        decode(lm, prompt, options)
    assert len(plans) > 9
    for state, forward in plans:
        windows = []
        for lane in range(1, k + 2):
            mine = (forward.layout.lane[0] == lane) & (forward.layout.segment[0] != PAD)
            at = forward.layout.positions[0, mine].tolist()
            windows.append(dict(zip(at, forward.tokens[0, mine].tolist())))
            assert at == sorted(set(at))
            stored = forward.store[0, mine]
            if lane == k + 1:
                assert stored.tolist() == at
            elif full_window:
                assert stored.tolist() == [lane * int(state.limit[0]) + p for p in at]
            else:
                assert (stored == -1).all()
        anchor = windows[k]
        for j, window in enumerate(windows[:k]):
            place = int(state.place[0, j])
            assert bool(window) == (place >= 0)
            if window:
                assert min(window) == min(anchor) == int(forward.visible[0])
                assert abs(len(window) - len(anchor)) in (0, 4)
                assert [p for p in window if p in anchor and window[p] != anchor[p]] == [place]
                assert anchor[place] == MASK
                assert window[place] == int(state.guess[0, j])


@pytest.mark.parametrize("full_window", [False, True])
def test_kept_keys_are_those_of_the_finished_text_unless_the_window_is_full(caches, full_window):
    size, by_branch = 3, 0
    for seed in range(8):
        lm, prompt = random_lm(seed, ("llada", "dream")[seed % 2]), random_prompts(seed, 1)[0]
        last: list[BranchState] = []

        def observe(numbers, state, last=last):
            last.append(state)

        options = {"block_size": size, "threshold": 0.6, "num_lookahead": 3, "full_window": full_window}
        row = decode(lm, prompt, options, observe)
        by_branch += sum(bool(s.cached[0] > s.before[0]) and int(s.winner[0]) < 3 for s in last)
        keys, kept, n = caches.pop(), kept_blocks(last[-1]) * size, len(prompt)
        ids = torch.tensor([prompt + row.canvas])
        layout = block_causal(ids.shape[1], size, anchor=n).batch(1)
        clean = ContiguousCache(2, 1, 2, ids.shape[1], 8)
        attend = clean.window(layout, torch.tensor([0]), layout.positions)
        with torch.inference_mode():
            lm.model(ids, layout.positions, attend, layout.positions)
        assert kept > 0
        for ours, theirs in ((keys.keys, clean.keys), (keys.values, clean.values)):
            equal = torch.allclose(ours[:, :, :, : n + kept], theirs[:, :, :, : n + kept], atol=1e-4)
            assert equal != full_window
    assert by_branch > 4  # blocks became permanent while a lookahead branch won


# Every position the same and a score that is that of one position: what branches are worth is exactly equal.
SAME, EQUAL = Oracle([7] * 200, 0, [0.5] * 200), {"threshold": 1.0, "rank": "prob", "worst_share": 0.0}


def test_worked_example_a_block_completed_by_the_extra_token_waits_a_round():
    """Of equals the first branch wins and brings its token; then a token is forced, as none is above the threshold."""
    options = EQUAL | {"block_size": 2, "add_threshold": 1.0, "num_lookahead": 2, "early_exit": False}
    (row,) = run(SAME, "lopa", options, [5], 6)
    assert [s.positions for s in row.trace] == [[0], [1, 2], [3, 4], [5]]
    # Block 0 is full in the winner of the second round, but this forward does not count as one that keeps its keys.
    assert [s.kind for s in row.trace] == ["prefill", "denoise", "commit", "commit"]
    assert [s.visible for s in row.trace] == [0, 5, 5, 7]
    # One mask is left each time, so one branch; where it fills the block the next one (if any) is there already.
    assert [s.width for s in row.trace] == [5 + 2, 4 + 2, 6 + 4, 4 + 4]


@pytest.mark.parametrize("k", [0, 1, 4])
def test_with_nothing_sure_a_round_takes_one_token_and_at_most_the_branchs_own(k):
    options = {"block_size": 16, "threshold": 1.0, "num_lookahead": k, "early_exit": False}
    (row,) = run(SAME, "lopa", EQUAL | options, [5], 16)
    assert [len(s.positions) for s in row.trace] == ([1] * 16 if k == 0 else [1] + [2] * 7 + [1])
    sure = [0.3 + (i * 37 % 100) / 150 for i in range(200)]
    (row,) = run(Oracle(TEXT, 0, sure), "lopa", options, [5], 16)
    assert 8 < len(row.trace) <= 16
    assert {len(s.positions) for s in row.trace} <= {0, 1, 2 if k else 1}
    assert row.canvas == TEXT[5:21]


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("full_window", [False, True])
def test_lopa_reproduces_the_oracle_for_ragged_batches(shift, full_window):
    sure = [0.3 + (i * 37 % 100) / 150 for i in range(200)]
    lengths = [1, 5, 16, 23]
    for more in ({"add_threshold": 1.0}, {"max_active_blocks": 1}, {"num_lookahead": 9}):
        options = {"block_size": 8, "threshold": 0.7, "full_window": full_window} | more
        rows = run(Oracle(TEXT, shift, sure), "lopa", options, lengths, 24)
        assert [r.canvas for r in rows] == [TEXT[n : n + 24] for n in lengths]


def test_the_threshold_compares_the_probability_whatever_ranks():
    for rank in ("entropy", "margin", "prob"):
        options = {"block_size": 8, "threshold": 0.7, "rank": rank, "early_exit": False}
        (row,) = run(Oracle(TEXT, 0, [0.75] * 200), "lopa", options, [5], 8)
        assert [s.positions for s in row.trace] == [list(range(8))]


def test_an_end_token_of_a_lookahead_branch_stops_its_blocks_alone():
    said = TEXT[:5] + [EOS] + TEXT[6:]
    options = {"block_size": 2, "threshold": 1.0, "add_threshold": 0.5, "num_lookahead": 1, "early_exit": False}
    sure = [0.5] * 200
    sure[5:7] = [0.5, 0.9]  # position 1 first, then the branch tries the end token
    (row,) = run(Oracle(said, 0, sure), "lopa", options, [5], 12)
    (short,) = run(Oracle(said, 0, sure), "lopa", options | {"early_exit": True}, [5], 12)
    assert row.canvas[0] == short.canvas[0] == EOS
    assert any(row.open)  # blocks behind the end token were never appended
    assert len(short.trace) <= len(row.trace)


def test_worth_is_one_without_masks_and_else_the_mean_of_the_least_sure_share():
    score = torch.tensor([[[-3.0, -1.0, -2.0, -9.0], [-4.0, -4.0, -4.0, -4.0]]])
    masked = torch.tensor([[[True, True, True, False], [False] * 4]])
    assert worth(score, masked, 1.0).tolist() == [[-2.0, 1.0]]
    assert worth(score, masked, 0.67).tolist() == [[-2.5, 1.0]]
    assert worth(score, masked, 0.5).tolist() == worth(score, masked, 0.0).tolist() == [[-3.0, 1.0]]


def test_surest_takes_the_best_masks_in_order_and_says_which_there_are():
    score = torch.tensor([[0.1, 0.9, 0.5, 0.9]])
    column, found = surest(score, torch.tensor([[True, True, False, True]]), 6)
    assert column[found].tolist() == [1, 3, 0]
    assert found.tolist() == [[True] * 3 + [False] * 3]


def test_woven_columns_lie_position_by_position_and_may_be_cut():
    x = torch.arange(12).view(4, 3)  # two rows with two versions of three columns
    woven = weave(x, 2)
    assert woven.tolist() == [[0, 3, 1, 4, 2, 5], [6, 9, 7, 10, 8, 11]]
    assert torch.equal(unweave(woven, 2).flatten(0, 1), x)
    assert unweave(woven[:, :3], 2).tolist() == [[[0, 1], [3, -1]], [[6, 7], [9, -1]]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": "sched"}, "lopa: no stop rule: several blocks are in flight at once"),
        ({"num_lookahead": -1}, "num_lookahead must be a whole number between 0 and 64, not -1"),
        ({"branch_topp": 1.5}, "worst_share must be between 0.0 and 1.0, not 1.5"),
        ({"sampling_strategy": "neg_entropi"}, "did you mean 'neg_entropy'"),
    ],
)
def test_bad_options_are_one_line(options, message):
    with pytest.raises(UnmaskError) as error:
        build("lopa", options)
    assert message in str(error.value)
