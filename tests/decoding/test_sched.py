"""SchED and Prophet as methods, and as stop rules of other methods: inside a block too."""

from __future__ import annotations

import pytest
import torch
from oracle import EOS, Oracle, family, run

from checkpoints import tiny
from random_models import random_lm, random_prompts
from unmask.attention.dense import DenseAttention
from unmask.decoding import build
from unmask.decoding.stop import Prophet, Sched
from unmask.errors import UnmaskError
from unmask.layout import full

TEXT = [(i * 7 + 3) % 60 for i in range(200)]


def counts(result) -> list[int]:
    return [len(s.positions) for s in result.trace]


def steps_of(result):
    return [(s.positions, s.tokens) for s in result.trace]


def test_what_a_stop_takes_is_the_best_token_at_any_temperature():
    always = {"method": "sched", "max_new_tokens": 12, "high": -1.0, "low": -1.0, "max_change": 1.0}
    for name in ("dream-tiny", "llada-tiny"):
        for prompt in random_prompts(2, 2):
            greedy = tiny(name).generate(prompt, **always)
            assert tiny(name).generate(prompt, temperature=3.0, seed=4, **always).ids == greedy.ids


@pytest.mark.parametrize(
    ("name", "options"),
    [("dream-tiny", {}), ("dream-tiny", {"schedule": "timestep"}), ("llada-tiny", {"block_size": 4, "steps": 8})],
)
def test_a_threshold_never_reached_gives_the_vanilla_sampler(name, options):
    lm, same = tiny(name), {"max_new_tokens": 16, "trace": True, "early_exit": False} | options
    plain = {"algorithm": "entropy", "schedule": "even"} if name == "dream-tiny" else {}
    batch = random_prompts(0, 2)
    base = [steps_of(r) for r in lm.generate(batch, method="masked", **(plain | same))]
    never = {"sched": {"high": 1e6, "low": 1e6}, "prophet": {"high": 1e6, "middle": 1e6, "low": 1e6}}
    for method, levels in never.items():
        assert [steps_of(r) for r in lm.generate(batch, method=method, **levels, **same)] == base


@pytest.mark.parametrize("name", ["dream-tiny", "llada-tiny"])
def test_a_threshold_below_all_takes_one_forward_and_two_with_the_test_for_changes(name):
    lm = tiny(name)
    always = {"method": "sched", "max_new_tokens": 16, "high": -1.0, "low": -1.0, "trace": True, "early_exit": False}
    for prompt in random_prompts(1, 3):
        length = len(prompt) + 16
        canvas = torch.tensor([prompt + [lm.family.mask_id] * 16])
        with torch.inference_mode():
            z = lm.model(canvas, torch.arange(length)[None], DenseAttention(full(length)))[0]
        at = torch.arange(len(prompt), length) - lm.family.shift
        one = lm.generate(prompt, max_change=1.0, **always)
        assert counts(one) == [16]
        assert one.trace[0].tokens == z[at].argmax(-1).tolist()
        # Dream's own schedule commits nothing at the first forward, so nothing can change.
        if lm.family.shift:
            assert counts(lm.generate(prompt, schedule="timestep", **always)) == [0, 16]
        assert len(lm.generate(prompt, **always).trace) >= 2


def test_dreams_schedule_wastes_its_first_forward_and_ours_does_not():
    for length in (5, 8):
        same = {"method": "sched", "max_new_tokens": length, "high": 1e6, "low": 1e6, "early_exit": False}
        ours = tiny("dream-tiny").generate([3, 4, 5], trace=True, **same)
        theirs = tiny("dream-tiny").generate([3, 4, 5], schedule="timestep", trace=True, **same)
        assert counts(ours) == [1] * length
        assert counts(theirs) == [0] + [1] * (length - 2) + [2]


