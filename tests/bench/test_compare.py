"""Comparing methods: agreement worked out by hand, baselines, and methods that do not work."""

from __future__ import annotations

import pytest

from checkpoints import tiny
from unmask import UnmaskError
from unmask.bench.compare import Way, agreement, compare, sound
from unmask.decoding.sequential import sequential
from unmask.lm import LM

PROMPTS = [[5, 6, 7, 8, 9], [9, 8, 7]]


def test_agreement_by_hand() -> None:
    found = agreement([[1, 2, 3, 4], [5, 6]], [[1, 2, 9, 4], [5, 6]])
    assert (found.first, found.total, found.same) == (4 / 6, 5 / 6, 1)
    longer = agreement([[1, 2, 3, 4, 5, 6]], [[1, 2, 3]])  # an answer that goes on is not the same
    assert (longer.first, longer.total, longer.same) == (0.5, 0.5, 0)
    assert agreement([[1]], [[1, 2]]) == agreement([[1, 2]], [[1]])
    assert agreement([[9, 2, 3]], [[1, 2, 3]]).first == 0
    assert (agreement([[1, 2]], [[1, 2]]).first, agreement([], []).total) == (1, 0)
    assert agreement([[1, 2, 3]], [[1, 9, 3]]).as_dict() == {
        "up_to_first_difference": 0.3333,
        "in_all": 0.6667,
        "same_answers": 0,
    }


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("llada-tiny", "masked:schedule=even"),
        ("dream-tiny", "masked:schedule=even"),
        ("sdar-tiny", "block_diffusion:strategy=static"),
        ("llada2-moe-tiny", "block_diffusion:strategy=static"),
        ("fast-dllm-v2-tiny", "fast_dllm_v2:threshold=1.0"),
        ("qwen2-tiny", "autoregressive"),
        ("wedlm-tiny", "autoregressive"),
    ],
)
def test_the_sequential_form_decides_one_token_a_forward(name: str, way: str) -> None:
    lm = tiny(name)
    form = Way(*sequential(lm.family))
    assert form.name == way
    result = lm.generate(
        PROMPTS[0], method=form.method, max_new_tokens=12, trace=True, early_exit=False, **form.options
    )
    assert max(len(step.positions) for step in result.trace) == 1
    assert sum(len(step.positions) for step in result.trace) >= 12


def test_counters_and_agreement_are_those_of_the_answers() -> None:
    lm = tiny("fast-dllm-v2-tiny")
    ways = [Way("fast_dllm_v2", {"threshold": 0.0}), "autoregressive"]
    found = compare(lm, PROMPTS, ways, max_new_tokens=12)
    fast, plain = found.outcomes
    assert found.baselines["autoregressive"] is plain
    alone = [lm.generate(p, method="fast_dllm_v2", threshold=0.0, max_new_tokens=12) for p in PROMPTS]
    assert [a.ids for a in fast.answers] == [a.ids for a in alone]
    assert fast.counters.tokens == sum(len(a.ids) for a in alone)
    assert fast.counters.forwards["denoise"] == sum(a.counters.forwards["denoise"] for a in alone)
    share = found.agreement(fast, "autoregressive")
    assert share == agreement([a.ids for a in alone], [a.ids for a in plain.answers])
    assert share is not None and share.first < 1
    facts = found.as_dict()["methods"][0]
    assert facts["agreement"].keys() == {"autoregressive", "sequential"}
    assert facts["tokens"] == sum(len(a["ids"]) for a in facts["answers"]) and facts["options"] == {"threshold": 0.0}


def test_a_baseline_that_was_asked_for_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, asked = tiny("fast-dllm-v2-tiny"), []
    real = LM.generate
    monkeypatch.setattr(LM, "generate", lambda self, p, **more: asked.append(more["method"]) or real(self, p, **more))
    found = compare(lm, PROMPTS, ["autoregressive", Way("fast_dllm_v2", {"threshold": 1.0})], max_new_tokens=8)
    assert found.baselines["sequential"] is found.outcomes[1]
    assert asked[1:] == ["autoregressive", "fast_dllm_v2"] * 2  # in turns, after one that is not counted
    causal = compare(tiny("qwen2-tiny"), PROMPTS[:1], ["jacobi"], max_new_tokens=8)
    assert causal.baselines["sequential"] is causal.baselines["autoregressive"]
    assert causal.agreement(causal.outcomes[0], "sequential") == agreement([[1]], [[1]])


