"""What must hold for every method: cached = uncached, batch = alone, prompts are sacred, every run ends."""

from __future__ import annotations

import random

import pytest
import torch

from checkpoints import tiny
from unmask.attention.dense import DenseAttention
from unmask.decoding.loop import TraceStep
from unmask.layout import Layout, block_causal, causal, full

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
}
EXACT = [n for n in RUNS if n != "fast_dllm_v2-cache"]
NEW = 24


def prompts(seed: int, count: int = 4) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(170) for _ in range(rng.randint(1, 40))] for _ in range(count)]


def generate(name: str, prompt, **more):
    model, options = RUNS[name]
    method = name.split("-")[0]
    return tiny(model).generate(prompt, method=method, **({"max_new_tokens": NEW} | options | more))


def layout_for(name: str, length: int, prompt: int) -> Layout:
    """The mask under which the method's whole canvas would run without a cache."""
    method, options = name.split("-")[0], RUNS[name][1]
    if method == "autoregressive":
        return causal(length)
    if method == "masked":
        return full(length)
    if method == "d2f":
        return block_causal(length, options["block_size"], anchor=prompt)
    return block_causal(length, options.get("block_size", 32 if method == "fast_dllm_v2" else 4))


def uncached_probability(name: str, canvas: list[int], prompt: int, step: TraceStep) -> list[tuple[int, float]]:
    """Token and probability of each position the step fixed, from one forward over everything up to the window's
    end."""
    lm = tiny(RUNS[name][0])
    length = step.first + step.width + prompt
    with torch.inference_mode():
        layout = layout_for(name, length, prompt)
        z = lm.model(torch.tensor([canvas[:length]]), torch.arange(length)[None], DenseAttention(layout))[0]
    shift = 1 if name.startswith("autoregressive") else lm.family.shift
    banned = [] if lm.family.mask_id is None else [lm.family.mask_id]
    allowed = z.index_fill(1, torch.tensor(banned, dtype=torch.long), -torch.inf)
    rows = [p + prompt - shift for p in step.positions]
    return [(int(allowed[r].argmax()), float(z[r].softmax(-1)[int(allowed[r].argmax())])) for r in rows]


@pytest.mark.parametrize("name", [n for n in EXACT if not n.endswith("cfg")])
@pytest.mark.parametrize("seed", [0, 1])
def test_cached_decoding_equals_recomputing_everything_at_each_forward(name, seed):
    for prompt in prompts(seed, 2):
        result = generate(name, prompt, trace=True, early_exit=False)
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


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("name", RUNS)
def test_a_ragged_batch_equals_each_prompt_alone(name, temperature):
    batch = prompts(2, 5)
    seeds = [11, 12, 13, 14, 15]
    together = generate(name, batch, temperature=temperature, seed=seeds)
    for prompt, seed, row in zip(batch, seeds, together):
        alone = generate(name, prompt, temperature=temperature, seed=seed)
        assert row.ids == alone.ids
        assert row.counters.forwards == alone.counters.forwards


@pytest.mark.parametrize("name", RUNS)
def test_sampling_depends_on_the_seed_and_on_nothing_else(name):
    prompt = prompts(3, 1)[0]
    first = generate(name, prompt, temperature=1.5, seed=1)
    assert generate(name, prompt, temperature=1.5, seed=1).ids == first.ids
    others = [generate(name, prompt, temperature=1.5, seed=s).ids for s in range(2, 6)]
    assert any(o != first.ids for o in others)


@pytest.mark.parametrize("name", RUNS)
def test_top_k_of_one_at_any_temperature_is_greedy(name):
    if name.startswith("masked-dream"):
        pytest.skip("top-k filters Dream's ranking, so the order changes")
    if name.startswith(("d2f", "fast_dllm_v2")):
        pytest.skip("the confidence after filtering is 1, so everything is accepted")
    prompt = prompts(4, 1)[0]
    assert generate(name, prompt, temperature=0.7, top_k=1).ids == generate(name, prompt).ids


@pytest.mark.parametrize("name", RUNS)
def test_early_exit_never_changes_the_text(name):
    for prompt in prompts(5, 4):
        short, long = generate(name, prompt), generate(name, prompt, early_exit=False)
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
@pytest.mark.parametrize("length", [1, 3, 4, 5, 31, 32, 33])
def test_every_prompt_length_gives_at_most_the_tokens_asked_for(name, length):
    prompt = [(7 * i + 3) % 170 for i in range(length)]
    result = generate(name, prompt, trace=True)
    fixed = [p for step in result.trace for p in step.positions]
    assert len(fixed) == len(set(fixed))  # nothing is decided twice
    assert set(range(len(result.ids))) <= set(fixed)
    assert len(result.ids) == NEW or result.finish_reason == "stop"
    assert result.counters.tokens == len(result.ids)
    assert result.prompt_ids == prompt
