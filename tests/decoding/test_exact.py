"""What must hold for every method: cached = uncached, batch = alone, prompts are sacred, every run ends."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

import pytest
import torch

from checkpoints import tiny
from unmask.attention.dense import DenseAttention
from unmask.decoding.loop import TraceStep
from unmask.layout import Layout, block_causal, causal, full
from unmask.lm import Generation

EDITING = {"editing": True, "block_size": 8, "threshold": 0.6, "edit_threshold": 0.4, "max_post_steps": 4}
# Method, checkpoint, options: one entry for each way a method can run.
RUNS = {
    "autoregressive": ("qwen2-tiny", {}),
    "autoregressive-wedlm": ("wedlm-tiny", {}),
    "masked-llada": ("llada-tiny", {"block_size": 8, "steps": 12}),
    "masked-llada-cfg": ("llada-tiny", {"block_size": 8, "steps": 12, "cfg_scale": 0.5}),
    "masked-dream": ("dream-tiny", {"steps": 12, "algorithm": "entropy"}),
    "block_diffusion-static": ("sdar-tiny", {"strategy": "static"}),
    "block_diffusion-dynamic": ("sdar-tiny", {"threshold": 0.6, "block_size": 8}),
    "block_diffusion-entropy": ("sdar-tiny", {"strategy": "entropy_bounded", "entropy_bound": 1.0}),
    "fast_dllm_v2": ("fast-dllm-v2-tiny", {"block_size": 8, "sub_block_size": 4, "threshold": 0.6}),
    "fast_dllm_v2-32": ("fast-dllm-v2-tiny", {}),
    "fast_dllm_v2-cache": ("fast-dllm-v2-tiny", {"sub_block_cache": True}),
    "fast_dllm_v2-trim": ("fast-dllm-v2-tiny", {"sub_block_size": 4, "trim": True, "sub_block_cache": True}),
    "d2f-llada": ("llada-tiny", {"block_size": 4, "threshold": 0.7}),
    "d2f-dream": ("dream-tiny", {"block_size": 8}),
    "d2f-capped": ("dream-tiny", {"block_size": 4, "max_active_blocks": 2}),
    "lopa": ("dream-tiny-eos", {"block_size": 8, "threshold": 0.7}),
    "lopa-full": ("dream-tiny", {"block_size": 4, "full_window": True, "threshold": 0.7}),
    "sched-dream": ("dream-tiny-eos", {"kind": "exp", "high": 3.0, "low": 0.5}),
    "sched-llada": ("llada-tiny", {"block_size": 8, "steps": 12, "high": 4.0, "low": 0.5, "max_change": 1.0}),
    "block_diffusion-stop": ("sdar-tiny", {"block_size": 8, "strategy": "static", "stop": "sched:high=3,low=0.5"}),
    "wedlm": ("wedlm-tiny", {"window_size": 6}),
    "wedlm-engine": ("wedlm-qwen2-tiny", {"own_prefill": True}),
    "wedlm-block": ("wedlm-tiny", {"schedule": "block", "window_size": 5, "select": "threshold:tau=0.6"}),
    "wedlm-bounded": ("wedlm-qwen2-tiny", {"bounded": True, "entropy_threshold": 0.8}),
    "wedlm-verify": ("wedlm-tiny", {"verify": True, "window_size": 4, "entropy_threshold": 1e9}),
    "mdlm": ("llada-tiny", {"steps": 12}),
    "mdlm-dream": ("dream-tiny", {"steps": 16}),
    "freedave-one": ("sdar-tiny", {"depth": 1, "eager": False}),
    "freedave": ("sdar-tiny", {}),
    "freedave-threshold": ("sdar-tiny", {"block_size": 8, "threshold": 0.7, "depth": 4}),
    "freedave-official": ("sdar-tiny", {"verify": "official", "depth": 4}),
    "freedave-llada": ("llada-tiny", {"block_size": 8}),
    "freedave-dream": ("dream-tiny", {"block_size": 8, "cache": "prefix", "depth": 4}),
    "masked-moe": ("llada-moe-tiny", {"block_size": 8, "steps": 12}),
    "llada2": ("llada2-moe-tiny", {"block_size": 8, "threshold": 0.6}),
    "llada2-editing": ("llada2-moe-tiny", EDITING),
    "fast_dllm-llada": ("llada-tiny", {"block_size": 8, "factor": 1.5}),
    "fast_dllm-dream": ("dream-tiny", {"pool_steps": 4, "threshold": 0.6}),
    "fast_dllm-prefix": ("llada-tiny", {"block_size": 8, "cache": "prefix", "steps": 12}),
    "fast_dllm-dream-dual": ("dream-tiny", {"block_size": 8, "cache": "dual"}),
    "dparallel": ("dream-tiny", {"block_size": 8}),
    "dparallel-dual": ("llada-tiny", {"block_size": 8, "cache": "dual"}),
    "dinfer": ("llada-moe-tiny", {"block_size": 8, "cache": "none", "smoothing": 0.0, "decoder": "hierarchical"}),
    "dinfer-credit": ("llada-tiny", {"block_size": 8, "cache": "prefix", "smoothing": 0.0, "decoder": "credit"}),
    "dinfer-vicinity": ("llada-tiny", {"block_size": 8, "prefix_look": 4, "after_look": 4, "smoothing": 0.0}),
    "jacobi": ("wedlm-tiny", {"block_size": 6}),
    "jacobi-block": ("fast-dllm-v2-tiny", {"block_size": 5, "schedule": "block"}),
    "jacobi_blocks": ("wedlm-tiny", {"block_size": 4, "blocks": 3, "spawn_ratio": 0.4, "pool_size": 1}),
    "jacobi_blocks-recycling": ("wedlm-qwen2-tiny", {"block_size": 5}),
}
# Keys of a full-attention model are approximate in any cache; confidences with credit are not raw.
STALE = ("fast_dllm-prefix", "fast_dllm-dream-dual", "dparallel-dual", "dinfer-credit", "dinfer-vicinity")
# Stale keys in the first; in the last a token is written before it is final (tests/decoding/test_llada2.py).
# LoPA decides by several versions of the canvas (tests/decoding/test_lopa.py).
# Copies of a window speak of the same positions; which one was kept, the trace does not say.
VERSIONS = ("lopa", "lopa-full", "jacobi_blocks-recycling")
# FreeDave's drafts likewise (tests/decoding/test_freedave.py); without drafts it is exact.
DRAFTS = [n for n in RUNS if n.startswith("freedave") and n != "freedave-one"]
ONCE = ("fast_dllm_v2-cache", "fast_dllm_v2-trim", "llada2-editing")
EXACT = [n for n in RUNS if n not in (*ONCE, *STALE, *VERSIONS, *DRAFTS)]
NEW = 16


def prompts(seed: int, count: int = 4) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(170) for _ in range(rng.randint(1, 40))] for _ in range(count)]


def of_lengths(seed: int, *lengths: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(170) for _ in range(length)] for length in lengths]


PROMPTS = of_lengths(6, 1, 3, 4, 5, 31, 32, 33)
SEEDS = [1, 1, 2, 3, 4, 5]


def generate(name: str, prompt, **more):
    model, options = RUNS[name]
    method = name.split("-")[0]
    return tiny(model).generate(prompt, method=method, **({"max_new_tokens": NEW} | options | more))


@cache
def greedy(name: str, early_exit: bool = True) -> list[Generation]:
    """PROMPTS, and last a prompt that holds mask ids, decoded together."""
    mask = tiny(RUNS[name][0]).family.mask_id or 0
    return generate(name, [*PROMPTS, [5, mask, 9, mask, mask, 7]], trace=True, early_exit=early_exit)


@cache
def sampled(name: str) -> list[Generation]:
    """A prompt at temperature 0.9, another greedy, a third with each of SEEDS at 1.5 and once with top-k of one."""
    batch = [PROMPTS[4], PROMPTS[5]] + [PROMPTS[3]] * 7
    heat, seeds, top_k = [0.9, 0.0] + [1.5] * 6 + [0.7], [11, 0, *SEEDS, 0], [0] * 8 + [1]
    return generate(name, batch, temperature=heat, seed=seeds, top_k=top_k)


def for_each(names):
    """All tests of a name run one after the other, so that its generations are made once a worker."""
    return pytest.mark.parametrize("name", names, scope="module")


def layout_for(name: str, canvas: list[int], prompt: int) -> Layout:
    """The mask under which the method's whole canvas would run without a cache."""
    method, options, length = name.split("-")[0], RUNS[name][1], len(canvas)
    if method == "wedlm":  # causal, what is known before the masks
        mask = tiny(RUNS[name][0]).family.mask_id
        waiting = torch.tensor([i >= prompt and t == mask for i, t in enumerate(canvas)])
        return replace(causal(length), order=waiting.long().argsort(stable=True).argsort())
    if method in ("autoregressive", "jacobi", "jacobi_blocks"):
        return causal(length)
    if method in ("masked", "sched", "prophet", "mdlm", "fast_dllm", "dparallel", "dinfer"):
        return full(length)
    if method == "d2f":
        return block_causal(length, options["block_size"], anchor=prompt)
    return block_causal(length, options.get("block_size", 32 if method == "fast_dllm_v2" else 4))


