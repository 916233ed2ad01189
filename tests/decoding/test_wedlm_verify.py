"""WeDLM's self-verified mode: the text of autoregressive decoding of the same weights, in no more forwards."""

from __future__ import annotations

from math import ceil, inf
from typing import Any

import pytest
import torch
from oracle import EOS, MASK, VOCAB, Oracle
from torch import Tensor

from many_models import ManyModels
from random_models import random_lm, random_prompts
from unmask.decoding import build
from unmask.decoding.forward import Facts
from unmask.decoding.loop import Row, decode
from unmask.decoding.sampling import Draw
from unmask.models.families import Family

FAMILY = Family("wedlm", "causal", "causal", 0, True, VOCAB, MASK, (EOS,))
TEXT = [(i * 7 + 3) % 60 for i in range(300)]


@pytest.mark.parametrize("window", range(1, 9))
def test_verified_text_is_autoregressive_text_in_no_more_forwards(window):
    """25 random models under every threshold; the rows sample or not, under filters of their own."""
    models, saved = ManyModels(100 * window, 25, "wedlm", layers=1 + window % 2), 0
    draws = {
        "temperature": [0.0, 0.3, 0.0, 0.8, 1.3] * 5,
        "top_k": [0] * 10 + [6] * 15,
        "top_p": [1.0, 0.8] * 12 + [1.0],
    }
    for number, tau in enumerate((None, 0.3, 1.0, 2.0, inf)):
        batch, new = random_prompts(10 * window + number, 25), 1 + (window + 3 * number) % 8
        common: dict[str, Any] = draws | {"early_exit": bool(number % 3)}
        plain, long = models.texts("autoregressive", batch, new, **common)
        options = {"window_size": window, "entropy_threshold": tau, "verify": True}
        checked, short = models.texts("wedlm", batch, new, **common, **options)
        assert checked == plain
        for a, b in zip(long, short):
            assert sum(b.counters.forwards.values()) <= sum(a.counters.forwards.values())
            saved += sum(a.counters.forwards.values()) - sum(b.counters.forwards.values())
    assert saved > 0


class Drafter(Oracle):
    """Real tokens speak of the next position as the text does, masks of their own, and wrongly at `wrong`."""

    def __init__(self, text: list[int], wrong: set[int], sure: list[float] | None = None) -> None:
        super().__init__(text, 1, sure)
        self.draft = torch.tensor([(t + 1) % 60 if p in wrong else t for p, t in enumerate(text)])

    def __call__(self, tokens: Tensor, positions: Tensor, attend: Any, rows: Tensor) -> Tensor:
        self.seen.append(tokens.clone())
        at, masked = positions.gather(1, rows), tokens.gather(1, rows) == MASK
        said = torch.where(masked, self.draft[at], self.text[(at + 1).clamp(max=len(self.text) - 1)])
        p = self.sure[at]
        logits = torch.log((1 - p) / (VOCAB - 1))[..., None].expand(*at.shape, VOCAB).clone()
        return logits.scatter_(-1, said[..., None], torch.log(p)[..., None])


def drafted(oracle: Drafter, lengths: list[int], new: int, **options: Any) -> list[Row]:
    n = len(lengths)
    draw = Draw(torch.zeros(n), torch.ones(n), torch.zeros(n).long(), torch.zeros(n).long())
    method = build("wedlm", {"verify": True} | options).bind(FAMILY, new)
    prompts = [oracle.text[:k].tolist() for k in lengths]
    return decode(oracle, method, prompts, facts=Facts(MASK, (EOS,), 0), draw=draw, new_tokens=new, trace=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(("window", "new"), [(1, 9), (2, 9), (8, 33), (8, 34), (16, 100)])
def test_right_drafts_give_a_window_of_tokens_a_forward(window, new):
    rows = drafted(Drafter(TEXT, set()), [1, 5, 40], new, window_size=window, entropy_threshold=inf)
    for row, n in zip(rows, [1, 5, 40]):
        assert row.canvas == TEXT[n : n + new]
        assert row.counters.decode_forwards == ceil((new - 1) / window)  # the prefill gives the first token


def test_a_wrong_draft_costs_the_drafts_behind_it_and_never_the_text():
    (row,) = drafted(Drafter(TEXT, {14, 30}), [10], 24, window_size=8, entropy_threshold=inf)
    assert row.canvas == TEXT[10:34]
    # Position 4 is corrected by its own row; the next forward has nothing to check but the last token.
    assert [s.positions for s in row.trace[:4]] == [[0], [1, 2, 3, 4], [5], [6, 7, 8, 9, 10, 11, 12, 13]]
    always = drafted(Drafter(TEXT, set(range(300))), [10], 24, window_size=8, entropy_threshold=inf)[0]
    assert always.canvas == TEXT[10:34]
    assert always.counters.decode_forwards == 23  # as autoregressive decoding


def test_drafts_behind_a_gap_wait_until_a_row_fills_it():
    sure = [0.99] * 300
    sure[13] = 0.05  # its mask is not filled, its neighbours are
    (row,) = drafted(Drafter(TEXT, set(), sure), [10], 20, window_size=8, entropy_threshold=0.8)
    assert row.canvas == TEXT[10:30]
    # 11 and 12 are right, their row gives 13; the drafts behind were kept and hold.
    assert [s.positions for s in row.trace[:3]] == [[0], [1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11]]


def test_drafts_are_not_text():
    """No position is closed before its row has spoken, and streamers get exactly the verified text."""

    class Listener:
        def __init__(self) -> None:
            self.parts: list[list[int]] = []
            self.drafts = 0

        def put(self, value: Tensor) -> None:
            self.parts.append(value.flatten().tolist())

        def put_draft(self, value: Tensor) -> None:
            self.drafts += 1

        def end(self) -> None: ...

    lm, listener = random_lm(13, "wedlm"), Listener()
    result = lm.generate(
        [5, 6, 7], method="wedlm", max_new_tokens=20, verify=True, entropy_threshold=inf, streamer=listener, trace=True
    )
    plain = lm.generate([5, 6, 7], method="autoregressive", max_new_tokens=20)
    assert [t for part in listener.parts[1:] for t in part] == result.ids == plain.ids
    assert listener.drafts == 0
    seen = [p for s in result.trace for p in s.positions]
    assert seen == list(range(len(seen)))


def test_verified_decoding_ends_at_an_end_token_wherever_it_arrives():
    for where in range(11, 28, 3):
        said = TEXT[:where] + [EOS] + TEXT[where + 1 :]
        for wrong in (set(), {where}, {where - 1}):
            (row,) = drafted(Drafter(said, wrong), [10], 40, window_size=8, entropy_threshold=inf)
            assert row.canvas[: where - 9] == said[10 : where + 1]
