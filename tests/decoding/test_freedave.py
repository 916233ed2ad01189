"""FreeDave: the text of its one-token (or threshold) decoder on hundreds of random models, in fewer forwards."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import oracle
import pytest
import torch
from many import EOS, MASK, VOCAB, Many

from checkpoints import GOLDEN
from checkpoints import tiny as load
from replay import run
from unmask.decoding import build
from unmask.decoding.forward import Facts, Forward, blank
from unmask.decoding.loop import Row
from unmask.decoding.reveal import Reveal, States, accepted, branches, chain
from unmask.decoding.sampling import Draw
from unmask.errors import UnmaskError
from unmask.layout import visible
from unmask.models.families import Family

NEW, MODELS = 9, 50
# block, depth, prompt length, hidden size, layers; other models in each
SETTINGS = [(2, 1, 3, 16, 1), (2, 4, 2, 16, 2), (4, 2, 6, 16, 1), (4, 4, 5, 32, 1), (4, 8, 7, 16, 2), (8, 1, 4, 16, 1)]
SETTINGS += [(8, 4, 9, 16, 1), (8, 8, 1, 16, 1)]
FORMS = {
    "official": {"verify": "official", "eager": False},
    "eager": {"verify": "official", "eager": True},
    "block": {"verify": "block", "eager": False},
    "sliding": {},
}


def models(index: int, hidden: int, layers: int, count: int = MODELS) -> Many:
    return Many(count, hidden, layers, (0.2, 0.4, 0.8)[index % 3], seed=index)


def random_prompts(seed: int, length: int, count: int = MODELS) -> torch.Tensor:
    return torch.randint(0, EOS, (count, length), generator=torch.Generator().manual_seed(seed))


def forwards(rows: list[Row]) -> int:
    return sum(sum(r.counters.forwards.values()) for r in rows)


def kinds(rows: list[Row]) -> dict[str, int]:
    return {k: n for k, n in sum((Counter(r.counters.forwards) for r in rows), Counter()).items() if n}


def text(rows: list[Row]) -> list[list[int]]:
    return [r.canvas for r in rows]


@cache
def on_blocks(index: int) -> tuple[list[list[int]], dict[str, list[Row]]]:
    """The oracle's texts and the rows of every form under one setting."""
    block, depth, length, hidden, layers = SETTINGS[index]
    net, prompts = models(index, hidden, layers), random_prompts(index, length)
    names = list(FORMS) if index % 2 else ["official", "eager", "sliding"]
    runs = {n: net.run(prompts, NEW, "block", block_size=block, depth=depth, **FORMS[n]) for n in names}
    return net.block_text(prompts, NEW, block).tolist(), runs


@pytest.mark.parametrize("index", range(len(SETTINGS)))
def test_every_form_gives_the_text_of_one_token_decoding(index):
    expected, runs = on_blocks(index)
    for name, rows in runs.items():
        assert text(rows) == expected, name


