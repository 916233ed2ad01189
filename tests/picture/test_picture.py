"""Pictures of traces: what is drawn, that hostile text stays text, that they stand alone, that large runs fit."""

from __future__ import annotations

import json
import re
import time
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

import traces
from unmask.picture import html, svg
from unmask.picture.geometry import measure, nice
from unmask.picture.palette import DARK, LIGHT, shade
from unmask.picture.text import cut, markup, token_label, visible, width, wrap

SVG = "{http://www.w3.org/2000/svg}"


class Page(HTMLParser):
    """Elements with their attributes, and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inner: dict[str, list[str]] = {}
        self._at = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._at = tag
        self.inner.setdefault(tag, []).append("")

    def handle_data(self, data):
        if self._at:
            self.inner[self._at][-1] += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def cells(text: str) -> list[ElementTree.Element]:
    """The rectangles of fixed tokens."""
    root = ElementTree.fromstring(text)
    return [r for r in root.iter(f"{SVG}rect") if (r.get("class") or "").startswith("c ")]


def test_every_fixed_token_has_a_cell_where_and_when_it_was_fixed():
    trace = traces.small()
    geometry = measure(trace)
    found = {}
    for cell in cells(svg(trace)):
        column = round((float(cell.get("x", 0)) - geometry.gutter) / geometry.cell - 0.1)
        row = int((float(cell.get("y", 0)) - geometry.top) / geometry.row)
        found[column] = (row, cell.get("class"))
    assert found == {0: (1, "c none"), 1: (1, "c c7"), 2: (2, "c c0"), 3: (2, "c c5"), 4: (2, "c c7")}


def test_cells_and_windows_say_what_they_are():
    text = svg(traces.small())
    assert "boxes (id 1) at position 1, fixed by forward 2 (denoise), confidence 0.999" in text
    assert "no confidence of its own" in text
    assert "forward 3, commit: window 2 to 5, 4 tokens run, 3 fixed, 5 slots read, 4 stored" in text
    assert "forward 2: 1 read" in text and "forward 2: 4 stored" in text


def test_windows_span_their_positions():
    trace = traces.small()
    geometry, root = measure(trace), ElementTree.fromstring(svg(trace))
    windows = [r for r in root.iter(f"{SVG}rect") if (r.get("class") or "").startswith("w k-") and len(r)]
    starts = [(float(w.get("x", 0)) - 0.5, float(w.get("width", 0)) + 1) for w in windows]
    assert starts[1] == pytest.approx((geometry.x(-2), 4 * geometry.cell), abs=0.02)
    assert starts[2] == pytest.approx((geometry.x(2), 4 * geometry.cell), abs=0.02)
    assert starts[0][0] == 0 and 0 < starts[0][1] <= geometry.gutter


def test_counters_legend_and_description_are_there():
    for text in (svg(traces.small()), html(traces.small())):
        assert "forwards: 1 prefill + 1 denoise + 1 commit" in text
        assert "2.50" in text and "tokens per forward" in text
        assert "threshold 0.8" in text and "block size 4" in text
        assert "denoise: predicts open positions" in text and "draft: verifies drafts" not in text
        assert all(bound in text for bound in ("0.99", "0.999", "slots read"))
    root = ElementTree.fromstring(svg(traces.small()))
    assert root.get("role") == "img"
    texts = [(root.find(f"{SVG}{tag}").text or "") for tag in ("title", "desc")]  # type: ignore[union-attr]
    assert texts[0] == "toy · masked" and "5 tokens in 3 forwards" in texts[1]


@pytest.mark.parametrize("make", [svg, html])
def test_both_colour_schemes_are_styled(make):
    text = make(traces.small())
    assert "prefers-color-scheme:dark" in text
    assert LIGHT["denoise"] in text and DARK["denoise"] in text
    assert LIGHT.keys() == DARK.keys()


@pytest.mark.parametrize("make", [svg, html])
def test_nothing_is_loaded_from_anywhere(make):
    text = make(traces.large(60)).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|url\(|@import|<link|<img|<iframe| src=| href=", text)


def test_hostile_text_stays_text_on_the_page():
    trace = traces.large(60)
    page = Page(html(trace))
    assert [s.get("type") for s in page.named("script")] == ["application/json", None]
    assert not [a for _, attrs in page.elements for a in attrs if a.startswith("on")]
    data = json.loads(page.inner["script"][0])
    shown = {text for step in data["steps"] for text in step["text"]}
    assert {"</script><script>alert(1)</script>", '" onload="x', "@@DATA@@", "[202E]evil", "[1B][31m", "\n"} <= shown
    assert len(data["steps"]) == len(trace.steps)


def test_the_page_allows_its_own_script_and_style_alone():
    text = html(traces.large(60))
    page = Page(text)
    policy = next(m["content"] for m in page.named("meta") if m.get("http-equiv")) or ""
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        own = text[text.rindex(f"<{tag}>") + len(tag) + 2 : text.rindex(f"</{tag}>")]
        digest = b64encode(sha256(own.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert not [attrs for _, attrs in page.elements if "style" in attrs]


def test_the_page_has_a_player_that_can_be_operated_and_a_table():
    page = Page(html(traces.small()))
    slider = next(i for i in page.named("input"))
    assert (slider["min"], slider["max"], slider["aria-label"]) == ("1", "3", "Forward")
    assert all(b.get("aria-label") or b.get("id") == "play" for b in page.named("button"))
    assert len([c for c in page.named("span") if (c.get("class") or "").split()[:1] == ["t"]]) == traces.small().length
    assert len(page.named("tr")) == 1 + 3
    assert page.named("html")[0]["lang"] == "en" and any(a.get("role") == "img" for _, a in page.elements)


def test_hostile_text_gives_well_formed_svg():
    root = ElementTree.fromstring(svg(traces.large(60)))
    assert not list(root.iter(f"{SVG}script"))
    titles = " ".join(t.text or "" for t in root.iter(f"{SVG}title"))
    assert "</script><script>alert(1)</script>" in titles and "[202E]evil" in titles


def test_one_token_is_enough():
    trace = traces.trace([traces.step(0, "prefill", -3, 3, {0: 0})], ["yes"], [0])
    assert len(cells(svg(trace))) == 1 and "no cache is used" in svg(trace)
    assert "yes" in html(trace)


def test_a_large_run_stays_usable():
    trace = traces.large()
    assert trace.length >= 1200 and len(trace.steps) > 300
    begun = time.perf_counter()
    drawn, page = svg(trace), html(trace)
    assert time.perf_counter() - begun < 10
    assert len(drawn) < 700_000 and len(page) < 1_200_000
    size = [float(ElementTree.fromstring(drawn).get(side, 0)) for side in ("width", "height")]
    assert size[0] < 5000 and size[1] < 2000
    assert len(cells(drawn)) == 1200


@pytest.mark.parametrize("tokens", [1, 5, 57, 200, 700])
def test_columns_and_rows_fit_and_are_never_too_thin(tokens):
    steps = [traces.step(i, "denoise", i, 1, {i: 0}) for i in range(tokens)]
    geometry = measure(traces.trace(steps, ["a"], [0] * tokens))
    assert 3 <= geometry.cell <= 24 and 3 <= geometry.row <= 24
    assert geometry.x(tokens) <= geometry.width <= max(900, 3 * tokens + 200)
    assert geometry.x(0) == geometry.gutter and geometry.x(-3) == 0


def test_the_part_of_a_long_prompt_that_no_window_reaches_is_pressed_together():
    steps = [traces.step(0, "prefill", -100, 96, {}), traces.step(1, "denoise", -4, 8, {0: 0})]
    geometry = measure(traces.trace(steps, ["a"], [0], prompt_ids=list(range(100))))
    assert geometry.ahead == 4 and geometry.x(-100) == 0
    assert geometry.x(-4) == geometry.fold == 40
    assert geometry.gutter - geometry.x(-4) == pytest.approx(4 * geometry.cell)


def test_shades_follow_the_confidence():
    assert [shade(c) for c in (None, 0.0, 0.5, 0.949, 0.95, 0.9989, 0.999, 1.0)] == [
        "none", "c0", "c1", "c4", "c5", "c6", "c7", "c7",
    ]  # fmt: skip


def test_nice_numbers():
    assert [nice(x) for x in (0.1, 1, 1.5, 3, 7, 12, 60, 300)] == [1, 1, 2, 5, 10, 20, 100, 500]


def test_signs_stand_for_what_cannot_be_seen():
    assert visible("a\nb\tc\x07\x9b\u202e\ud800\ufffe\u200bd") == "a⏎b⇥c[07][9B][202E]\ufffd\ufffd[200B]d"
    family = "\U0001f469\u200d\U0001f467"
    assert visible(family) == family
    assert [token_label(t) for t in (" boxes", " ", "\n", "")] == ["boxes", "␣", "⏎", ""]
    assert markup('<a href="x">\n&') == "&lt;a href=&quot;x&quot;&gt;\n&amp;"


def test_text_is_cut_and_wrapped():
    assert cut("boxes", 5) == "boxes" and cut("boxes", 4) == "box…"
    lines = wrap("one two three four five six seven eight " * 3 + "x" * 200, 10, 120, 3)
    assert len(lines) == 3 and lines[-1].endswith("…")
    assert all(width(line, 10) <= 120 for line in lines)
    assert wrap("", 10, 100, 2) == [""]
    assert width("雪", 10) > width("a", 10) > width("\u0301", 10) == 0
