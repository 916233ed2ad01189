"""`generate`: inputs, results, errors, streamers."""

from __future__ import annotations

import pytest
import torch

from checkpoints import GOLDEN, tiny
from unmask import UnmaskError, load
from unmask.lm import LM

PROMPT = [5, 6, 7, 8, 9]


def test_ids_tensor_and_batch_give_the_same():
    lm = tiny("qwen2-tiny")
    one = lm.generate(PROMPT, max_new_tokens=9)
    assert lm.generate(torch.tensor(PROMPT), max_new_tokens=9).ids == one.ids
    assert [g.ids for g in lm.generate([PROMPT, PROMPT], gen_length=9)] == [one.ids] * 2
    assert [g.ids for g in lm.generate(torch.tensor([PROMPT]), max_new_tokens=9)] == [one.ids]


def test_counters_follow_their_definition():
    result = tiny("qwen2-tiny").generate(PROMPT, max_new_tokens=9)
    c = result.counters
    assert c.tokens == len(result.ids)
    assert c.forwards["prefill"] == 1
    assert c.decode_forwards == c.tokens - 1
    assert c.tpf == pytest.approx(c.tokens / (c.tokens - 1))
    assert c.seconds > 0
    assert result.as_dict()["forwards"] == {"prefill": 1, "denoise": c.tokens - 1}


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("llada-tiny", "masked"),
        ("dream-tiny", "masked"),
        ("sdar-tiny", "block_diffusion"),
        ("fast-dllm-v2-tiny", "fast_dllm_v2"),
        ("qwen2-tiny", "autoregressive"),
        ("wedlm-tiny", "wedlm"),
    ],
)
def test_each_family_has_its_default_method(name, method):
    assert tiny(name).generate(PROMPT, max_new_tokens=8).method == method


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "the prompt is empty"),
        ([[1], []], {}, "the prompt is empty"),
        (torch.tensor([], dtype=torch.long), {}, "the prompt is empty"),
        ([192], {}, "192 is not a token id (0 to 191)"),
        ([-1], {}, "-1 is not a token id"),
        ([1.5], {}, "not a token id"),
        ("text", {}, "has no tokenizer; give token ids"),
        ([1] * 1024, {}, "the prompt has 1024 tokens, the context of this checkpoint is 1024"),
        ([1] * 1000, {"max_new_tokens": 30}, "exceed the context of 1024 tokens"),
        (PROMPT, {"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1, not 0"),
        (PROMPT, {"max_new_tokens": True}, "max_new_tokens must be"),
        (PROMPT, {"gen_length": 4, "max_new_tokens": 4}, "are the same option"),
        (PROMPT, {"temperature": -1}, "temperature must be at least 0.0, not -1"),
        (PROMPT, {"top_p": 1.5}, "top_p must be between 0.0 and 1.0, not 1.5"),
        (PROMPT, {"top_k": 0.5}, "top_k must be a whole number"),
        (PROMPT, {"seed": [1, 2]}, "seed has 2 values for 1 prompts"),
        (PROMPT, {"method": "autoregresive"}, "did you mean 'autoregressive'"),
    ],
)
def test_bad_requests_are_one_line(prompt, options, message):
    with pytest.raises(UnmaskError) as error:
        tiny("qwen2-tiny").generate(prompt, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_context_bounds_the_default_length():
    assert len(tiny("llada-tiny").generate([5] * 508, method="d2f", block_size=4).ids) <= 4


@pytest.mark.parametrize("layer", [1, 3])
def test_nan_in_the_weights_names_layer_and_position(layer):
    lm = LM(load(GOLDEN / "models" / "qwen2-tiny", device="cpu").checkpoint, None)
    with torch.no_grad():
        lm.model.model.layers[layer - 1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(UnmaskError) as error:
        lm.generate(PROMPT, max_new_tokens=4)
    assert f"the input of layer {layer} is already NaN or infinite at position 0 of row 0" in str(error.value)


def test_nan_in_the_head_is_told_apart():
    lm = load(GOLDEN / "models" / "qwen2-tiny", device="cpu")
    with torch.no_grad():
        lm.model.lm_head.weight[3] = float("inf")
    with pytest.raises(UnmaskError, match="check the head"):
        lm.generate(PROMPT, max_new_tokens=4)


class Recorder:
    """A streamer that keeps what it was told."""

    def __init__(self):
        self.put_ids, self.drafts, self.ended = [], [], 0

    def put(self, value):
        self.put_ids.append(value.flatten().tolist())

    def put_draft(self, value):
        self.drafts.append(value.tolist())

    def end(self):
        self.ended += 1


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("qwen2-tiny", "autoregressive"),
        ("llada-tiny", "masked"),
        ("llada-tiny", "d2f"),
        ("dream-tiny", "d2f"),
        ("sdar-tiny", "block_diffusion"),
        ("fast-dllm-v2-tiny", "fast_dllm_v2"),
        ("wedlm-tiny", "wedlm"),
    ],
)
def test_streamers_get_prompt_then_exactly_the_text_and_one_end(name, method):
    lm = tiny(name)
    prompts = [PROMPT, [9] * 13, [4, 3]]
    streamers = [Recorder() for _ in prompts]
    results = lm.generate(prompts, method=method, max_new_tokens=16, streamer=streamers)
    for prompt, streamer, result in zip(prompts, streamers, results):
        assert streamer.put_ids[0] == prompt
        assert [t for part in streamer.put_ids[1:] for t in part] == result.ids
        assert streamer.ended == 1
    if method != "autoregressive":
        assert any(s.drafts for s in streamers)


def test_drafts_hold_the_mask_id_at_open_positions():
    lm = tiny("llada-tiny")
    streamer = Recorder()
    lm.generate(PROMPT, method="masked", max_new_tokens=8, streamer=streamer)
    assert any(lm.family.mask_id in d for d in streamer.drafts)


def test_one_streamer_for_a_batch_is_refused():
    with pytest.raises(UnmaskError, match="give a list with one streamer per prompt"):
        tiny("qwen2-tiny").generate([PROMPT, PROMPT], streamer=Recorder())


def test_transformers_text_streamer_prints_the_text(capsys):
    from transformers import TextStreamer

    class Letters:
        def decode(self, ids, **_):
            return " ".join(str(int(i)) for i in ids) + " "

    result = tiny("llada-tiny").generate(
        PROMPT,
        method="d2f",
        max_new_tokens=8,
        streamer=TextStreamer(Letters(), skip_prompt=True),  # type: ignore[arg-type]
    )
    assert capsys.readouterr().out.split() == [str(i) for i in result.ids]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["llada-tiny", "dream-tiny", "sdar-tiny", "fast-dllm-v2-tiny", "qwen2-tiny"])
def test_a_gpu_gives_the_tokens_of_the_cpu(name):
    facts = {"mask_token_id": 190} if name == "fast-dllm-v2-tiny" else {}
    lm = load(GOLDEN / "models" / name, device="cuda", dtype="float32", **facts)
    assert lm.generate(PROMPT, max_new_tokens=24).ids == tiny(name).generate(PROMPT, max_new_tokens=24).ids