def test_presets_follow_the_checkpoint():
    shifted, plain = build("sched", {}).bind(family(1, "full"), 16), build("sched", {}).bind(family(0, "full"), 16)
    assert (shifted.algorithm, shifted.schedule, shifted.confidence) == ("entropy", "even", "filtered")
    assert (plain.algorithm, plain.schedule, plain.confidence) == ("confidence", "even", "raw")
    official = {"tau_mode": "exp", "tau_high": 3.0, "tau_low": 0.5, "tau_k": 2.0, "patience_steps": 1}
    official |= {"max_change_ratio": 0.25, "average_over_masked": False, "answer_region": "last", "stat": "min"}
    rule = build("sched", official).stopping()
    assert rule == Sched(
        kind="exp", high=3.0, low=0.5, k=2.0, patience=1, max_change=0.25, masked_only=False, stat="min"
    )
    assert build("sched", {}).stopping() == Sched()
    assert build("prophet", {"early_threshold": 4.0, "late_threshold": 1.0}).stopping() == Prophet(high=4.0, low=1.0)
    assert build("sched", {"stop": "prophet"}).stopping() == Prophet()
    assert build("prophet", {"max_change": 0.0}).stopping() == Prophet(max_change=0.0)


def test_a_batch_of_an_easy_and_a_hard_prompt_equals_each_alone():
    lm = tiny("dream-tiny-eos")
    same = {"method": "sched", "max_new_tokens": 16, "kind": "exp", "high": 3.0, "low": 0.5, "max_change": 1.0}
    batch = random_prompts(5, 6)
    together = lm.generate(batch, trace=True, **same)
    for prompt, row in zip(batch, together):
        alone = lm.generate(prompt, trace=True, **same)
        assert row.trace == alone.trace
    assert len({len(row.trace) for row in together}) > 2


BLOCKS = {
    "block_diffusion": ("sdar", {"block_size": 4, "threshold": 1.0}),
    "fast_dllm_v2": ("fast-dllm-v2", {"block_size": 8, "sub_block_size": 4, "threshold": 1.0}),
    "masked": ("llada", {"block_size": 4}),
    "fast_dllm": ("llada", {"block_size": 4, "threshold": 1.0, "cache": "dual"}),
    "llada2": ("sdar", {"block_size": 4, "threshold": 1.0}),
    # With smoothing a forward speaks of positions outside the block too.
    "dinfer": ("llada", {"block_size": 4, "after_look": 6, "smoothing": 0.3, "threshold_decay": 0.0}),
}