def uncached_probability(name: str, canvas: list[int], prompt: int, step: TraceStep) -> list[tuple[int, float]]:
    """Token and probability of each position the step fixed, from one forward over everything up to the window's
    end."""
    lm = tiny(RUNS[name][0])
    length = step.first + step.width + prompt
    # Rows of real tokens speak of the next position in these, whatever masks do.
    next_token = name.startswith(("autoregressive", "jacobi")) or RUNS[name][1].get("verify", False)
    fixed = {p + prompt: t for p, t in zip(step.positions, step.tokens)} if next_token else {}
    canvas = [fixed.get(i, t) for i, t in enumerate(canvas[:length])]
    with torch.inference_mode():
        layout = layout_for(name, canvas, prompt)
        z = lm.model(torch.tensor([canvas]), torch.arange(length)[None], DenseAttention(layout))[0]
    shift = 1 if next_token else lm.family.shift
    banned = [] if lm.family.mask_id is None else [lm.family.mask_id]
    allowed = z.index_fill(1, torch.tensor(banned, dtype=torch.long), -torch.inf)
    rows = [p + prompt - shift for p in step.positions]
    return [(int(allowed[r].argmax()), float(z[r].softmax(-1)[int(allowed[r].argmax())])) for r in rows]


MASKED = [n for n in RUNS if not n.startswith("autoregressive")]


