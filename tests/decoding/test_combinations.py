"""Selection rules x windows x stop rules: what is sound runs, what is not is refused with the reason."""

from __future__ import annotations

import pytest

from checkpoints import tiny
from unmask.errors import UnmaskError

RULES = {
    "static": "static",
    "sequential": "sequential",
    "threshold": "threshold:tau=0.6",
    "factor": "factor:factor=1.5",
    "entropy": "entropy:tau=0.9",
    "margin": "margin:tau=0.5",
    "hierarchical": "hierarchical:tau=0.9,low=0.4",
    "credit": "credit:tau=0.6",
    "entropy_bounded": "entropy_bounded:gamma=0.8",
}
STOPS = {
    "sched": "sched:high=3.0,low=0.5",
    "exp": "sched:kind=exp,high=2.0,low=0.2,max_change=1.0",
    "prophet": "prophet:high=2.5,middle=1.5,low=0.5,max_change=1.0",
}
# Window: method, checkpoint, options. Whole canvas, exact block cache, approximate caches, pipeline, branches.
WINDOWS = {
    "masked": ("masked", "llada-tiny", {"block_size": 8}),
    "masked-dream": ("masked", "dream-tiny", {}),
    "block_diffusion": ("block_diffusion", "sdar-tiny", {"block_size": 8}),
    "llada2": ("llada2", "llada2-moe-tiny", {"block_size": 8}),
    "fast_dllm_v2": ("fast_dllm_v2", "fast-dllm-v2-tiny", {"block_size": 8, "sub_block_size": 4}),
    "fast_dllm_v2-cache": ("fast_dllm_v2", "fast-dllm-v2-tiny", {"sub_block_cache": True}),
    "fast_dllm": ("fast_dllm", "llada-tiny", {"cache": "none", "block_size": 8}),
    "fast_dllm-prefix": ("fast_dllm", "dream-tiny", {"cache": "prefix", "block_size": 8}),
    "fast_dllm-dual": ("fast_dllm", "llada-tiny", {"cache": "dual", "block_size": 8}),
    "dinfer": ("dinfer", "llada-tiny", {"cache": "vicinity", "block_size": 8}),
    "dparallel": ("dparallel", "dream-tiny", {"block_size": 8}),
    "d2f": ("d2f", "llada-tiny", {"block_size": 8}),
    "lopa": ("lopa", "dream-tiny", {"block_size": 8, "num_lookahead": 2}),
}
NO_MEMORY = {"d2f", "lopa"}  # several blocks in flight
SOUND = [(w, r, None) for w in WINDOWS for r in RULES if not (r == "credit" and w in NO_MEMORY)]
SOUND += [(w, None, s) for w in WINDOWS for s in STOPS if w not in NO_MEMORY]
SOUND += [(w, r, "sched") for w in ("masked", "block_diffusion", "fast_dllm-dual") for r in ("factor", "credit")]

PROMPTS = [[5, 17, 3, 99, 41], [160, 2, 77, 31, 4, 9, 12, 55, 6, 1, 30], [8, 120]]


def test_there_are_as_many_sound_combinations_as_promised():
    assert len({w for w, _, _ in SOUND}) >= 12
    assert len(SOUND) >= 25


@pytest.mark.parametrize(("window", "rule", "stop"), SOUND, ids=["+".join(x for x in c if x) for c in SOUND])
def test_a_sound_combination_ends_says_no_mask_and_runs_alike_alone_and_in_a_batch(window, rule, stop):
    method, model, options = WINDOWS[window]
    options = options | ({"select": RULES[rule]} if rule else {}) | ({"stop": STOPS[stop]} if stop else {})
    lm = tiny(model)

    def run(prompt):
        return lm.generate(prompt, method=method, max_new_tokens=16, **options)

    together = run(PROMPTS)
    for row in together:
        assert lm.family.mask_id not in row.ids
        assert len(row.ids) == 16 or row.finish_reason == "stop"
        # Each forward of a window decides something, or stores or refreshes what others need.
        assert row.counters.decode_forwards <= 2 * 16 + 2 + row.counters.forwards["refresh"]
    # In the middle: neither the first row of the batch nor the last.
    alone, among = run(PROMPTS[1]), together[1]
    assert alone.ids == among.ids
    assert alone.counters.forwards == among.counters.forwards


UNSOUND = [
    ("qwen2-tiny", "autoregressive", {"select": "factor"}, "no selection rule fits"),
    ("qwen2-tiny", "jacobi", {"stop": "sched"}, "no stop rule fits"),
    ("wedlm-tiny", "wedlm", {"stop": "sched"}, "no stop rule"),
    ("mdlm-dit-tiny", "mdlm", {"select": "entropy"}, "no selection rule fits"),
    ("sdar-tiny", "freedave", {"select": "hierarchical"}, "no selection rule fits"),
    ("llada-tiny", "d2f", {"select": "credit"}, "several blocks are in flight"),
    ("llada-tiny", "d2f", {"stop": "prophet"}, "several blocks are in flight"),
    ("dream-tiny", "lopa", {"stop": "sched"}, "several blocks are in flight"),
    ("dream-tiny", "lopa", {"select": "credit"}, "several blocks are in flight"),
    ("sdar-tiny", "block_diffusion", {"stop": "sched:region=all,masked_only=false"}, "a block alone"),
    ("llada-tiny", "masked", {"select": "entropy", "algorithm": "margin"}, "ranks by entropy itself"),
    ("dream-tiny", "masked", {"select": "factor", "algorithm": "origin"}, "without selection or stop rules"),
    ("dream-tiny", "masked", {"block_size": 8}, "schedule timestep works on the whole canvas"),
    ("llada-tiny", "block_diffusion", {}, "full attention"),
    ("dream-tiny", "llada2", {}, "token shift"),
    ("dream-tiny", "fast_dllm_v2", {}, "full attention"),
    ("sdar-tiny", "fast_dllm", {"cache": "dual"}, "block attention"),
    ("sdar-tiny", "masked", {"select": "factor"}, "block attention"),
    ("sdar-tiny", "wedlm", {}, "wedlm"),
    ("llada-tiny", "jacobi", {}, "predicts masked tokens in place"),
    ("llada-tiny", "fast_dllm_v2", {"select": "factor"}, "token shift"),
]


@pytest.mark.parametrize(
    ("model", "method", "options", "reason"), UNSOUND, ids=[f"{u[1]}-{i}" for i, u in enumerate(UNSOUND)]
)
def test_an_unsound_combination_is_refused_with_its_reason(model, method, options, reason):
    with pytest.raises(UnmaskError) as error:
        tiny(model).generate([1, 2, 3], method=method, max_new_tokens=16, **options)
    assert reason in str(error.value)
    assert str(error.value).startswith(f"{method}:")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("factr", "unknown selection rule 'factr'; did you mean 'factor'?"),
        ("factor:facto=1", "unknown option of selection rule factor 'facto'; did you mean 'factor'?"),
        ("factor:factor=high", "selection rule factor: factor must be a number, not 'high'"),
        ("factor:factor", "'factor' is not of the form key=value"),
        ("threshold:strict=maybe", "strict must be true or false, not 'maybe'"),
        (3, "unknown selection rule '3'"),
    ],
)
def test_a_rule_that_cannot_be_read_is_named(given, message):
    with pytest.raises(UnmaskError) as error:
        tiny("llada-tiny").generate([1, 2], method="masked", max_new_tokens=8, select=given)
    assert message in str(error.value)
