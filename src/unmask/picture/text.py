"""Text in markup: escaped, with a visible sign for every character that is none, cut and wrapped by estimated width."""

from __future__ import annotations

from html import escape
from unicodedata import category, combining, east_asian_width

NEW_LINE, TAB = "⏎", "⇥"


def visible(text: str) -> str:
    """Text in which control characters, marks of direction and halves of characters are signs of their own."""
    return "".join(map(_sign, text))


def _sign(char: str) -> str:
    code = ord(char)
    if char == "\n":
        return NEW_LINE
    if char == "\t":
        return TAB
    kind = category(char)
    if kind == "Cs" or code & 0xFFFE == 0xFFFE:
        return "\ufffd"
    # Marks of direction would reorder what stands around them; joiners inside emoji are harmless.
    if kind in ("Cc", "Zl", "Zp") or (kind == "Cf" and char not in "\u200c\u200d" and not 0xE0020 <= code <= 0xE007F):
        return f"[{code:02X}]"
    return char


def markup(text: str) -> str:
    """Visible text, escaped for elements and quoted attributes of HTML and SVG; new lines stay."""
    return "\n".join(escape(visible(line), quote=True) for line in text.split("\n"))


def token_label(piece: str) -> str:
    """A token as one short visible word: its leading space goes, spaces alone and new lines get signs."""
    if piece and not piece.strip(" "):
        return "␣"
    return visible(piece.strip(" "))


def width(text: str, size: float) -> float:
    """About how wide text is in a sans-serif of this size."""
    return size * sum(_ems(char) for char in text)


def _ems(char: str) -> float:
    if combining(char) or category(char) in ("Mn", "Cf"):
        return 0.0
    if east_asian_width(char) in "WF":
        return 1.05
    return 0.72 if char.isupper() or char in "mw%@#+=" else 0.34 if char in " .,:;'|!il()[]" else 0.62


def cut(text: str, most: int) -> str:
    """At most so many characters, "…" where some are gone."""
    return text if len(text) <= most else text[: max(most - 1, 0)] + "…"


def wrap(text: str, size: float, room: float, lines: int) -> list[str]:
    """Lines of at most `room`; what goes beyond `lines` of them ends in "…"."""
    out: list[str] = [""]
    for word in visible(" ".join(text.split())).split(" "):
        for part in _pieces(word, size, room):
            joined = f"{out[-1]} {part}" if out[-1] else part
            if width(joined, size) <= room:
                out[-1] = joined
            else:
                out.append(part)
        if len(out) > lines:
            kept = out[lines - 1]
            while kept and width(kept + "…", size) > room:
                kept = kept[:-1]
            return [*out[: lines - 1], kept + "…"]
    return out


def _pieces(word: str, size: float, room: float) -> list[str]:
    """A word, cut where it is wider than a line."""
    parts = [""]
    for char in word:
        if parts[-1] and width(parts[-1] + char, size) > room:
            parts.append("")
        parts[-1] += char
    return parts
