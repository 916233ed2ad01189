"""Saved traces: what they hold, that they survive a file, and what is said of bad files."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

import traces
import unmask
from checkpoints import tiny
from unmask import UnmaskError
from unmask.trace import from_dict, from_generation, read

PROMPT = [5, 6, 7, 8, 9]


@pytest.fixture(scope="module")
def nano() -> Any:
    lm = unmask.load("nano")
    question = "Rosa has 3 boxes of 12 pens. She gives 7 pens away. How many pens are left?"
    result = lm.generate(question, trace=True, threshold=0.8)
    return result, from_generation(lm, result, model="nano", prompt=question, options={"threshold": 0.8})


@pytest.mark.parametrize(
    ("name", "method", "options", "blocks"),
    [
        ("llada-tiny", "masked", {}, (None, 0)),
        ("llada-tiny", "masked", {"block_length": 4}, (4, 0)),
        ("llada-tiny", "d2f", {"block_size": 8}, (8, 0)),
        ("llada-tiny", "fast_dllm", {"block_size": 4, "cache": "dual"}, (4, 0)),
        ("llada-tiny", "dinfer", {"block_size": 4, "start_block_align": True}, (4, -1)),
        ("sdar-tiny", "block_diffusion", {}, (4, -1)),
        ("fast-dllm-v2-tiny", "fast_dllm_v2", {"sub_block_cache": True}, (32, -5)),
        ("qwen2-tiny", "autoregressive", {}, (None, 0)),
        ("qwen2-tiny", "jacobi", {}, (None, 0)),
    ],
)
def test_any_method_gives_a_document_that_survives_a_file(name, method, options, blocks, tmp_path):
    lm = tiny(name)
    result = lm.generate(PROMPT, method=method, max_new_tokens=12, trace=True, **options)
    trace = from_generation(lm, result, options={"max_new_tokens": 12} | options)
    trace.save(tmp_path / "deep" / "run.json")
    assert read(tmp_path / "deep" / "run.json") == trace
    assert (trace.block_size, trace.block_offset) == blocks
    assert (trace.model, trace.method, trace.prompt) == (name, method, "5 6 7 8 9")
    assert "".join(trace.pieces) == " ".join(map(str, result.ids))
    assert trace.length >= len(trace.ids) and len(trace.steps) == sum(result.counters.forwards.values())
    assert [p for p in range(len(trace.ids)) if p not in trace.final] == []


def test_texts_of_tokens_join_to_the_answer_and_special_ones_have_names(nano):
    result, trace = nano
    assert "".join(trace.pieces) == trace.text == result.text
    end = len(trace.ids) - 1
    assert trace.pieces[end] == "" and trace.piece(end, trace.ids[end]).startswith("<|")
    assert not trace.is_text(end, trace.ids[end]) and trace.is_text(0, trace.ids[0])
    assert trace.piece(0, 10**6) == "#1000000"


def test_confidences_are_rounded_and_options_kept(nano):
    _, trace = nano
    confidences = [c for step in trace.steps for c in step.confidences]
    assert len(confidences) == len(trace.ids) and all(c == round(c, 6) and 0 <= c <= 1 for c in confidences)
    assert trace.options == {"threshold": 0.8}
    assert (trace.block_size, trace.block_offset) == (32, -(len(trace.prompt_ids) % 32))


def test_text_fixed_by_a_forward_shows_gaps():
    trace = traces.small()
    assert trace.fixed_text(trace.steps[1]) == "the boxes"
    apart = traces.trace([traces.step(0, "denoise", 0, 4, {3: 0, 0: 1})], ["a", "b"], [1])
    assert apart.fixed_text(apart.steps[0]) == "b … a"
    assert apart.length == 4


def test_a_token_that_changed_later_is_final_as_it_ended():
    steps = [traces.step(0, "denoise", 0, 2, {0: 0, 1: 0}), traces.step(1, "denoise", 0, 2, {1: 1})]
    assert traces.trace(steps, ["a", "b"], [1, 1]).final == {0: 1, 1: 1}


def test_a_result_without_a_trace_is_refused():
    lm = tiny("qwen2-tiny")
    with pytest.raises(UnmaskError, match="call generate with trace=True"):
        from_generation(lm, lm.generate(PROMPT, max_new_tokens=4))


def test_confidences_of_softmax_a_hair_above_one_can_be_read_back(tmp_path):
    lm = tiny("qwen2-tiny")
    result = lm.generate(PROMPT, max_new_tokens=2, trace=True)
    result.trace[1] = replace(result.trace[1], confidences=[1.0000001])
    result.trace[0] = replace(result.trace[0], confidences=[float("nan")])
    steps = from_dict(from_generation(lm, result).as_dict()).steps
    assert [s.confidences for s in steps] == [[None], [1.0]]


def changed(path: str, value: Any) -> dict[str, Any]:
    """A sound document with one thing replaced; a value of `...` removes it."""
    data = json.loads(json.dumps(traces.small().as_dict()))
    *where, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    inner = data
    for key in where:
        inner = inner[key]
    inner[last] = value
    if value is ...:
        del inner[last]
    return data


BAD = [
    ("format", "other", "its format is not 'unmask-trace'"),
    ("version", 2, "its version is 2, this unmask reads version 1"),
    ("model", ..., "model is missing"),
    ("text", 5, "text must be text, not 5"),
    ("prompt", "\ud800", "prompt must be text"),
    ("options", {"a": []}, "options must be an object, each value a number, text"),
    ("ids", [1, True], "ids must be a list, each entry a whole number from 0"),
    ("block_size", 0, "block_size must be a whole number from 1 to 1000000 or null, not 0"),
    ("block_offset", 3, "block_offset must be a whole number from -1000000 to 0"),
    ("steps", [], "steps must be a list that is not empty"),
    ("steps.1", 7, "steps must be a list"),
    ("steps.1.kind", "guess", "steps[1].kind must be one of prefill, denoise"),
    ("steps.1.tokens", [1], "steps[1].tokens has 1 entries for 2 positions"),
    ("steps.1.positions", [1, 1], "steps[1].positions names a position twice"),
    ("steps.1.positions", [1, -1], "steps[1].positions must be a list"),
    ("steps.1.positions", [1, 10**9], "steps[1].positions must be a list"),
    ("steps.1.confidences", [0.5, 1.5], "each entry a number from 0 to 1 or null"),
    ("steps.1.forward", 2, "steps[1].forward is 2, not 1"),
    ("steps.1.span", 0, "steps[1].span must be a whole number from 1"),
    ("steps.2.reads", 10**400, "steps[2].reads must be a whole number from 0"),
    ("counters.seconds", -1, "counters.seconds must be a number at least 0"),
    ("counters.tokens", 4, "counters.tokens is for 4 tokens, there are 5 ids"),
    ("counters.forwards", {"denoise": 3}, "counters.forwards does not fit the steps"),
    ("pieces", ["the"], "pieces is for 1 tokens, there are 5 ids"),
    ("labels", {"x": "the"}, "labels must have token ids as keys"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD, ids=[f"{b[0]}={str(b[1])[:12]}" for b in BAD])
def test_a_bad_field_is_named_in_one_line(path, value, message, tmp_path):
    file = tmp_path / "run.json"
    file.write_text(json.dumps(changed(path, value)))
    with pytest.raises(UnmaskError) as error:
        read(file)
    text = str(error.value)
    assert text.startswith(f"{file} is not a saved trace: ") and message in text
    assert "\n" not in text and len(text) < 400 + len(str(file))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"[1, 2]", "its format is not"),
        (b"\xff\xfe", "not JSON"),
        (b'{"format": NaN}', "NaN is not a number"),
        (b"[" * 100_000, "is not a saved trace"),
    ],
)
def test_files_that_are_something_else_are_one_line(content, message, tmp_path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UnmaskError) as error:
        read(tmp_path / "x.json")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_files_that_cannot_be_read_or_written_are_one_line(tmp_path):
    with pytest.raises(UnmaskError, match=r"cannot read .*none.json: No such file"):
        read(tmp_path / "none.json")
    with pytest.raises(UnmaskError, match="it is a folder"):
        traces.small().save(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UnmaskError, match="cannot write"):
        traces.small().save(tmp_path / "file" / "run.json")


def test_an_unknown_field_is_no_mistake():
    assert from_dict(traces.small().as_dict() | {"note": "by hand"}) == traces.small()
