"""The live view: what is drawn, how much of it, and that nothing stays."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from unmask.cli.view import View, clean
from unmask.detokenize import Detokenizer

MASK = 99


def words(ids: list[int]) -> str:
    return "".join(f" w{i}" for i in ids)


def view(width: int = 40, height: int = 8, titles: tuple[str, ...] = ("",), **more: bool) -> View:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system="standard")
    return View(console, words, MASK, titles, **more)


def drawn(shown: View) -> str:
    console = Console(file=io.StringIO(), width=shown.console.width, height=shown.console.height)
    console.print(shown._render())
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_final_text_drafts_and_open_positions_are_told_apart() -> None:
    shown = view()
    pane = shown.panes[0]
    pane.put(torch.tensor([[1, 2, 3]]))  # the prompt is not drawn
    pane.put(torch.tensor([5]))
    pane.put_draft(torch.tensor([MASK, 7, 8, MASK, 9]))
    line = pane.lines(shown.console, 40, 5)[0]
    assert line.plain == " w5░ w7 w8░ w9"
    assert [line.plain[s.start : s.end] for s in line.spans if "cyan" in str(s.style)] == [" w7 w8", " w9"]
    assert pane.decided == 4


def test_a_draft_shrinks_as_its_head_becomes_final() -> None:
    pane = (shown := view()).panes[0]
    pane.put(torch.tensor([[1]]))
    pane.put_draft(torch.tensor([MASK, 7]))
    pane.put(torch.tensor([6, 7]))
    assert pane.lines(shown.console, 40, 5)[0].plain == " w6 w7"
    pane.end()
    assert pane.ended


@pytest.mark.parametrize("width", [7, 40, 200])
@pytest.mark.parametrize("height", [4, 10])
@pytest.mark.parametrize("count", [1, 2, 30])
def test_the_drawing_fits_any_terminal(width: int, height: int, count: int) -> None:
    for side_by_side in (False, True):
        shown = view(width, height, tuple(f"text {i}" for i in range(count)), side_by_side=side_by_side)
        for pane in shown.panes:
            pane.put(torch.tensor([[1]]))
            pane.put(torch.arange(0, 90))
            pane.put_draft(torch.tensor([MASK, 3] * 40))
        lines = drawn(shown).splitlines()
        assert len(lines) <= height
        assert all(len(line) <= width for line in lines)


def test_the_end_of_a_long_text_is_shown() -> None:
    shown = view(20, 6)
    shown.panes[0].put(torch.tensor([[1]]))
    shown.panes[0].put(torch.arange(0, 98))
    assert "w97" in drawn(shown) and "w0" not in drawn(shown).split()


def test_the_cursor_comes_back_even_after_an_interruption() -> None:
    shown = view()
    with pytest.raises(KeyboardInterrupt), shown:
        shown.panes[0].put(torch.tensor([[1]]))
        raise KeyboardInterrupt
    written = shown.console.file.getvalue()  # type: ignore[attr-defined]
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


def test_control_characters_never_reach_the_terminal() -> None:
    assert clean("a\x1b[2Jb\rc\x9b\td\n") == "a[2Jbc    d\n"


def test_pieces_join_to_the_whole_text_even_inside_characters() -> None:
    text = "naïve café, 雪と🙂🙂 done"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=270, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(["so it is done"], trainer)
    ids = tokenizer.encode(text).ids
    detokenizer = Detokenizer(tokenizer.decode)
    pieces = [detokenizer.push([i]) for i in ids]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + detokenizer.flush() == text
    assert len(ids) > len([p for p in pieces if p])
