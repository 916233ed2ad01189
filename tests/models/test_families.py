"""What a checkpoint was trained to do: stated facts first, then the table where it fits."""

import json
from pathlib import Path

import pytest

from unmask.errors import UnmaskError
from unmask.models.families import resolve
from unmask.models.hub import read_tokenizer_facts

MODELS = Path(__file__).parents[1] / "golden" / "models"


def config(architecture, vocab_size=152064, **more):
    return {"architectures": [architecture], "vocab_size": vocab_size, **more}


def test_llada_stops_on_end_of_text_and_end_of_turn():
    family = resolve(config("LLaDAModelLM", 126464, mask_token_id=126336, eos_token_id=126081))
    assert (family.mask_id, family.eos_ids, family.shift, family.next_token) == (126336, (126081, 126348), 0, False)


def test_dream_stops_on_both_qwen_ends():
    family = resolve(config("DreamModel", mask_token_id=151666, eos_token_id=151643), {"mask_token_id": None})
    assert (family.mask_id, family.eos_ids, family.shift) == (151666, (151643, 151645), 1)


def test_wedlm_without_a_mask_id_gets_the_engines():
    family = resolve(config("WeDLMForCausalLM", 151936, mask_token_id=None, eos_token_id=151643))
    assert (family.mask_id, family.eos_ids, family.attention, family.shift) == (151665, (151643, 151645), "causal", 0)


def test_fast_dllm_v2_mask_needs_the_row_to_exist():
    assert resolve(config("Fast_dLLM_QwenForCausalLM", 151936, eos_token_id=151645)).mask_id == 151665
    tiny = resolve(json.loads((MODELS / "fast-dllm-v2-tiny" / "config.json").read_text()))
    assert (tiny.mask_id, tiny.eos_ids, tiny.block_size) == (None, (188,), 32)


def test_the_tokenizers_mask_goes_before_the_table():
    facts = {"tokens": {"|<MASK>|": 7, "<|im_end|>": 8}, "mask_token": None}
    family = resolve(config("Fast_dLLM_QwenForCausalLM", 100, eos_token_id=3), None, facts)
    assert (family.mask_id, family.eos_ids) == (7, (3, 8))
    named = resolve(config("Qwen2ForCausalLM", 100), None, {"tokens": {"[M]": 5}, "mask_token": "[M]"})
    assert named.mask_id == 5


def test_end_tokens_of_config_and_generation_config_are_united():
    family = resolve(config("Qwen2ForCausalLM", 100, eos_token_id=3), {"eos_token_id": [9, 3]})
    assert (family.eos_ids, family.mask_id, family.next_token) == ((3, 9), None, True)


def test_block_size_is_the_checkpoints_own():
    assert resolve(config("SDARForCausalLM", 200, block_size=16, mask_token_id=9)).block_size == 16
    assert resolve(config("Fast_dLLM_QwenForCausalLM", 200, bd_size=8)).block_size == 8
    assert resolve(config("SDARForCausalLM", 151936)).block_size == 4


def test_overrides_replace_and_are_checked():
    family = resolve(config("Fast_dLLM_QwenForCausalLM", 192, eos_token_id=188))
    assert family.override(mask_token_id=190, eos_token_id=[1, 2]).mask_id == 190
    assert family.override(eos_token_id=5).eos_ids == (5,)
    assert family.override() == family
    with pytest.raises(UnmaskError, match="mask token id 192 is outside the vocabulary of 192"):
        family.override(mask_token_id=192)
    with pytest.raises(UnmaskError, match="EOS token id -1"):
        family.override(eos_token_id=-1)
    with pytest.raises(UnmaskError, match="block_size"):
        family.override(block_size=0)


def test_tokenizer_facts_join_the_three_files(tmp_path):
    assert read_tokenizer_facts(tmp_path) is None
    settings = {"added_tokens_decoder": {"5": {"content": "<a>"}}, "mask_token": {"content": "<a>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<b>": 6}))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"content": "<c>", "id": 7}]}))
    assert read_tokenizer_facts(tmp_path) == {"tokens": {"<a>": 5, "<b>": 6, "<c>": 7}, "mask_token": "<a>"}


def test_llada_moe_and_llada2_take_their_mask_from_the_table_where_it_fits():
    full = resolve(config("LLaDAMoEModelLM", 157184, eos_token_id=156892, model_type="llada"))
    assert (full.name, full.mask_id, full.eos_ids, full.attention) == ("llada-moe", 156895, (156892,), "full")
    block = resolve(config("LLaDA2MoeModelLM", 157184, eos_token_id=156892))
    assert (block.name, block.mask_id, block.eos_ids) == ("llada2", 156895, (156892,))
    assert (block.attention, block.block_size, block.shift, block.next_token) == ("block", 32, 0, False)
    assert resolve(json.loads((MODELS / "llada2-moe-tiny" / "config.json").read_text())).mask_id is None
