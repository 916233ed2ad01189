"""The engine behind `LM.generate`: run on the CPU here, as if it had what it needs."""

from __future__ import annotations

import warnings

import pytest
import torch

from checkpoints import tiny
from unmask.engine import engine, parts
from unmask.errors import UnmaskWarning

PROMPTS = [[5, 6, 7], list(range(20, 50)), [9]]


@pytest.fixture
def available(monkeypatch):
    monkeypatch.setattr(parts, "missing", lambda device: "")


class Streamed:
    """Keeps what a streamer is given."""

    def __init__(self) -> None:
        self.parts: list[list[int]] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.parts.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize("made", [True, {"rows": 2, "page_size": 16}])
def test_generate_gives_the_same_results_by_the_engine(available, made):
    lm = tiny("dream-tiny-eos")
    asked = {"method": "d2f", "block_size": 8, "max_new_tokens": 24, "temperature": [0.0, 0.9, 0.0], "seed": [1, 2, 3]}
    for fast, slow in zip(lm.generate(PROMPTS, engine=made, **asked), lm.generate(PROMPTS, **asked)):
        assert (fast.ids, fast.finish_reason, fast.method) == (slow.ids, slow.finish_reason, slow.method)
        assert fast.counters.forwards == slow.counters.forwards and fast.counters.tpf == slow.counters.tpf


def test_the_engine_is_kept_for_calls_that_suit_it(available):
    lm = tiny("qwen2-tiny")
    lm.generate([1, 2, 3], max_new_tokens=4, engine=True)
    first = lm.keeper.engine
    lm.generate([[4] * 60, [5]], max_new_tokens=4, engine=True)
    assert lm.keeper.engine is first
    lm.generate([4] * 65, max_new_tokens=4, engine=True)
    assert lm.keeper.engine is not first


def test_streamers_are_given_prompt_and_text_in_order(available):
    lm = tiny("dream-tiny-eos")
    streams = [Streamed() for _ in PROMPTS]
    options = {"method": "d2f", "block_size": 8, "max_new_tokens": 24}
    results = lm.generate(PROMPTS, engine=True, streamer=streams, **options)
    for prompt, stream, result in zip(PROMPTS, streams, results):
        assert stream.parts[0] == prompt and stream.ended
        assert [token for part in stream.parts[1:] for token in part] == result.ids
    assert any(len(stream.parts) > 2 for stream in streams)


def test_the_stream_of_a_request_that_is_given_up_ends():
    lm = tiny("dream-tiny-eos")
    made = engine.Engine(lm, "d2f", rows=2, max_prompt=8, max_new_tokens=24, block_size=8)
    streams = [Streamed(), Streamed()]
    gone, kept = (made.add([5, 6, 7], streamer=stream) for stream in streams)
    for _ in range(3):
        made.step()
    made.abort(gone)
    assert streams[0].ended and not streams[1].ended
    made.run()
    assert streams[1].ended and kept.canvas


def test_without_a_gpu_the_eager_loop_decodes_and_says_so_once():
    lm = tiny("sdar-tiny")
    lm.keeper.told.clear()
    with pytest.warns(UnmaskWarning, match="no engine: it needs a CUDA device, the model is on cpu") as told:
        expected = lm.generate([1, 2, 3], max_new_tokens=8, engine=True)
        assert lm.generate([1, 2, 3], max_new_tokens=8, engine=True).ids == expected.ids
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lm.generate([1, 2, 3], max_new_tokens=8).ids == expected.ids
