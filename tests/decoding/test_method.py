"""The contract's edges: unknown names, bad values, aliases, unsound combinations."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest
import torch

from checkpoints import tiny
from unmask.decoding import METHODS, build, describe
from unmask.decoding.forward import Facts, blank
from unmask.decoding.method import Method, aliases, method_class, option, register
from unmask.decoding.sampling import Draw
from unmask.errors import UnmaskError


def test_unknown_method_names_the_nearest():
    with pytest.raises(UnmaskError, match=r"unknown method 'fast_dlm_v2'; did you mean 'fast_dllm_v2'\? \(known: "):
        build("fast_dlm_v2", {})


def test_unknown_option_names_the_nearest():
    with pytest.raises(UnmaskError, match=r"unknown option of d2f 'treshold'; did you mean 'threshold'\?"):
        build("d2f", {"treshold": 0.5})


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("d2f", {"block_size": 0}, "d2f: block_size must be a whole number of at least 1, not 0"),
        ("d2f", {"block_size": 2.5}, "block_size must be a whole number"),
        ("d2f", {"add_threshold": 1.5}, "add_threshold must be between 0.0 and 1.0, not 1.5"),
        ("d2f", {"threshold": float("nan")}, "threshold must be at least 0.0, not nan"),
        ("d2f", {"threshold": "high"}, "not 'high'"),
        ("d2f", {"rank": "neg_entrop"}, "did you mean 'neg_entropy'"),
        ("fast_dllm_v2", {"sub_block_cache": 1}, "sub_block_cache must be true or false, not 1"),
        ("masked", {"algorithm": "low_confidense"}, "did you mean 'low_confidence'"),
        ("d2f", {"skip_threshold": 0.9, "threshold": 0.8}, "are the same option"),
        ("d2f", {"threshold": None}, "threshold needs a value (default 0.9)"),
        ("d2f", {"threshold": float("inf")}, "not inf"),
    ],
)
def test_bad_values_are_named_with_what_is_allowed(method, options, message):
    with pytest.raises(UnmaskError) as error:
        build(method, options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "method", "options", "message"),
    [
        ("llada-tiny", "autoregressive", {}, "predicts masked tokens in place"),
        ("qwen2-tiny", "d2f", {}, "has no mask token; use autoregressive"),
        ("qwen2-tiny", "masked", {}, "has no mask token"),
        ("wedlm-tiny", "d2f", {}, "was trained with causal attention; use wedlm or autoregressive"),
        ("dream-tiny", "block_diffusion", {}, "token shift"),
        (
            "llada-tiny",
            "d2f",
            {"block_size": 10_000},
            "take 10003 positions in whole blocks of d2f",
        ),
        ("sdar-tiny", "fast_dllm_v2", {}, "needs a model with token shift"),
        ("sdar-tiny", "masked", {}, "trained with block attention"),
        ("fast-dllm-v2-tiny", "fast_dllm_v2", {"trim": True}, "trim needs sub_block_cache"),
        ("fast-dllm-v2-tiny", "fast_dllm_v2", {"block_size": 12}, "sub_block_size 8 does not divide block_size 12"),
        ("llada-tiny", "masked", {"block_size": 7}, "block_size 7 does not divide max_new_tokens 16"),
        ("llada-tiny", "masked", {"block_size": 8, "steps": 3}, "steps 3 is not a multiple of the 2 blocks"),
        ("llada-tiny", "masked", {"algorithm": "origin"}, "defined by schedule timestep alone"),
        ("dream-tiny", "masked", {"block_size": 8}, "needs schedule even"),
    ],
)
def test_unsound_combinations_are_refused_with_the_reason(model, method, options, message):
    with pytest.raises(UnmaskError) as error:
        tiny(model).generate([1, 2, 3], method=method, max_new_tokens=16, **options)
    assert message in str(error.value)


def test_official_names_and_values_mean_the_same_option():
    ours = build("d2f", {"add_threshold": 0.2, "activate_threshold": 0.8, "threshold": 0.7, "rank": "margin"})
    theirs = build(
        "d2f",
        {
            "block_add_threshold": 0.2,
            "decoded_token_threshold": 0.8,
            "skip_threshold": 0.7,
            "sampling_strategy": "margin_confidence",
        },
    )
    assert ours == theirs
    assert build("fast_dllm_v2", {"small_block_size": 4, "use_block_cache": True}).sub_block_size == 4
    assert build("masked", {"remasking": "low_confidence", "block_length": 8}).algorithm == "confidence"


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_option_is_described_and_no_alias_shadows_a_name(name):
    cls = method_class(name)
    names = {f.name for f in fields(cls)}
    assert all(o["help"] for o in describe(cls))
    assert not names & set(aliases(cls))
    assert cls.title
    assert cls().early_exit is True


def test_registering_makes_a_method_known():
    @register("test_only", title="none", arxiv="")
    @dataclass(frozen=True, kw_only=True)
    class TestOnly(Method):
        width: int = option(3, "a width", low=1, high=5)

    try:
        assert build("test_only", {"width": 5}).width == 5
        with pytest.raises(UnmaskError, match="between 1 and 5"):
            build("test_only", {"width": 6})
    finally:
        del METHODS["test_only"]


def test_tokens_are_written_where_they_are_accepted_inside_the_row_and_nowhere_else():
    draw = Draw(torch.zeros(2), torch.ones(2), torch.zeros(2).long(), torch.zeros(2).long())
    state = blank([[1], [2, 3]], [4, 6], 3, Facts(9, (8,), 0), draw)
    targets = torch.tensor([[2, 2, 4, -1, 3], [5, 2, 2, 6, 3]])  # behind the end of a row, unused, twice the same
    tokens = torch.tensor([[0, 5, 5, 5, 7], [6, 5, 4, 5, -1]])
    accept = torch.tensor([[True, False, True, True, False], [True, False, True, True, False]])
    filled = state.fill(targets, tokens, accept)
    assert filled.canvas.tolist() == [[1, 9, 0, 9, 9, 9], [2, 3, 4, 9, 9, 6]]
    assert filled.canvas.dtype == state.canvas.dtype
    was = state.open.clone()
    was[0, 2] = was[1, 2] = was[1, 5] = False
    assert torch.equal(filled.open, was)