@for_each([n for n in EXACT if not n.endswith("cfg")])
def test_cached_decoding_equals_recomputing_everything_at_each_forward(name):
    for result in greedy(name, early_exit=False)[1:6:2]:  # 3, 5 and 32 tokens
        prompt, mask = result.prompt_ids, tiny(RUNS[name][0]).family.mask_id or 0
        canvas = prompt + [mask] * 256
        for step in result.trace:
            if not step.positions:
                continue
            expected = uncached_probability(name, canvas, len(prompt), step)
            assert [t for t, _ in expected] == step.tokens
            assert [p for _, p in expected] == pytest.approx(step.confidences, abs=1e-4)
            for p, t in zip(step.positions, step.tokens):
                canvas[p + len(prompt)] = t


@for_each(RUNS)
def test_a_row_of_a_ragged_batch_is_the_same_alone_and_among_others(name):
    hot, cold = sampled(name)[:2]
    alone, among_others = generate(name, PROMPTS[4], temperature=0.9, seed=11), greedy(name)[5]
    for row, other in ((hot, alone), (cold, among_others)):
        assert row.ids == other.ids
        assert row.counters.forwards == other.counters.forwards


@for_each(RUNS)
def test_sampling_depends_on_the_seed_and_on_nothing_else(name):
    rows = sampled(name)[2:8]
    assert rows[0].ids == rows[1].ids
    assert any(row.ids != rows[0].ids for row in rows[2:])


@for_each(RUNS)
def test_top_k_of_one_at_any_temperature_is_greedy(name):
    if name.startswith(("masked-dream", "sched-dream")):
        pytest.skip("top-k filters Dream's ranking, so the order changes")
    if name.startswith(("d2f", "lopa", "fast_dllm_v2", "fast_dllm-dream", "llada2")):
        pytest.skip("the confidence after filtering is 1, so everything is accepted")
    assert sampled(name)[8].ids == greedy(name)[3].ids


@for_each(RUNS)
def test_early_exit_never_changes_the_text(name):
    for short, long in zip(greedy(name), greedy(name, early_exit=False)):
        assert short.ids == long.ids
        assert short.finish_reason == long.finish_reason
        assert sum(short.counters.forwards.values()) <= sum(long.counters.forwards.values())


@for_each(MASKED)
def test_mask_ids_inside_the_prompt_are_text_and_are_never_produced(name):
    mask, result = tiny(RUNS[name][0]).family.mask_id, greedy(name)[-1]
    assert result.prompt_ids.count(mask) == 3
    assert mask not in result.ids
    assert all(p >= 0 for step in result.trace for p in step.positions)


@for_each(MASKED)
def test_a_model_that_wants_to_say_mask_still_ends_without_saying_it(name):
    lm = tiny(RUNS[name][0])
    head = lm.model.model.embed_tokens.weight if lm.model.lm_head is None else lm.model.lm_head.weight
    mask = lm.family.mask_id
    saved = head[mask].clone()
    with torch.no_grad():
        head[mask] = head.mean(0) + 0.05 * saved
        head[mask] *= 20
    try:
        result = generate(name, [3, 4, 5, 6, 7], max_new_tokens=8)
    finally:
        with torch.no_grad():
            head[mask] = saved
    assert mask not in result.ids
    assert 1 <= len(result.ids) <= 8


@for_each(RUNS)
def test_every_prompt_length_gives_at_most_the_tokens_asked_for(name):
    for prompt, result in zip(PROMPTS, greedy(name)):
        fixed = [p for step in result.trace for p in step.positions]
        assert len(fixed) == len(set(fixed))  # nothing is decided twice
        assert set(range(len(result.ids))) <= set(fixed)
        assert len(result.ids) == NEW or result.finish_reason == "stop"
        assert result.counters.tokens == len(result.ids)
        assert result.prompt_ids == prompt
