"""WeDLM: the reordered window, exact keys of what is committed, which masks are filled, and ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from dataclasses import replace
from math import ceil, inf
from typing import Any

import pytest
import torch
from torch import Tensor

from checkpoints import GOLDEN, tiny
from chi_square import surprise
from random_models import random_lm, random_prompts
from unmask.attention.dense import DenseAttention
from unmask.cache.contiguous import ContiguousCache
from unmask.decoding import build, loop
from unmask.decoding.forward import Forward
from unmask.decoding.loop import decode
from unmask.decoding.sampling import Draw
from unmask.decoding.wedlm import WeDLM, WindowState
from unmask.errors import UnmaskError
from unmask.layout import causal, wedlm_streams
from unmask.lm import LM

# The forwards of the official engine.
ENGINE: dict[str, Any] = {"own_prefill": True, "early_exit": False}
MODES = {
    "streaming": {"window_size": 5},
    "engine": {"window_size": 5, **ENGINE},
    "block": {"window_size": 4, "schedule": "block", "entropy_threshold": 1.0},
    "bounded": {"window_size": 6, "bounded": True, "entropy_threshold": 0.9},
    "verify": {"window_size": 5, "verify": True, "entropy_threshold": inf},
}


def generate(lm: LM, prompt: Any, new: int = 20, **options: Any) -> Any:
    return lm.generate(prompt, method="wedlm", max_new_tokens=new, trace=True, **options)


def filled(result: Any) -> list[list[int]]:
    """The positions of each forward that decided something."""
    return [s.positions for s in result.trace if s.positions]


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[WindowState, Forward]]:
    """Every state and forward of the windows planned in the test."""
    seen: list[tuple[WindowState, Forward]] = []
    plan = WeDLM.plan

    def watched(self: WeDLM, state: WindowState) -> Forward:
        forward = plan(self, state)
        seen.append((state, forward))
        return forward

    monkeypatch.setattr(WeDLM, "plan", watched)
    return seen


@pytest.mark.parametrize("mode", MODES)
def test_known_tokens_stand_before_masks_each_group_in_order_and_slots_follow_the_window(mode, planned):
    lm = random_lm(1, "wedlm")
    for prompt in random_prompts(0, 2):
        generate(lm, prompt, **MODES[mode])
    assert len(planned) > 10
    for state, forward in planned:
        valid = forward.valid[0]
        where = forward.layout.positions[0][valid].tolist()
        start, known = int(state.start[0]), state.drafted()
        assert sorted(where) == list(range(start, start + len(where)))  # a permutation of a run
        waiting = known.open[0][where].tolist()
        masks = [p for p, is_mask in zip(where, waiting) if is_mask]
        tokens = [p for p, is_mask in zip(where, waiting) if not is_mask]
        assert where == sorted(tokens) + sorted(masks)
        assert forward.store[0][valid].tolist() == [start + i for i in range(len(where))]
        assert forward.layout.order[0][valid].tolist() == list(range(len(where)))
        assert forward.tokens[0][valid].tolist() == known.canvas[0][where].tolist()
        assert int(forward.visible[0]) == start


# Cases of the engine with each kind of setting; the batch and the stop sequence are in the replay.
@pytest.mark.parametrize("number", [1, 4, 5, 7, 10, 17, 19, 21, 31, 42])
def test_every_query_token_and_position_is_the_engines(number, planned):
    case = json.loads((GOLDEN / "wedlm-causal.jsonl").read_text().splitlines()[number - 1])
    names = ("wedlm_window_size", "wedlm_entropy_threshold", "wedlm_pos_penalty_factor", "max_tokens")
    options, steps = {k: case["options"][k] for k in names}, case["expect"]["steps"]
    lm = LM(replace(tiny(case["model"]).checkpoint), None)
    lm.family = replace(lm.family, eos_ids=tuple(case["options"]["stop_token_ids"]))
    lm.generate(case["prompt"], method="wedlm", **options, **ENGINE)
    assert len(planned) == len(steps)
    for step, (state, forward) in zip(steps, planned):
        valid = forward.valid[0]
        where = (forward.layout.positions[0][valid] - len(case["prompt"])).tolist()
        ids = forward.tokens[0][valid].tolist()
        masks = int(state.open_at(forward.layout.positions)[0][valid].sum())
        if step is steps[-1]:  # its masks are filled by nobody; ours end where a filled one could still matter
            assert (step["query_positions"][: len(where)], step["query_ids"][: len(ids)]) == (where, ids)
        else:
            assert (step["query_positions"], step["query_ids"], step["masks"]) == (where, ids, masks)


def prefilled(lm: LM, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """Keys and values [L, G, S, D] of a plain causal forward."""
    c = lm.model.config
    cache = ContiguousCache(c.num_layers, 1, c.num_kv_heads, len(tokens), c.head_dim)
    place = torch.arange(len(tokens))[None]
    attend = cache.window(causal(len(tokens)).batch(1), torch.zeros(1, dtype=torch.long), place)
    with torch.inference_mode():
        lm.model(torch.tensor([tokens]), place, attend)
    return cache.keys[:, 0], cache.values[:, 0]


class Caches(ContiguousCache):
    made: ContiguousCache

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        Caches.made = self


def watch_cache(
    monkeypatch: pytest.MonkeyPatch,
    lm: LM,
    prompt: list[int],
    look: Callable[[ContiguousCache, WindowState], None],
    **o,
) -> None:
    """Calls `look` with cache and state after every forward."""
    monkeypatch.setattr(loop, "ContiguousCache", Caches)
    draw = Draw(torch.zeros(1), torch.ones(1), torch.zeros(1).long(), torch.zeros(1).long())
    method = build("wedlm", o).bind(lm.family, 20)

    def observe(_: list[int], state: Any) -> None:
        look(Caches.made, state)

    decode(lm.model, method, [prompt], facts=lm.facts, draw=draw, new_tokens=20, observe=observe)


@pytest.mark.parametrize("mode", MODES)
def test_the_cache_of_committed_text_equals_a_fresh_prefill_after_every_forward(mode, monkeypatch):
    lm, checked = random_lm(2, "wedlm"), 0

    def look(cache: ContiguousCache, state: WindowState) -> None:
        nonlocal checked
        stop = int(state.start[0])
        if stop:
            assert not bool(state.open[0, :stop].any())
            keys, values = prefilled(lm, state.canvas[0, :stop].tolist())
            torch.testing.assert_close(cache.keys[:, 0, :, :stop], keys, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(cache.values[:, 0, :, :stop], values, atol=1e-4, rtol=1e-4)
            checked += 1

    for prompt in random_prompts(3, 2):
        watch_cache(monkeypatch, lm, prompt, look, **MODES[mode])
    assert checked > 9


def test_keys_of_a_filled_token_behind_a_gap_are_not_final(monkeypatch):
    lm, found = random_lm(2, "wedlm"), []
    prompt = random_prompts(3, 1)[0]
    text = prompt + generate(lm, prompt, window_size=8, early_exit=False).ids
    keys, _ = prefilled(lm, text)
    before: list[tuple[int, int]] = []  # slot and position of filled tokens behind a gap in the last window

    def look(cache: ContiguousCache, state: WindowState) -> None:
        found.extend(float((cache.keys[1:, 0, :, s] - keys[1:, :, p]).abs().max()) for s, p in before)
        start = int(state.start[0])
        known = [p for p in range(start, start + 8) if p < len(text) and not state.open[0, p]]
        before[:] = [(start + i, p) for i, p in enumerate(known) if p != start + i]

    watch_cache(monkeypatch, lm, prompt, look, window_size=8, early_exit=False)
    assert found and max(found) > 0.1


def test_the_training_row_and_the_decoder_see_the_same():
    """Rows of prediction block b equal a plain causal forward over the clean blocks before it and the reordered
    block."""
    lm = random_lm(4, "wedlm")
    length, block = 12, 4
    clean, mask = (
        torch.tensor([3, 9, 1, 14, 7, 20, 2, 5, 11, 8, 0, 17]),
        lm.facts.mask_id,
    )
    hidden = torch.tensor([0, 1, 0, 1, 1, 1, 0, 1, 0, 0, 1, 0], dtype=torch.bool)
    order = torch.cat([b * block + hidden[b * block :][:block].long().argsort(stable=True) for b in range(3)])
    noisy = torch.where(hidden, mask, clean)[order]
    row, place = torch.cat([clean, noisy]), torch.cat([torch.arange(length), order])
    layout = replace(wedlm_streams(length, block), positions=place)
    with torch.inference_mode():
        both = lm.model(row[None], place[None], DenseAttention(layout))[0]
        for b in range(3):
            tokens = torch.cat([clean[: b * block], noisy[b * block :][:block]])
            at = torch.cat([torch.arange(b * block), order[b * block :][:block]])
            alone = lm.model(tokens[None], at[None], DenseAttention(causal(len(tokens))))[0]
            part = both[length + b * block :][:block]
            torch.testing.assert_close(part, alone[b * block :], atol=1e-4, rtol=1e-4)
        plain = lm.model(clean[None], torch.arange(length)[None], DenseAttention(causal(length)))[0]
        torch.testing.assert_close(both[:length], plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tau", [None, 0.4, inf])
def test_a_window_of_one_goes_from_left_to_right_in_one_forward_more_than_tokens(tau):
    result = generate(random_lm(5, "wedlm"), [1, 2, 3], 12, window_size=1, entropy_threshold=tau, **ENGINE)
    end = len(result.ids)
    assert filled(result)[:end] == [[i] for i in range(end)]
    assert result.counters.decode_forwards == end + 1


@pytest.mark.parametrize("new", [1, 7, 8, 9, 24])
def test_an_infinite_threshold_fills_the_window_each_forward(new):
    lm, batch = random_lm(0, "wedlm"), random_prompts(0, 3)
    engines, own = (generate(lm, batch, new, window_size=8, entropy_threshold=inf, **o) for o in (ENGINE, {}))
    for result, ours in zip(engines, own):
        assert result.counters.decode_forwards == ceil(len(result.ids) / 8) + 1
        assert ours.ids == result.ids
        assert ours.counters.decode_forwards == ceil(len(result.ids) / 8) - 1


def test_no_threshold_and_threshold_zero_fill_one_mask_a_forward():
    lm, batch = random_lm(0, "wedlm"), random_prompts(1, 3)
    for none, zero in zip(*(generate(lm, batch, entropy_threshold=tau, **ENGINE) for tau in (None, 0.0))):
        assert filled(none) == filled(zero)
        assert all(len(p) == 1 for p in filled(none))
        assert len(filled(none)) == none.counters.decode_forwards - 1  # the last one only commits


def test_a_huge_penalty_without_threshold_goes_strictly_from_left_to_right():
    result = generate(random_lm(6, "wedlm"), [1, 9], entropy_threshold=None, position_penalty=1e6, **ENGINE)
    assert filled(result) == [[i] for i in range(len(filled(result)))]
    assert result.counters.decode_forwards == len(result.ids) + 1


@pytest.mark.parametrize("penalty", [0.0, 0.05])
def test_the_first_forward_takes_the_masks_of_least_entropy_whatever_the_sampling_settings(penalty):
    lm, prompt = random_lm(7, "wedlm"), [5, 3, 11, 2]
    row = torch.tensor([prompt + [lm.facts.mask_id] * 10])
    with torch.inference_mode():
        z = lm.model(row, torch.arange(14)[None], DenseAttention(causal(14)))[0, 4:].double()
    h = -(z.softmax(-1) * z.log_softmax(-1)).sum(-1) + penalty * torch.arange(10)
    counts = []
    for tau in (0.0, 0.3, 0.7, 1.2, 2.0, 9.0):
        expect = [int(h.argmin())] if not bool((h < tau).any()) else (h < tau).nonzero()[:, 0].tolist()
        for sampling in ({}, {"temperature": 1.3, "top_k": 3, "top_p": 0.5, "seed": 4}):
            options = {"window_size": 10, "entropy_threshold": tau, "position_penalty": penalty}
            assert filled(generate(lm, prompt, 1, **options, **sampling))[0] == expect
        counts.append(len(expect))
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] == 10  # a higher threshold never fills less


def test_every_forward_fills_and_the_window_holds_between_one_and_two_window_sizes(planned):
    for seed in range(2):
        lm = random_lm(seed, "wedlm")
        planned.clear()
        result = generate(lm, [2, 3, 4], 30, window_size=6, entropy_threshold=1.0, **ENGINE)
        assert all(s.positions for s in result.trace if s.kind != "prefill" and s is not result.trace[-1])
        assert all(6 <= int(f.valid.sum()) <= 12 for _, f in planned[:-1])
        starts = [int(s.start[0]) for s, _ in planned]
        stays = [sum(s == start for s in starts) for start in set(starts)]
        assert max(stays) <= 7  # the leading position is filled within as many forwards as there are masks


def test_the_text_does_not_depend_on_how_much_more_is_wanted():
    """Masks behind the end are filled as if there were no end, so a shorter request gives a beginning of a longer."""
    lm = random_lm(8, "wedlm")
    batch = random_prompts(9, 3)
    long = generate(lm, batch, 20)
    for new in (1, 11):
        assert [r.ids for r in generate(lm, batch, new)] == [r.ids[:new] for r in long]


def test_the_prompts_own_forward_can_be_saved_without_changing_the_text():
    lm = random_lm(9, "wedlm")
    batch = random_prompts(10, 3)
    for fused, own in zip(generate(lm, batch), generate(lm, batch, own_prefill=True)):
        assert fused.ids == own.ids
        assert filled(fused) == filled(own)
        assert sum(own.counters.forwards.values()) == sum(fused.counters.forwards.values()) + 1


def test_a_stop_token_inside_a_committed_run_cuts_exactly_there():
    found = 0
    for seed in range(2):
        lm, batch = random_lm(seed, "wedlm"), random_prompts(seed, 20)
        same = {"method": "wedlm", "max_new_tokens": 24, "entropy_threshold": 2.0, **ENGINE}
        cut = lm.generate(batch, **same)
        lm.family = replace(lm.family, eos_ids=())
        free = lm.generate(batch, **same)
        for a, b in zip(cut, free):
            stop = next((i for i, t in enumerate(b.ids) if t == 22), None)
            assert a.ids == (b.ids if stop is None else b.ids[: stop + 1])
            assert a.finish_reason == ("length" if stop is None else "stop")
            found += stop is not None and stop > 0
    assert found > 5


def test_a_bounded_window_holds_nothing_behind_the_end(planned):
    ends = 0
    for seed in range(5):
        lm, options = random_lm(seed, "wedlm"), {"window_size": 6, "entropy_threshold": 1.5, "bounded": True}
        lm.family = replace(lm.family, eos_ids=(generate(lm, [4, 1], 13, **options).ids[-4],))  # one that will come
        planned.clear()
        result = generate(lm, [4, 1], 13, early_exit=False, **options)
        assert all(p < 13 for s in result.trace for p in s.positions)
        for state, forward in planned:
            last = int(forward.layout.positions[0][forward.valid[0]].max())
            assert last < 2 + 13
            assert last <= int(state.first_eos()[0])
        ends += result.finish_reason == "stop"
    assert ends > 2


def test_block_schedule_fills_a_block_before_the_next_and_a_rule_can_be_chosen():
    lm = random_lm(11, "wedlm")
    options = {"schedule": "block", "block_size": 4, "early_exit": False}
    for rule in ({}, {"select": "threshold:tau=0.3,strict=false"}, {"select": "static"}, {"select": "margin:tau=0.2"}):
        blocks = [{p // 4 for p in at} for at in filled(generate(lm, [3, 3], 18, **options, **rule))]
        assert all(len(b) == 1 for b in blocks)
        assert blocks == sorted(blocks, key=min)
    with pytest.raises(UnmaskError, match="no selection rule with a memory"):
        generate(lm, [3, 3], select="credit")


# Sampling.


@pytest.mark.parametrize("settings", [{"temperature": 1.0}, {"temperature": 0.6}, {"temperature": 1.4, "top_k": 5}])
def test_each_filled_token_follows_the_distribution_of_its_mask(settings):
    """W = 1: the law of two tokens, from a plain forward for each first token."""
    lm, prompt, rows = random_lm(12, "wedlm"), [3, 7, 1], 4000
    mask = lm.facts.mask_id

    def law(tokens: list[int]) -> Tensor:
        with torch.inference_mode():
            row = torch.tensor([[*tokens, mask]])
            z = lm.model(row, torch.arange(row.shape[1])[None], DenseAttention(causal(row.shape[1])))[0, -1].double()
        if "top_k" in settings:
            z = z.masked_fill(z < z.topk(settings["top_k"]).values[-1], -inf)
        z = z.index_fill(0, torch.tensor([mask]), -inf)
        return (z / settings["temperature"]).softmax(-1)

    first = law(prompt)
    possible = [a for a in range(23) if first[a] > 0]
    pairs: dict[Hashable, float] = {
        (a, b): float(first[a] * p) for a in possible for b, p in enumerate(law([*prompt, a]).tolist())
    }
    lm.family = replace(lm.family, eos_ids=())
    got = lm.generate(
        [prompt] * rows, method="wedlm", max_new_tokens=2, window_size=1, seed=list(range(rows)), **settings
    )
    assert surprise([tuple(g.ids) for g in got], pairs) < 3.3


# What is refused.


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("qwen2-tiny", {}, "this qwen2 model was not trained to fill masks under causal attention"),
        ("dream-tiny", {}, "this dream model was not trained"),
        ("sdar-tiny", {}, "this sdar model was not trained"),
        ("wedlm-tiny", {"verify": True, "schedule": "block"}, "verify excludes schedule block"),
        ("wedlm-tiny", {"verify": True, "own_prefill": True}, "and own_prefill; drop one of them"),
        ("wedlm-tiny", {"window_size": 0}, "window_size must be a whole number of at least 1, not 0"),
        ("wedlm-tiny", {"entropy_threshold": -0.1}, "entropy_threshold must be at least 0.0, not -0.1"),
        ("wedlm-tiny", {"entropy_threshold": float("nan")}, "entropy_threshold must be at least 0.0, not nan"),
        ("wedlm-tiny", {"entropy_threshold": "low"}, "not 'low'"),
        ("wedlm-tiny", {"stop": "none"}, "unknown stop rule"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(model, options, message):
    with pytest.raises(UnmaskError) as error:
        tiny(model).generate([1, 2, 3], method="wedlm", max_new_tokens=8, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wedlm_checkpoint_without_a_mask_token_is_refused():
    lm = LM(tiny("wedlm-tiny").checkpoint, None)
    lm.family = replace(lm.family, mask_id=None)
    with pytest.raises(UnmaskError, match="names no mask token; give mask_token_id"):
        lm.generate([1, 2, 3], method="wedlm")
    assert lm.default_method == "autoregressive"
