"""LLaDA2.0's plan and LLaDA2.1's editing: against a literal loop, worked out by hand, and what streams."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import EOS, MASK, Oracle, family, run
from torch import Tensor

from checkpoints import tiny
from unmask.attention.dense import DenseAttention
from unmask.decoding import build
from unmask.errors import UnmaskError
from unmask.layout import block_causal

TEXT = [(i * 7 + 3) % 60 for i in range(200)]
EDITING = {"editing": True, "block_size": 8, "threshold": 0.6, "edit_threshold": 0.4, "max_post_steps": 4}


def prompt_of(length: int) -> list[int]:
    return [(11 * i + 5) % 170 for i in range(length)]


def literal(prompt: list[int], new: int, o: dict[str, Any]) -> tuple[list[int], dict[str, int]]:
    """LLaDA2.1's loop without a cache, one row, one position after the other."""
    lm = tiny("llada2-moe-tiny")
    mask, block = lm.family.mask_id, o["block_size"]
    canvas, counts = list(prompt), {"denoise": 0, "draft": 0}
    begin = len(prompt) // block * block
    while begin < len(prompt) + new:
        canvas += [mask] * (begin + block - len(canvas))
        own = range(max(begin, len(prompt)), begin + block)
        post = 0
        while True:
            masked = [p for p in own if canvas[p] == mask]
            post += not masked
            if post > o["max_post_steps"]:
                break
            counts["denoise" if masked else "draft"] += 1
            layout = block_causal(len(canvas), block).batch(1)
            with torch.no_grad():
                probs = lm.model(torch.tensor([canvas]), layout.positions, DenseAttention(layout))[0].softmax(-1)
            probs[:, mask] = -1.0
            sure, token = (x.tolist() for x in probs.max(-1))
            fill = [p for p in masked if sure[p] > o["threshold"]]
            least = o.get("min_commit", 1)
            if len(fill) < least:
                fill = sorted(masked, key=lambda p: -sure[p])[:least]
            edit = [p for p in own if p not in masked and token[p] != canvas[p] and sure[p] > o["edit_threshold"]]
            for p in fill + edit:
                canvas[p] = token[p]
            if not masked and not edit:
                break
        begin += block
    return canvas[len(prompt) :][:new], counts


@pytest.mark.parametrize(
    "changes",
    [{}, {"max_post_steps": 0}, {"edit_threshold": 0.0, "max_post_steps": 7}, {"threshold": 1.0, "min_commit": 3}],
    ids=["usual", "no-post", "follow", "least"],
)
def test_editing_equals_the_loop_without_a_cache(changes):
    options = EDITING | changes
    batch = [prompt_of(n) for n in (1, 8, 21)]
    expected = [literal(prompt, 16, options) for prompt in batch]
    for fused in (False, True):
        same = {"method": "llada2", "max_new_tokens": 16, "early_exit": False, "fused_commit": fused}
        rows = tiny("llada2-moe-tiny").generate(batch, **same, **options)
        for (tokens, counts), prompt, row in zip(expected, batch, rows):
            assert row.ids == tokens[: len(row.ids)]
            assert len(row.ids) == 16 or row.finish_reason == "stop"
            used = row.counters.forwards
            assert used["draft"] == counts["draft"]
            # A fused commit looks at the next block as well, in the place of its first denoising forward.
            assert used["denoise"] + fused * used["commit"] == counts["denoise"]
            assert used["prefill"] == (len(prompt) >= 8)


class Wavering(Oracle):
    """Says text[p] while position p holds the mask, then text[p] + 1; `back` returns to text[p] from there."""

    def __init__(self, back: bool) -> None:
        super().__init__(TEXT, 0)
        self.back = back

    def __call__(self, tokens: Tensor, positions: Tensor, attend: Any, rows: Tensor) -> Tensor:
        at, now = positions.gather(1, rows), tokens.gather(1, rows)
        first = torch.tensor(TEXT)[at]
        says = torch.where((now == MASK) | (self.back & (now == first + 1)), first, first + 1)
        logits = torch.full((*at.shape, 64), -5.0)
        return logits.scatter(-1, says[..., None], 5.0)


HAND = {"editing": True, "block_size": 8, "threshold": 0.5, "edit_threshold": 0.5, "fused_commit": False}


def forwards(row) -> dict[str, int]:
    return {kind: n for kind, n in row.counters.forwards.items() if n}


def test_a_quiet_forward_ends_a_block_and_has_stored_its_keys():
    (row,) = run(Oracle(TEXT, 0), "llada2", HAND, [11], 21)
    assert row.canvas == TEXT[11:32]
    assert forwards(row) == {"prefill": 1, "denoise": 3, "draft": 3}
    assert [s.visible for s in row.trace[1:]] == [8, 8, 16, 16, 24, 24]


def test_written_tokens_are_changed_and_the_prompt_is_not():
    oracle = Wavering(back=False)
    (row,) = run(oracle, "llada2", HAND, [11], 21)
    assert row.canvas == [t + 1 for t in TEXT[11:32]]
    assert forwards(row) == {"prefill": 1, "denoise": 3, "draft": 6}  # fill, change, nothing to change
    assert all(seen[0, :3].tolist() == TEXT[8:11] for seen in oracle.seen[1:3])


