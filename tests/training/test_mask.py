"""A model without a mask token gets one: in the tokenizer, in the embedding, in the checkpoint, said in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers_made import without_mask

import unmask
from unmask.errors import UnmaskError
from unmask.models.checkpoint import load_model
from unmask.training.export import export
from unmask.training.log import read_log
from unmask.training.loop import run
from unmask.training.mask import find_mask, mean_row

BLOCKS = {"architectures": ["Fast_dLLM_QwenForCausalLM"], "model_type": "Fast_dLLM_Qwen", "bd_size": 16}
DIFFUSION = {"name": "fast_dllm_v2", "block_size": 16}
LORA = {"rank": 4, "alpha": 64, "targets": "all"}


@pytest.fixture
def base(tiny, tmp_path):
    """A function: a checkpoint whose embedding has so many rows more than the tokenizer without a mask has tokens."""

    def made(room, tied=True):
        tokens = without_mask(tmp_path / "tokenizer")
        model = json.loads((tmp_path / "config.json").read_text())
        model.pop("mask_token_id", None)
        model |= {"vocab_size": 2048 + room, "tie_word_embeddings": tied}
        (tmp_path / "base.json").write_text(json.dumps(model))
        config = tiny("base", model=str(tmp_path / "base.json"), tokenizer=str(tokens), steps=2)
        run(config)
        return config

    return made


def notes(config):
    return [e["note"] for e in read_log(Path(config.output) / "log.jsonl") if "note" in e]


def converted(tiny, base, name="new", **changes):
    same = {"model": None, "init": base.output, "tokenizer": base.tokenizer, "config_changes": BLOCKS}
    config = tiny(name, recipe=DIFFUSION, **{**same, **changes})
    run(config)
    return config


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_an_embedding_without_room_grows(tiny, base, tied):
    old = base(0, tied)
    new = converted(tiny, old, steps=1, learning_rate=0.0)
    lm = unmask.load(new.output, device="cpu")
    assert (lm.family.mask_id, lm.tokenizer.inner.mask_token_id, lm.tokenizer.inner.mask_token) == (
        2048,
        2048,
        "<|mask|>",
    )
    before, after = load_model(old.output).model.state_dict(), lm.model.state_dict()
    for name in {"model.embed_tokens.weight", "lm_head.weight"} & set(before):
        assert after[name].shape[0] == 2112
        assert torch.equal(after[name][:2048], before[name])
        torch.testing.assert_close(after[name][2048], before[name].mean(0))
    (said,) = [n for n in notes(new) if "mask token" in n]
    assert "'<|mask|>' as id 2048; the embedding grows from 2048 to 2112 rows" in said


def test_an_unused_row_of_the_embedding_is_taken(tiny, base):
    old = base(16)
    new = converted(tiny, old, steps=1, learning_rate=0.0)
    lm = unmask.load(new.output, device="cpu")
    assert (lm.family.mask_id, lm.model.config.vocab_size) == (2048, 2064)
    before, after = (load_model(c.output).model.embedding for c in (old, new))
    torch.testing.assert_close(after[2048], before[:2048].mean(0))
    keep = torch.arange(2064) != 2048
    assert torch.equal(after[keep], before[keep])
    assert any("id 2048, an unused row" in n for n in notes(new))


def test_the_row_is_trained_in_full_fine_tuning(tiny, base):
    old = base(16)
    new = converted(tiny, old, steps=2, mask_init="keep")
    after = load_model(new.output).model.embedding
    assert (after[2048] - load_model(old.output).model.embedding[:2048].mean(0)).abs().max() > 1e-3


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_with_lora_the_row_is_trained_apart_and_the_checkpoint_is_whole(tiny, base, tmp_path, precision):
    old = base(0)
    options = {"lora": LORA, "schedule": "constant", "learning_rate": 0.02, "precision": precision, "ema": 0.5}
    through = converted(tiny, old, "through", steps=4, **options)
    converted(tiny, old, "stopped", steps=2, save_every=2, **options)
    resumed = converted(tiny, old, "stopped", steps=4, save_every=2, resume=True, **options)
    one, two = (load_model(c.output).model for c in (through, resumed))
    assert all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert not (Path(through.output) / "adapter_config.json").exists()
    before = load_model(old.output).model.embedding
    assert (one.embedding[2048] - before.mean(0)).abs().max() > 1e-3
    torch.testing.assert_close(one.embedding[:2048], before, atol=1e-3, rtol=1e-2)
    export(resumed.output, tmp_path / "out")
    again = load_model(tmp_path / "out").model.state_dict()
    for name, tensor in two.state_dict().items():
        torch.testing.assert_close(again[name], tensor, atol=1e-3, rtol=1e-2)
    with pytest.raises(UnmaskError, match="without an adapter that could stand alone"):
        export(resumed.output, tmp_path / "adapter", form="adapter")


def test_what_the_checkpoint_says_goes_before_the_tokenizer_and_a_table_is_not_believed_blindly(tmp_path):
    from transformers import AutoTokenizer

    tokens = without_mask(tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tokens)
    recipe = {"name": "fast_dllm_v2"}
    model = {**BLOCKS, "vocab_size": 152000}
    assert find_mask({**recipe, "mask_id": 7}, model, None, tokenizer, tokens).id == 7
    assert find_mask(recipe, {**model, "mask_token_id": 9}, None, tokenizer, tokens).id == 9
    assert find_mask(recipe, model, None, tokenizer, tokens).id == 151665  # the family's, which no token uses

    class Other:
        mask_token_id = None

        def __len__(self):
            return 151700

        def convert_ids_to_tokens(self, index):
            return "<tool_response>"

        def add_special_tokens(self, given):
            self.mask_token_id = 151700

    found = find_mask(recipe, model, None, Other(), tokens)
    assert (found.id, found.used) == (151700, 151700)
    assert (
        find_mask(
            {"name": "autoregressive"}, {**model, "architectures": ["Qwen2ForCausalLM"]}, None, tokenizer, tokens
        ).id
        is None
    )


def test_a_row_that_is_not_there_is_refused():
    with pytest.raises(UnmaskError, match="mask_id 9 is outside the vocabulary of 4"):
        mean_row(torch.zeros(4, 2), 9)