@pytest.mark.parametrize("index", range(len(SETTINGS)))
def test_forwards_lie_between_the_bound_and_the_oracle(index):
    block, depth, length, _, _ = SETTINGS[index]
    _, runs = on_blocks(index)
    end = -(-(length + NEW) // block) * block
    blocks = end // block - length // block
    prefill = MODELS * (length >= block)
    one_token = MODELS * (end - length + blocks) + prefill
    for name, rows in runs.items():
        if depth == 1:
            assert forwards(rows) == (MODELS * (end - length) if name == "sliding" else one_token)
        assert forwards(rows) <= one_token
    whole = (end - length) // block  # a partly known first block may need less
    assert forwards(runs["official"]) - prefill >= MODELS * whole * (2 + math.ceil((block - 1) / depth))


def test_a_sliding_window_takes_at_most_60_percent_of_the_forwards_of_the_official_eager_windows():
    # At depth 1 nothing is drafted, so only the overhead can go.
    runs = [on_blocks(i)[1] for i, (_, depth, *_) in enumerate(SETTINGS) if depth > 1]
    sliding, eager = (sum(forwards(r[name]) for r in runs) for name in ("sliding", "eager"))
    assert sliding <= 0.6 * eager
    assert "commit" not in kinds(runs[0]["sliding"])


def test_the_same_on_the_recorded_runs_of_the_official_code():
    ours = official = 0
    for line in (GOLDEN / "freedave-block.jsonl").read_text().splitlines():
        case = json.loads(line)
        o, expected = case["options"], case["expect"]
        if not o.get("eager_acceptance_mode") or o["early_exit"] or o["draft_steps"] == 1:
            continue
        if o["draft_mode"] != "tree_attention":  # the same run once more
            continue
        options = {
            "block_size": o["block_length"],
            "depth": o["draft_steps"],
            "threshold": o["confidence_threshold"],
            "leftmost": o["alg_temp"] == -1,
            "early_exit": False,
        }
        (row,) = run(
            load(case["model"]).checkpoint,
            case,
            "freedave",
            options,
            new_tokens=o["max_gen_length"],
            eos=(o["eos_token_id"],),
            mask=o["mask_token_id"],
        )
        assert row.canvas == expected["tokens"]
        ours, official = ours + forwards([row]), official + expected["forwards"]
    assert ours <= 0.6 * official


@pytest.mark.parametrize("cache", ["dual", "prefix"])
@pytest.mark.parametrize("shift", [0, 1])
def test_under_full_attention_the_text_is_that_of_one_token_decoding_with_the_same_stale_keys(cache, shift):
    new = 8
    for index, (block, depth) in enumerate([(4, 1), (3, 2), (4, 4), (8, 8)]):
        net, prompts = models(index, 16, 1 + index % 2), random_prompts(index, 3 + index)
        expected = net.full_text(prompts, new, block, shift, cache == "dual").tolist()
        same = {"block_size": block, "depth": depth, "cache": cache}
        for form in ("official", "block")[index % 2 :]:
            rows = net.run(prompts, new, "full", shift, verify=form, **same)
            assert text(rows) == expected
            assert (forwards(rows) == MODELS * new) if depth == 1 else (forwards(rows) < MODELS * new)
            assert kinds(rows)["refresh"] == MODELS * math.ceil(new / block)


@pytest.mark.parametrize("threshold", [0.1, 0.3])
def test_on_threshold_decoding_exact_matches_change_nothing(threshold):
    net, prompts = models(1, 16, 2, 20), random_prompts(3, 6, 20)
    expected = net.block_text(prompts, NEW, 4, threshold).tolist()
    same = {"block_size": 4, "threshold": threshold, "depth": 4}
    for name, options in FORMS.items():
        assert text(net.run(prompts, NEW, "block", **same, **options)) == expected, name
    expected = net.full_text(prompts, NEW, 4, 0, True, threshold).tolist()
    assert text(net.run(prompts, NEW, "full", **same)) == expected


def test_the_released_subset_rule_is_not_lossless_on_threshold_decoding():
    net, prompts = models(2, 16, 2, 20), random_prompts(3, 6, 20)
    expected = net.full_text(prompts, NEW, 12, 0, True, 0.5).tolist()
    same = {"block_size": 12, "threshold": 0.5, "depth": 8, "verify": "official"}
    assert text(net.run(prompts, NEW, "full", **same)) != expected
    assert text(net.run(prompts, NEW, "full", match="exact", **same)) == expected


def test_a_threshold_above_one_is_no_threshold():
    net, prompts = models(2, 16, 1, 5), random_prompts(4, 5, 5)
    for options in (FORMS["eager"], FORMS["sliding"]):
        plain = net.run(prompts, NEW, "block", depth=4, **options)
        high = net.run(prompts, NEW, "block", depth=4, threshold=2.0, **options)
        assert (text(plain), forwards(plain)) == (text(high), forwards(high))


def test_sampling_is_lossless_too():
    net, prompts = models(4, 16, 1, 10), random_prompts(5, 6, 10)
    hot = {"temperature": 0.8, "block_size": 4}
    expected = net.run(prompts, NEW, "block", verify="block", eager=False, depth=1, **hot)
    assert text(expected) != net.block_text(prompts, NEW, 4).tolist()
    for name in ("eager", "sliding"):
        assert text(net.run(prompts, NEW, "block", depth=8, **hot, **FORMS[name])) == text(expected)
    for shift in (0, 1):
        one, more = (net.run(prompts, NEW, "full", shift, depth=d, **hot) for d in (1, 8))
        assert text(one) == text(more)
        assert forwards(one) > forwards(more)


@pytest.mark.parametrize("form", FORMS)
def test_a_wrong_draft_ends_the_chain_and_changes_nothing(form, monkeypatch):
    net, prompts = models(0, 16, 1, 10), random_prompts(6, 4, 10)
    options = {"block_size": 8, "depth": 6, **({} if form in ("official", "eager") else {"branch": False})} | FORMS[
        form
    ]
    good = net.run(prompts, NEW, "block", **options)
    make = Reveal.drafts

    def spoilt(*args):
        """Spoils what the third draft adds to the second, there and in all later ones."""
        drafts = make(*args)
        third = drafts.open[:, 1] & ~drafts.open[:, 2]
        spoil = third[:, None] & (torch.arange(drafts.used.shape[1]) >= 2)[:, None]
        return replace(drafts, tokens=torch.where(spoil, (drafts.tokens + 1) % EOS, drafts.tokens))

    monkeypatch.setattr(Reveal, "drafts", spoilt)
    bad = net.run(prompts, NEW, "block", **options)
    assert text(bad) == text(good)
    assert forwards(bad) > forwards(good)


def states(rows: list[list[int]]) -> States:
    tokens = torch.tensor([rows])
    return States(tokens, tokens == MASK, torch.zeros(1, len(rows)), torch.ones(1, len(rows), dtype=torch.bool))


def test_the_accepted_draft_is_the_last_of_the_unbroken_chain():
    m = MASK
    drafts = states([[m, m, m], [5, m, m], [5, 6, m], [5, 6, 7]])
    guess = torch.tensor([[[5, 6, 7], [5, 6, 7], [5, 6, 8], [5, 6, 7]]])
    step = Reveal(3, leftmost=True).step(drafts.open, torch.full((1, 4, 3), 0.5))
    assert accepted(drafts, guess, step, False).tolist() == [2]  # the third state goes on with 8
    guess[0, 2, 2] = 7
    assert accepted(drafts, guess, step, False).tolist() == [3]
    guess[0, 0, 0] = 9
    assert accepted(drafts, guess, step, False).tolist() == [0]  # right later states do not help


def test_a_threshold_step_jumps_over_drafts_and_the_subset_rule_stops_at_them():
    m = MASK
    drafts = states([[m, m, m], [5, m, m], [5, 6, m], [5, 6, 7]])
    guess = torch.tensor([[[5, 6, 7]] * 4])
    step = drafts.open & torch.tensor([True, True, False])  # two at once from the first state
    step[0, 2] = drafts.open[0, 2]
    assert accepted(drafts, guess, step, False).tolist() == [3]
    drafts = states([[m, m, m], [5, m, m], [5, m, 7]])
    guess, step = guess[:, :3], torch.tensor([[[True, True, False], [False, True, True], [False, True, False]]])
    assert accepted(drafts, guess, step, False).tolist() == [0]
    assert accepted(drafts, guess, step, True).tolist() == [2]


def test_order_is_block_first_then_confidence_and_ties_go_left():
    is_open = torch.tensor([[True, False, True, True, True, True]])
    sure = torch.tensor([[0.2, 0.9, 0.5, 0.8, 0.8, 0.9]])
    assert Reveal(3).order(is_open, sure).tolist() == [[1, 6, 0, 3, 4, 2]]
    assert Reveal(3, leftmost=True).order(is_open, sure).tolist() == [[0, 6, 1, 2, 3, 4]]
    assert Reveal(3, threshold=0.2).step(is_open, sure).tolist() == [[True, False, True, False, False, False]]


def test_drafts_never_enter_a_block_before_the_one_in_front_is_full():
    torch.manual_seed(0)
    for tree in (chain(8), branches(8, True), branches(8, False)):
        is_open, sure = torch.rand(50, 12) < 0.6, torch.rand(50, 12, 2) / 2
        args = (torch.full((50, 12), MASK), is_open, torch.randint(0, EOS, (50, 12, 2)), sure, tree.expand(50, -1, -1))
        drafts = Reveal(4).drafts(*args, 8, torch.zeros(50, dtype=torch.long))
        for b in range(50):
            used = [drafts.open[b, k] for k in range(8) if drafts.used[b, k]]
            assert not (is_open[b] ^ used[0]).any()
            for mask in used:
                waiting = mask.view(3, 4).any(1).tolist()
                touched = (is_open[b] & ~mask).view(3, 4).any(1).tolist()
                assert not any(touched[j] for i in range(3) if waiting[i] for j in range(i + 1, 3))
            assert len({tuple(t) for k, t in enumerate(drafts.tokens[b].tolist()) if drafts.used[b, k]}) <= len(used)


def plan(attention: Any, prompt: int, new: int, **options: Any) -> Forward:
    """The first forward that holds drafts."""
    family = Family("sdar", attention, attention, 0, True, VOCAB, MASK, (EOS,), 2)
    method = build("freedave", options).bind(family, new)
    draw = Draw(torch.zeros(1), torch.ones(1), torch.zeros(1).long(), torch.zeros(1).long())
    state = method.start(blank([[1] * prompt], [method.limit(prompt, new)], new, Facts(MASK, (EOS,), 0), draw))
    state = replace(state, used=torch.ones_like(state.used))
    return method.plan(replace(state, due=state.done) if attention == "full" else state)


def mask(forward: Forward) -> list[str]:
    """Rows of the attention mask, cache slots that are read | one group of columns a copy."""
    count = int(forward.visible[0])
    stored = set(forward.store[0].tolist())
    slots = "".join("1" for s in range(count) if s not in stored)
    keep = forward.valid[0]
    layout = forward.layout.map(lambda x: x[0][keep])
    lanes = layout.lane.tolist()
    rows = visible(layout, layout).long().tolist()
    return [
        slots + "".join(("|" if i == 0 or lanes[i] != lanes[i - 1] else "") + str(v) for i, v in enumerate(r))
        for r in rows
    ]


def test_masks_written_out():
    """papers/freedave.md section 7; frozen slots stand together on the left, as keys have no order."""
    two = {"depth": 2, "block_size": 2}
    forward = plan("block", 2, 4, verify="block", eager=False, **two)
    assert mask(forward) == ["11|11|00"] * 2 + ["11|00|11"] * 2
    forward = plan("block", 2, 4, verify="block", eager=True, **two)
    first, second = ["11|1100|0000", "11|1111|0000"], ["11|0000|1100", "11|0000|1111"]
    assert mask(forward) == [r for r in first + second for _ in range(2)]
    forward = plan("full", 2, 3, **two)
    assert mask(forward) == ["111|11|00"] * 2 + ["111|00|11"] * 2
    assert forward.layout.positions[0, :4].tolist() == [2, 3, 2, 3]


def test_a_surely_right_model_needs_a_forward_for_each_depth_tokens():
    text_ = [(7 * i + 3) % 60 for i in range(200)]
    for depth in (2, 4, 8):
        options = {"depth": depth, "branch": False, "block_size": 8}
        (row,) = oracle.run(oracle.Oracle(text_, 0), "freedave", options, [8], 32)
        assert row.canvas == text_[8:40]
        assert row.counters.forwards["draft"] == math.ceil(31 / depth)  # the prefill decides one
        assert sum(row.counters.forwards.values()) == 1 + math.ceil(31 / depth)


def test_a_position_left_alone_is_filled_without_a_forward():
    text_ = [(7 * i + 3) % 60 for i in range(200)]
    (row,) = oracle.run(oracle.Oracle(text_, 0), "freedave", {"block_size": 4, "verify": "official"}, [7], 1)
    assert [(s.kind, s.positions) for s in row.trace] == [("prefill", []), ("denoise", [0])]


def test_a_block_of_end_tokens_ends_the_row_as_the_official_early_exit_does():
    text_ = [5] * 9 + [oracle.EOS] * 200
    for form in FORMS.values():
        options = {"block_size": 4, "depth": 4, "early_exit": False, **form}
        (whole,) = oracle.run(oracle.Oracle(text_, 0), "freedave", options, [8], 16)
        (ended,) = oracle.run(oracle.Oracle(text_, 0), "freedave", options | {"eos_block": True}, [8], 16)
        assert whole.canvas == text_[8:24]
        assert ended.canvas[:8] == whole.canvas[:8]
        assert any(ended.open)


@pytest.mark.parametrize(
    ("attention", "shift", "options", "message"),
    [
        ("full", 0, {"verify": "sliding"}, "needs the exact keys of a block model"),
        ("full", 1, {"eager": True}, "drafts of later blocks see other keys"),
        ("block", 0, {"cache": "prefix"}, "leave cache=prefix out"),
        ("block", 1, {}, "use fast_dllm_v2"),
        ("block", 0, {"verify": "sliding", "eager": False}, "use verify=block"),
        ("block", 0, {"leftmost": True, "threshold": 0.9}, "leave threshold out"),
        ("block", 0, {"verify": "official", "branch": True}, "branching drafts need"),
        ("causal", 0, {}, "trained with causal attention"),
    ],
)
def test_what_does_not_fit_is_refused(attention, shift, options, message):
    family = Family("sdar", attention, attention, shift, True, VOCAB, MASK, (EOS,), 4)
    with pytest.raises(UnmaskError, match=message):
        build("freedave", options).bind(family, 16)


def test_official_names_mean_the_same():
    theirs = {"draft_steps": 4, "eager_acceptance_mode": True, "confidence_threshold": 0.9, "block_length": 4}
    ours = {"depth": 4, "eager": True, "threshold": 0.9, "block_size": 4}
    assert build("freedave", theirs) == build("freedave", ours)
