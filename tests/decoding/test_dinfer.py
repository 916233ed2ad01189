"""dInfer: caches and decoders against simpler settings, smoothing against its schedule, counts against the paper."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from oracle import EOS as ORACLE_EOS
from oracle import Oracle, run

from random_models import MASK, random_lm, random_prompts
from unmask.decoding.dinfer import DInfer
from unmask.decoding.forward import Facts, Kind, blank
from unmask.decoding.loop import decode
from unmask.decoding.sampling import Draw, Scores
from unmask.decoding.stop import STOPS
from unmask.errors import UnmaskError

TEXT = [(i * 7 + 3) % 60 for i in range(200)]
PLAIN = {"smoothing": 0.0, "early_stop": False}
DECODERS = [{"threshold": 0.6}, {"decoder": "hierarchical"}, {"decoder": "credit", "threshold": 0.7}]


def generate(lm, prompt, method="dinfer", **options):
    """Three blocks of four tokens."""
    fixed = {"max_new_tokens": 12, "block_size": 4, "early_exit": False, "trace": True}
    return lm.generate(prompt, method=method, **(fixed | options))


def decisions(results):
    return [[(s.positions, s.tokens) for s in result.trace] for result in results]


def kinds(result):
    return "".join(s.kind[0] for s in result.trace)


def settings(rows: int) -> Draw:
    return Draw(torch.zeros(rows), torch.ones(rows), torch.zeros(rows).long(), torch.zeros(rows).long())


# Degenerate settings


def test_a_threshold_above_one_is_lladas_sampler_one_token_at_a_time():
    lm, batch = random_lm(0, "llada"), random_prompts(0, 4)
    ours = generate(lm, batch, cache="none", threshold=1.1, **PLAIN)
    assert decisions(ours) == decisions(generate(lm, batch, "masked"))


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_without_smoothing_the_threshold_decoder_is_fast_dllm(cache):
    lm, batch = random_lm(1, "llada", layers=3), random_prompts(1, 4)
    ours = generate(lm, batch, cache=cache, threshold=0.6, **PLAIN)
    assert decisions(ours) == decisions(generate(lm, batch, "fast_dllm", cache=cache, threshold=0.6))


def test_hierarchical_with_a_low_threshold_of_one_is_a_strict_threshold():
    lm, batch = random_lm(2, "llada"), random_prompts(2, 4)
    ours = generate(lm, batch, cache="none", decoder="hierarchical", threshold=0.7, low_threshold=1.0, **PLAIN)
    assert decisions(ours) == decisions(generate(lm, batch, "fast_dllm", select="threshold:tau=0.7,strict=true"))


def test_credit_without_weight_is_the_threshold_decoder_and_with_it_is_not():
    lm, batch = random_lm(3, "llada"), random_prompts(3, 6)
    plain = decisions(generate(lm, batch, cache="none", threshold=0.7, **PLAIN))
    given = {"cache": "none", "decoder": "credit", "threshold": 0.7} | PLAIN
    assert decisions(generate(lm, batch, credit_alpha=0.0, **given)) == plain
    assert decisions(generate(lm, batch, **given)) != plain


# The vicinity cache


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("options", DECODERS)
def test_a_vicinity_of_everything_is_no_cache(options, smoothing):
    lm, batch = random_lm(4, "llada", layers=3), random_prompts(4, 2)
    wide = generate(lm, batch, prefix_look=64, after_look=64, smoothing=smoothing, **options)
    assert decisions(wide) == decisions(generate(lm, batch, cache="none", smoothing=smoothing, **options))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("options", DECODERS)
def test_a_vicinity_of_nothing_without_warm_up_is_the_dual_cache(options, smoothing):
    lm, batch = random_lm(5, "llada", layers=3), random_prompts(5, 2)
    none = generate(lm, batch, prefix_look=0, after_look=0, warmup_steps=0, smoothing=smoothing, **options)
    dual = generate(lm, batch, cache="dual", smoothing=smoothing, **options)
    assert decisions(none) == decisions(dual)
    assert [kinds(r) for r in none] == [kinds(r) for r in dual]


@pytest.mark.parametrize("cache", ["prefix", "dual", "vicinity"])
def test_on_one_layer_every_cache_is_exact(cache):
    lm, batch = random_lm(6, "llada", layers=1), random_prompts(6, 3)
    for options in DECODERS:
        plain = decisions(generate(lm, batch, cache="none", **PLAIN, **options))
        assert decisions(generate(lm, batch, cache=cache, prefix_look=2, after_look=3, **PLAIN, **options)) == plain


def test_the_window_of_the_papers_example():
    """Ten positions, block [4, 6), one more on each side: positions 3 to 6 run, slots 0..2 and 7..9 are read."""
    options = {"block_size": 2, "prefix_look": 1, "after_look": 1, "warmup_steps": 0, "threshold": 1.1} | PLAIN
    (row,) = run(Oracle(TEXT, 0), "dinfer", options, [4], 6, attention="full")
    step = row.trace[1]
    assert (step.kind, step.first + 4, step.width, step.visible, step.reads) == ("window", 3, 4, 10, 6)
    assert row.canvas == TEXT[4:10]


def test_full_forwards_are_the_warm_up_and_one_for_each_block_entered_after_it():
    lm = random_lm(7, "llada")
    given = {"threshold": 1.1} | PLAIN
    assert kinds(generate(lm, [1, 2], cache="dual", **given)) == "rwww" * 3
    assert kinds(generate(lm, [1, 2], warmup_steps=2, **given)) == "ddrw" + "rwww" * 2
    # Block 0 ends inside the warm-up. The official code refreshes the next one twice.
    assert kinds(generate(lm, [1, 2], warmup_steps=5, **given)) == "d" * 5 + "rww" + "rwww"
    assert kinds(generate(lm, [1, 2], warmup_steps=99, **given)) == "d" * 12


def test_extra_refreshes_count_iterations_of_refresh_and_window():
    lm = random_lm(8, "llada")
    given = {"threshold": 1.1, "cache_update_freq": 4, "block_size": 8} | PLAIN
    assert kinds(generate(lm, [1, 2], cache="prefix", max_new_tokens=16, **given)) == "rwwwwrww" + "rwwrwwww"


@dataclass(frozen=True, kw_only=True)
class Watching(DInfer):
    """Decides nothing; ends after a refresh and the window behind it."""

    def commit(self, state, forward, scores):
        at = forward.targets
        where = (at >= 8)[..., None] & (at < 12)[..., None]
        LOGITS.append(scores.logits[where.expand_as(scores.logits)])
        return replace(state, age=torch.zeros_like(state.age), done=forward.kind == Kind.WINDOW)


LOGITS: list[torch.Tensor] = []


@pytest.mark.parametrize("cache", ["prefix", "dual", "vicinity"])
def test_a_window_on_an_unchanged_canvas_gives_the_logits_of_the_refresh(cache):
    method = Watching(block_size=4, cache=cache, warmup_steps=0, prefix_look=3, after_look=1, start_block_align=True)
    LOGITS.clear()
    prompts = [list(range(1, 9)), list(range(5, 15))]
    decode(
        random_lm(9, "llada", layers=3).model, method, prompts, facts=Facts(MASK, (), 0), draw=settings(2), new_tokens=8
    )
    refresh, window = LOGITS
    assert torch.allclose(refresh, window, atol=1e-5)


# Blocks and ends


def test_aligned_blocks_begin_inside_the_prompt_and_the_last_one_is_cut():
    options = {"block_size": 8, "cache": "dual", "threshold": 0.5, "start_block_align": True} | PLAIN
    lengths = [13, 16, 3]
    rows = run(Oracle(TEXT, 0), "dinfer", options, lengths, 21, attention="full")
    for row, n in zip(rows, lengths):
        assert row.canvas == TEXT[n : n + 21]
        ends = [min(8 * k, n + 21) for k in range(n // 8 + 1, n // 8 + 5) if 8 * (k - 1) < n + 21]
        assert [s.positions[-1] + n + 1 for s in row.trace] == ends


def test_early_stop_finishes_the_block_of_the_end_token_and_nothing_behind_it():
    said = TEXT[:21] + [ORACLE_EOS] + TEXT[22:]
    sure = [0.99] * 200
    sure[23] = 0.2
    options = {"block_size": 8, "threshold": 0.5, "early_exit": False, "smoothing": 0.0}
    (row,) = run(Oracle(said, 0, sure), "dinfer", options, [5], 40, attention="full")
    assert row.canvas[:24] == said[5:29]
    assert row.open == [False] * 24 + [True] * 16
    (long,) = run(Oracle(said, 0, sure), "dinfer", options | {"early_stop": False}, [5], 40, attention="full")
    assert long.canvas == said[5:45]
    (short,) = run(Oracle(said, 0, sure), "dinfer", options | {"early_exit": True}, [5], 40, attention="full")
    assert short.canvas[:17] == said[5:22]
    assert len(short.trace) == len(row.trace) - 1  # the block's last forward decides what stands behind the end token


# Iteration smoothing


def state_at(method, *iterations):
    facts = Facts(MASK, (), 0)
    rows = len(iterations)
    state = method.start(blank([[1, 2]] * rows, [26] * rows, 24, facts, settings(rows)))
    return replace(state, iteration=torch.tensor(iterations))


def test_weight_and_threshold_follow_the_papers_schedule():
    method = DInfer(block_size=8, threshold=0.8)
    state = state_at(method, 0, 5, 8, 10, 99)
    assert method._paced(state).select.tau[:, 0].tolist() == pytest.approx([1.0, 0.9, 0.84, 0.8, 0.8])
    forward = method.plan(state)
    soft = torch.ones(*forward.targets.shape, 3)
    kept = method._remember(state, forward, soft).memory["expected"]
    assert kept[:, 5, 0].tolist() == pytest.approx([0.15, 0.25, 0.3, 0.3, 0.3])


def test_only_open_positions_are_blended_and_those_outside_the_window_keep_what_they_had():
    method = DInfer(block_size=8, cache="dual")
    state = state_at(method, 0)
    forward = method.plan(state)
    assert forward.blend is None
    size = forward.targets.shape[1]
    soft = torch.arange(size).float()[None, :, None].expand(1, size, 3)
    prob = torch.full((1, size), 0.5)
    token = torch.zeros(1, size, dtype=torch.long)
    scores = Scores(token, token, prob, prob + torch.arange(size), torch.zeros(1, size, 24), soft)
    state = method.commit(state, forward, scores)  # position 9, the last of the block, is decided
    forward = method.plan(state)
    assert forward.kind.tolist() == [Kind.WINDOW]
    blend = forward.blend[0, :8, 0].tolist()
    assert blend == pytest.approx([0.15 * p for p in range(2, 9)] + [0.0])
    width = 8
    scores = Scores(*(x[:, :width] for x in (token, token, prob, prob, scores.logits)), soft[:, :width] + 100)
    narrow = replace(forward, targets=forward.targets[:, :width])
    kept = method.commit(state, narrow, scores).memory["expected"][0, :, 0]
    assert kept[20].item() == pytest.approx(0.15 * 20)
    assert kept[3].item() == pytest.approx(0.17 * 101)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual", "vicinity"])
def test_smoothing_without_weight_is_a_threshold_that_falls_and_without_fall_changes_nothing(cache):
    lm = random_lm(10, "llada")
    given = {"cache": cache, "early_stop": False, "prefix_look": 2, "after_look": 2}
    batch = random_prompts(10, 2)
    zero = generate(lm, batch, smoothing_start=0.0, smoothing_growth=0.0, threshold_decay=0.0, **given)
    assert decisions(zero) == decisions(generate(lm, batch, smoothing=0.0, threshold=1.0, **given))


@pytest.mark.parametrize("cache", ["none", "vicinity"])
def test_with_smoothing_a_ragged_batch_equals_each_prompt_alone(cache):
    """On a mild model: smoothing feeds rounding back, and a wild one (the golden checkpoints) makes it visible."""
    lm = random_lm(14, "llada")
    given = {"cache": cache, "prefix_look": 2, "after_look": 3, "early_exit": True}
    batch = random_prompts(14, 4)
    for prompt, row in zip(batch, generate(lm, batch, **given)):
        alone = generate(lm, prompt, **given)
        assert row.ids == alone.ids
        for ours, theirs in zip(row.trace, alone.trace):
            assert ours.confidences == pytest.approx(theirs.confidences, abs=1e-4)


def test_smoothing_changes_the_text():
    lm = random_lm(11, "llada")
    plain, smooth = (generate(lm, random_prompts(11, 4), cache="none", smoothing=w) for w in (0.0, 0.3))
    assert [r.ids for r in plain] != [r.ids for r in smooth]


# Combinations and refusals


@dataclass(frozen=True)
class SecondForward:
    def __call__(self, state, forward, scores, span):
        return state, span.step >= 1


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("cache", ["none", "dual", "vicinity"])
def test_a_stop_rule_takes_the_rest_of_the_block_and_nothing_else(cache, smoothing, monkeypatch):
    monkeypatch.setitem(STOPS.known, "second_forward", SecondForward)
    given = {"threshold": 1.1, "early_stop": False, "select": "static"}
    result = generate(random_lm(12, "llada"), [1, 2], cache=cache, smoothing=smoothing, stop="second_forward", **given)
    assert [len(s.positions) for s in result.trace] == [1, 3] * 3


def test_any_selection_rule_takes_the_decoders_place():
    lm = random_lm(13, "llada")
    for rule in ("entropy:tau=0.5", "margin:tau=0.4", "factor:factor=1", "sequential", "entropy_bounded"):
        result = generate(lm, [1, 2, 3], select=rule, early_stop=False)
        assert sorted(p for s in result.trace for p in s.positions) == list(range(12))


def test_models_with_token_shift_and_models_of_blocks_are_refused():
    with pytest.raises(UnmaskError, match="use fast_dllm"):
        generate(random_lm(0, "dream"), [1, 2])
    with pytest.raises(UnmaskError, match="use block_diffusion"):
        generate(random_lm(0, "sdar"), [1, 2])