def test_without_change_above_the_threshold_the_first_tokens_stay():
    (row,) = run(Wavering(back=False), "llada2", HAND | {"edit_threshold": 1.0}, [8], 16)
    assert row.canvas == TEXT[8:24]


@pytest.mark.parametrize("limit", [0, 1, 2, 5])
def test_a_cycle_of_changes_ends_at_the_limit_and_takes_a_forward_for_the_keys(limit):
    (row,) = run(Wavering(back=True), "llada2", HAND | {"max_post_steps": limit}, [8], 24)
    assert row.canvas == [t + limit % 2 for t in TEXT[8:32]]
    counts = {"prefill": 1, "denoise": 3, "commit": 2, "draft": 3 * limit}  # nobody reads the last block's keys
    assert forwards(row) == {k: n for k, n in counts.items() if n}
    (fused,) = run(Wavering(back=True), "llada2", HAND | {"max_post_steps": limit, "fused_commit": True}, [8], 24)
    assert fused.canvas == row.canvas
    assert fused.counters.decode_forwards == row.counters.decode_forwards - 2


def test_positions_are_final_when_their_block_is():
    (row,) = run(Wavering(back=False), "llada2", HAND, [8], 16)
    assert [s.positions for s in row.trace] == [[], [], [], list(range(8)), [], [], list(range(8, 16))]


@pytest.mark.parametrize("early", [True, False])
def test_with_editing_only_early_exit_stops_at_an_end_token(early):
    said = TEXT[:12] + [EOS] + TEXT[13:]
    (row,) = run(Oracle(said, 0), "llada2", HAND | {"early_exit": early}, [8], 32)
    assert row.canvas[:5] == said[8:13]
    assert forwards(row)["draft"] == (1 if early else 4)


def test_an_end_token_that_is_edited_away_does_not_end_the_row():
    class Changes(Wavering):
        def __call__(self, *given: Any) -> Tensor:
            logits = super().__call__(*given)
            at, now = given[1].gather(1, given[3]), given[0].gather(1, given[3])
            return torch.where(((at == 10) & (now == MASK))[..., None], 9.0 * torch.eye(64)[EOS], logits)

    (row,) = run(Changes(back=False), "llada2", HAND, [8], 24)
    assert row.canvas == [t + 1 for t in TEXT[8:32]]


def test_editing_that_changes_nothing_is_threshold_decoding():
    lm = tiny("llada2-moe-tiny")
    same = {"method": "llada2", "block_size": 8, "threshold": 0.6, "max_new_tokens": 24, "early_exit": False}
    for length in (1, 8, 21):
        edits = lm.generate(prompt_of(length), editing=True, edit_threshold=1.0, max_post_steps=0, **same)
        plain = lm.generate(prompt_of(length), **same)
        assert edits.ids == plain.ids
        assert edits.counters.decode_forwards == plain.counters.decode_forwards


def test_without_editing_it_is_block_diffusion_under_its_own_defaults():
    lm = tiny("llada2-moe-tiny")
    for steps in (None, 5):
        ours = lm.generate(prompt_of(9), max_new_tokens=40, steps=steps, trace=True)
        same = {"method": "block_diffusion", "block_size": 32, "threshold": 0.95}
        base = lm.generate(prompt_of(9), max_new_tokens=40, steps=steps, trace=True, **same)
        assert ours.method == "llada2"
        assert ours.trace == base.trace


@pytest.mark.parametrize(
    ("given", "steps"),
    [({}, 32), ({"minimal_topk": 4}, 16), ({"minimal_topk": 4, "steps": 10}, 10), ({"minimal_topk": 100}, 1)],
)
def test_minimal_topk_lowers_the_steps(given, steps):
    assert build("llada2", given).bind(family(0, block=32), 64).steps == steps


def test_official_names_mean_the_same():
    theirs = {"block_length": 8, "editing_threshold": 0.5, "num_to_transfer": 2, "eos_early_stop": False}
    ours = {"block_size": 8, "edit_threshold": 0.5, "min_commit": 2, "early_exit": False}
    assert build("llada2", {"editing": True} | theirs) == build("llada2", {"editing": True} | ours)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "static"}, "strategy does not go with editing: forwards fill by threshold"),
        ({"steps": 8}, "steps does not go with editing"),
        ({"select": "credit"}, "selection rules with a memory"),
    ],
)
def test_what_editing_has_no_use_for_is_refused(options, message):
    build("llada2", options)
    with pytest.raises(UnmaskError, match=message):
        build("llada2", {"editing": True} | options)


def test_a_model_with_token_shift_is_refused_by_name():
    with pytest.raises(UnmaskError, match="llada2: this dream model predicts the next position"):
        tiny("dream-tiny").generate([1, 2], method="llada2")


class Recorder:
    """A streamer that keeps what it got, and how often."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.puts = 0

    def put(self, value: Tensor) -> None:
        self.ids += value.flatten().tolist()
        self.puts += 1

    def end(self) -> None:
        self.puts += 100


def test_nothing_streams_before_it_is_final():
    lm, streamer = tiny("llada2-moe-tiny"), Recorder()
    result = lm.generate(prompt_of(9), method="llada2", max_new_tokens=31, streamer=streamer, **EDITING)
    assert streamer.ids == prompt_of(9) + result.ids
    blocks = -(-(9 + len(result.ids)) // 8) - 1
    assert streamer.puts == 1 + blocks + 100