@pytest.mark.parametrize("stop", ["sched:high=1,low=0.2", "prophet:high=1,middle=0.4,low=0.3"])
@pytest.mark.parametrize("method", BLOCKS)
def test_on_blocks_it_stops_inside_a_block_and_leaves_no_masks(method, stop):
    name, options = BLOCKS[method]
    saved = 0
    lm, batch = random_lm(0, name, layers=1, block=options.get("block_size")), random_prompts(0, 6)
    same = {"method": method, "max_new_tokens": 12, "trace": True, "early_exit": False} | options
    for plain, ours in zip(lm.generate(batch, **same), lm.generate(batch, stop=stop, **same)):
        saved += sum(plain.counters.forwards.values()) - sum(ours.counters.forwards.values())
        fixed = [p for s in ours.trace for p in s.positions]
        assert len(fixed) == len(set(fixed))
        assert set(range(len(ours.ids))) <= set(fixed)
        assert len(ours.ids) == 12 or ours.finish_reason == "stop"
        assert lm.family.mask_id not in ours.ids
        if method == "masked":
            continue
        size = options.get("sub_block_size", 4)
        grid = 0 if method in ("fast_dllm", "dinfer") else len(ours.prompt_ids)
        for s in ours.trace:  # what one forward decides lies in one block, but for a block's first token
            decided = [p + grid for p in s.positions if s.kind not in ("prefill", "commit")]
            assert len({p // size for p in decided}) <= 1
    assert saved > 0


@pytest.mark.parametrize(("shift", "method"), [(0, "block_diffusion"), (1, "fast_dllm_v2")])
def test_a_stop_takes_a_block_at_once_wherever_the_prompt_ends(shift, method):
    sure = [0.3] * 200  # a margin of 3.29, far below the threshold of the selection rule
    options = {"block_size": 8, "stop": "sched:high=3,low=3,max_change=1", "early_exit": False}
    lengths = [1, 7, 8, 9, 13]
    rows = run(Oracle(TEXT, shift, sure), method, options | {"fused_commit": False}, lengths, 20)
    for row, n in zip(rows, lengths):
        assert row.canvas[:20] == TEXT[n : n + 20]
        denoise = [s for s in row.trace if s.kind == "denoise"]
        assert len(denoise) == -(-(n + 20) // 8) - n // 8  # one a block


def test_on_the_whole_answer_it_takes_all_blocks_at_once():
    sure = [0.3] * 200
    options = {"block_size": 4, "stop": "prophet:high=9,middle=3,low=3", "early_exit": False}
    (row,) = run(Oracle(TEXT, 0, sure), "masked", options, [5], 12, attention="full")
    assert [len(s.positions) for s in row.trace] == [1, 1, 1, 9]  # the second third begins with the fourth forward
    assert row.canvas == TEXT[5:17]


def test_an_end_token_still_ends_a_row_early():
    said = TEXT[:7] + [EOS] + TEXT[8:]
    sure = [0.9] * 8 + [0.2] * 192
    for early, forwards in ((True, 3), (False, 12)):
        options = {"high": 1e6, "low": 1e6, "algorithm": "confidence", "early_exit": early}
        (row,) = run(Oracle(said, 0, sure), "sched", options, [5], 12, attention="full")
        assert sum(row.counters.forwards.values()) == forwards
        assert row.canvas[:3] == said[5:8]


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("masked", {"stop": "shed"}, "unknown stop rule 'shed'; did you mean 'sched'?"),
        ("masked", {"stop": "sched:hihg=3"}, "unknown option of stop rule sched 'hihg'; did you mean 'high'?"),
        (
            "masked",
            {"stop": "sched:kind=cosinus"},
            "unknown value of kind (stop rule) 'cosinus'; did you mean 'cosine'?",
        ),
        ("masked", {"stop": "sched:stat=avg"}, "unknown value of stat (stop rule) 'avg'"),
        ("masked", {"stop": "prophet:region=first"}, "unknown value of region (stop rule) 'first'"),
        ("masked", {"stop": "prophet:q=2,stat=quantile"}, "q between 0 and 1"),
        ("sched", {"tau_mode": "cosinus"}, "did you mean 'cosine'"),
        ("sched", {"max_change_ratio": 2.0}, "max_change must be between 0.0 and 1.0, not 2.0"),
        ("sched", {"high": "much"}, "high must be at least -1000000.0, not 'much'"),
        ("prophet", {"tau_high": 3.0}, "unknown option of prophet 'tau_high'"),
        ("d2f", {"stop": "sched"}, "d2f: no stop rule: several blocks are in flight at once"),
        ("block_diffusion", {"stop": "sched:region=all,masked_only=false"}, "its forwards speak of a block alone"),
    ],
)
def test_bad_options_are_one_line(method, options, message):
    with pytest.raises(UnmaskError) as error:
        build(method, options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sdar-tiny", {}, "sched: this sdar model was trained with block attention"),
        ("dream-tiny", {"algorithm": "origin"}, "origin is defined by schedule timestep alone"),
        ("qwen2-tiny", {}, "sched: this qwen2 checkpoint"),
    ],
)
def test_unsound_combinations_are_refused_with_the_reason(name, options, message):
    with pytest.raises(UnmaskError) as error:
        tiny(name).generate([1, 2, 3], method="sched", max_new_tokens=16, **options)
    assert message in str(error.value)