def test_methods_that_are_not_sound_keep_their_reason() -> None:
    found = compare(tiny("llada-tiny"), PROMPTS, ["autoregressive", "masked", "block_diffusion"], max_new_tokens=8)
    reasons = [o.reason for o in found.outcomes]
    assert "predicts masked tokens in place" in (reasons[0] or "") and reasons[1] is None
    assert found.baselines["autoregressive"].reason and found.agreement(found.outcomes[1], "autoregressive") is None
    assert found.as_dict()["methods"][0].keys() == {"method", "options", "reason", "agreement"}


def test_a_method_that_fails_on_the_way_does_not_end_the_others() -> None:
    long = [5] * 500  # llada-tiny holds 512; whole blocks of d2f do not fit
    found = compare(tiny("llada-tiny"), [long], ["d2f", "masked"], max_new_tokens=9)
    assert "exceed" in (found.outcomes[0].reason or "") or "the context is 512" in (found.outcomes[0].reason or "")
    assert found.outcomes[1].reason is None and len(found.outcomes[1].answers[0].ids) <= 9


def test_without_names_all_sound_methods_run_with_their_defaults() -> None:
    lm = tiny("sdar-tiny")
    found = compare(lm, PROMPTS[:1], max_new_tokens=8)
    assert [o.way.name for o in found.outcomes] == sound(lm.family)
    assert "block_diffusion" in sound(lm.family) and "masked" not in sound(lm.family)
    assert all(o.reason is None for o in found.outcomes)


def test_answers_are_checked_by_number_and_text() -> None:
    seen = []
    check = lambda i, text: seen.append((i, text)) or i == 0  # noqa: E731
    found = compare(tiny("qwen2-tiny"), PROMPTS, ["autoregressive"], check=check, max_new_tokens=4)
    assert found.outcomes[0].right == [True, False] and [i for i, _ in seen] == [0, 1]
    facts = found.as_dict()["methods"][0]
    assert (facts["correct"], facts["accuracy"]) == (1, 50.0)
    assert [a["correct"] for a in facts["answers"]] == [True, False]


def test_batches_give_the_same_and_share_their_time() -> None:
    lm, done = tiny("sdar-tiny"), []
    alone = compare(lm, PROMPTS * 2, ["block_diffusion"], max_new_tokens=8)
    both = compare(lm, PROMPTS * 2, ["block_diffusion"], batch=3, max_new_tokens=8, progress=lambda *n: done.append(n))
    first, second = alone.outcomes[0], both.outcomes[0]
    assert [a.ids for a in first.answers] == [a.ids for a in second.answers]
    spent = [a.counters.seconds for a in second.answers]
    assert second.counters.seconds == pytest.approx(spent[0] + spent[3])
    assert done == [(n, 6) for n in range(1, 7)]  # two batches, the method and two baselines


def test_another_model_can_be_the_autoregressive_baseline() -> None:
    lm, other = tiny("llada-tiny"), tiny("qwen2-tiny")
    found = compare(lm, PROMPTS, ["masked"], against=other, max_new_tokens=8)
    assert found.baselines["autoregressive"].lm is other and found.baselines["sequential"].lm is lm
    assert found.agreement(found.outcomes[0], "autoregressive") is not None


def test_a_baseline_with_another_tokenizer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, other = tiny("llada-tiny"), tiny("qwen2-tiny")
    monkeypatch.setattr(LM, "encode", lambda self, p, raw=False: [1] if self is lm else [2])
    with pytest.raises(UnmaskError, match="reads the prompt as other tokens than llada-tiny"):
        compare(lm, PROMPTS, ["masked"], against=other)


@pytest.mark.parametrize(
    ("prompts", "ways", "message"),
    [
        ([], ["masked"], "there is nothing to compare on"),
        ([[]], ["masked"], "the prompt is empty"),
        (PROMPTS, ["maskd"], "did you mean 'masked'"),
        (PROMPTS, [Way("masked", {"stps": 1})], "did you mean 'steps'"),
        ([[5] * 600], ["masked"], "the context of this checkpoint is 512"),
    ],
)
def test_mistakes_are_one_line(prompts: list[list[int]], ways: list[Way | str], message: str) -> None:
    with pytest.raises(UnmaskError) as error:
        compare(tiny("llada-tiny"), prompts, ways, max_new_tokens=8)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_way_is_written_as_it_is_typed() -> None:
    from unmask.cli.options import parse_method

    for text in ("masked", "masked:steps=4,ban_eos=true", "masked:block_size=none,select=(factor:f=1,g=2),steps=2"):
        if "(" not in text:
            assert Way(*parse_method(text)).name == text
    assert Way("masked", {"select": "factor:f=1,g=2"}).name == "masked:select=(factor:f=1,g=2)"
