"""What must hold for every method: cached = uncached, batch = alone, prompts are sacred, every run ends."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from checkpoints import tiny
from unmask.attention.dense import DenseAttention
from unmask.decoding.loop import TraceStep
from unmask.layout import Layout, block_causal, causal, full

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
# Stale keys in the one; in the other a token is written before it is final (tests/decoding/test_llada2.py).
# LoPA decides by several versions of the canvas (tests/decoding/test_lopa.py).
# Copies of a window speak of the same positions; which one was kept, the trace does not say.
VERSIONS = ("lopa", "lopa-full", "jacobi_blocks-recycling")
# FreeDave's drafts likewise (tests/decoding/test_freedave.py); without drafts it is exact.
DRAFTS = [n for n in RUNS if n.startswith("freedave") and n != "freedave-one"]
EXACT = [n for n in RUNS if n not in ("fast_dllm_v2-cache", "llada2-editing", *STALE, *VERSIONS, *DRAFTS)]
NEW = 16


def prompts(seed: int, count: int = 4) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(170) for _ in range(rng.randint(1, 40))] for _ in range(count)]


def generate(name: str, prompt, **more):
    model, options = RUNS[name]
    method = name.split("-")[0]
    return tiny(model).generate(prompt, method=method, **({"max_new_tokens": NEW} | options | more))


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


@pytest.mark.parametrize("name", [n for n in EXACT if not n.endswith("cfg")])
def test_cached_decoding_equals_recomputing_everything_at_each_forward(name):
    batch = prompts(0, 3)
    for prompt, result in zip(batch, generate(name, batch, trace=True, early_exit=False)):
        mask = tiny(RUNS[name][0]).family.mask_id or 0
        canvas = prompt + [mask] * 256
        for step in result.trace:
            if not step.positions:
                continue
            expected = uncached_probability(name, canvas, len(prompt), step)
            assert [t for t, _ in expected] == step.tokens
            assert [p for _, p in expected] == pytest.approx(step.confidences, abs=1e-4)
            for p, t in zip(step.positions, step.tokens):
                canvas[p + len(prompt)] = t


@pytest.mark.parametrize("name", RUNS)
def test_a_ragged_batch_equals_each_prompt_alone(name):
    batch, heat, seeds = prompts(2, 3), [0.9, 0.0, 0.9], [11, 12, 13]
    together = generate(name, batch, temperature=heat, seed=seeds)
    for prompt, temperature, seed, row in zip(batch, heat, seeds, together):
        alone = generate(name, prompt, temperature=temperature, seed=seed)
        assert row.ids == alone.ids
        assert row.counters.forwards == alone.counters.forwards


@pytest.mark.parametrize("name", RUNS)
def test_sampling_depends_on_the_seed_and_on_nothing_else(name):
    prompt = prompts(3, 1)[0]
    rows = generate(name, [prompt] * 6, temperature=1.5, seed=[1, 1, 2, 3, 4, 5])
    assert rows[0].ids == rows[1].ids
    assert any(row.ids != rows[0].ids for row in rows[2:])


@pytest.mark.parametrize("name", RUNS)
def test_top_k_of_one_at_any_temperature_is_greedy(name):
    if name.startswith(("masked-dream", "sched-dream")):
        pytest.skip("top-k filters Dream's ranking, so the order changes")
    if name.startswith(("d2f", "lopa", "fast_dllm_v2", "fast_dllm-dream", "llada2")):
        pytest.skip("the confidence after filtering is 1, so everything is accepted")
    prompt = prompts(4, 1)[0]
    assert generate(name, prompt, temperature=0.7, top_k=1).ids == generate(name, prompt).ids


@pytest.mark.parametrize("name", RUNS)
def test_early_exit_never_changes_the_text(name):
    batch = prompts(5, 4)
    for short, long in zip(generate(name, batch), generate(name, batch, early_exit=False)):
        assert short.ids == long.ids
        assert short.finish_reason == long.finish_reason
        assert sum(short.counters.forwards.values()) <= sum(long.counters.forwards.values())


@pytest.mark.parametrize("name", [n for n in RUNS if not n.startswith("autoregressive")])
def test_mask_ids_inside_the_prompt_are_text_and_are_never_produced(name):
    mask = tiny(RUNS[name][0]).family.mask_id
    prompt = [5, mask, 9, mask, mask, 7]
    result = generate(name, prompt, trace=True)
    assert mask not in result.ids
    assert all(p >= 0 for step in result.trace for p in step.positions)


@pytest.mark.parametrize("name", [n for n in RUNS if not n.startswith("autoregressive")])
def test_a_model_that_wants_to_say_mask_still_ends_without_saying_it(name):
    lm = tiny(RUNS[name][0])
    head = lm.model.model.embed_tokens.weight if lm.model.lm_head is None else lm.model.lm_head.weight
    mask = lm.family.mask_id
    saved = head[mask].clone()
    with torch.no_grad():
        head[mask] = head.mean(0) + 0.05 * saved
        head[mask] *= 20
    try:
        result = generate(name, [3, 4, 5, 6, 7])
    finally:
        with torch.no_grad():
            head[mask] = saved
    assert mask not in result.ids
    assert 1 <= len(result.ids) <= NEW


@pytest.mark.parametrize("name", RUNS)
def test_every_prompt_length_gives_at_most_the_tokens_asked_for(name):
    batch = [[(7 * i + 3) % 170 for i in range(length)] for length in (1, 3, 4, 5, 31, 32, 33)]
    for prompt, result in zip(batch, generate(name, batch, trace=True)):
        fixed = [p for step in result.trace for p in step.positions]
        assert len(fixed) == len(set(fixed))  # nothing is decided twice
        assert set(range(len(result.ids))) <= set(fixed)
        assert len(result.ids) == NEW or result.finish_reason == "stop"
        assert result.counters.tokens == len(result.ids)
        assert result.prompt_ids == prompt
