"""The explicit matrices of the papers, from the one rule."""

from __future__ import annotations

import pytest
import torch

from unmask import layout as lay


def matrix(layout: lay.Layout) -> list[str]:
    return ["".join(str(int(v)) for v in row) for row in lay.visible(layout, layout)]


def test_full_attention_sees_everything():
    assert matrix(lay.full(3)) == ["111"] * 3


def test_causal_attention_sees_the_past_and_itself():
    assert matrix(lay.causal(3)) == ["100", "110", "111"]


def test_blocks_at_absolute_multiples():
    assert matrix(lay.block_causal(4, 2)) == ["1100", "1100", "1111", "1111"]


def test_d2f_prompt_is_one_block_and_the_grid_starts_behind_it():
    # papers: P = 2, B = 2, two blocks
    assert matrix(lay.block_causal(6, 2, anchor=2)) == ["110000"] * 2 + ["111100"] * 2 + ["111111"] * 2


def test_an_odd_prompt_does_not_shift_the_d2f_grid():
    assert matrix(lay.block_causal(5, 2, anchor=3)) == ["11100"] * 3 + ["11111"] * 2


def test_doubled_row_of_fast_dllm_v2_and_sdar():
    assert matrix(lay.doubled(4, 2)) == [
        "11000000",
        "11000000",
        "00111100",
        "00111100",
        "00001100",
        "00001100",
        "00001111",
        "00001111",
    ]
    assert lay.doubled(4, 2).positions.tolist() == [0, 1, 2, 3] * 2


def test_wedlm_dual_stream():
    assert matrix(lay.wedlm_streams(4, 2)) == [
        "10000000",
        "11000000",
        "11100000",
        "11110000",
        "00001000",
        "00001100",
        "11000010",
        "11000011",
    ]


def test_jacobi_noise_conditioned_copies_are_blind_to_each_other():
    # prompt 1, two tokens in each copy: p s s t t
    assert matrix(lay.jacobi_noise(1, 2)) == ["10000", "11000", "11100", "10010", "10011"]
    assert lay.jacobi_noise(1, 2).positions.tolist() == [0, 1, 2, 1, 2]


def test_jacobi_clean_context_sees_clean_tokens_before_its_start():
    # four clean tokens, one noisy block of two that begins at position 2
    assert matrix(lay.jacobi_clean(4, [2], 2)) == ["100000", "110000", "111000", "111100", "110010", "110011"]


def test_copies_do_not_see_each_other_but_see_lane_zero():
    window = lay.copies(lay.full(2), 2)
    assert matrix(window) == ["1100", "1100", "0011", "0011"]
    shared = lay.Layout(*(torch.zeros(1, dtype=torch.long) for _ in range(4)))
    assert lay.visible(window, shared).all()


def test_packed_documents_are_as_alone():
    assert matrix(lay.packed([lay.causal(2), lay.full(2)])) == ["1000", "1100", "0011", "0011"]
    assert lay.packed([lay.causal(2), lay.full(2)]).positions.tolist() == [0, 1, 0, 1]


def test_padding_sees_padding_only_and_no_row_is_empty():
    padded = lay.full(3).with_padding(torch.tensor([True, True, False]))
    assert matrix(padded) == ["110", "110", "001"]


@pytest.mark.parametrize(("length", "block"), [(1, 1), (7, 3), (12, 4), (9, 16)])
def test_doubled_noisy_block_sees_itself_and_earlier_clean_blocks_only(length, block):
    seen = lay.visible(lay.doubled(length, block), lay.doubled(length, block))
    b = torch.arange(length) // block
    same, before = b[:, None] == b[None], b[:, None] > b[None]
    assert torch.equal(seen[:length, :length], same)
    assert torch.equal(seen[:length, length:], before)
    assert torch.equal(seen[length:, length:], same | before)
    assert not seen[length:, :length].any()
