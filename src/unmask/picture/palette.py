"""Colours, light and dark, and the style sheet of a chart. Written out rather than as CSS variables, which viewers
other than browsers do not know."""

from __future__ import annotations

LIGHT = {
    "bg": "#ffffff",
    "panel": "#f5f6f8",
    "ink": "#1a2130",
    "muted": "#596273",
    "line": "#dfe3e9",
    "stripe": "#f7f8fa",
    "trail": "#efecf5",
    "prefill": "#8a93a3",
    "denoise": "#2f7ae5",
    "window": "#0b95a8",
    "commit": "#1f9d63",
    "refresh": "#8350e0",
    "draft": "#d6468c",
    "read": "#b9c2d0",
    "stored": "#4b5668",
    "none": "#a3abb8",
    "c0": "#ffd592",
    "c1": "#ffb866",
    "c2": "#fb9550",
    "c3": "#ef7046",
    "c4": "#d94f54",
    "c5": "#b33a6e",
    "c6": "#7f2f80",
    "c7": "#472673",
}
DARK = {
    "bg": "#11141a",
    "panel": "#1a1f28",
    "ink": "#e7eaf0",
    "muted": "#9ba5b5",
    "line": "#2a313d",
    "stripe": "#161a22",
    "trail": "#23202d",
    "prefill": "#8a93a3",
    "denoise": "#5b9bf5",
    "window": "#2bb8ca",
    "commit": "#3fbf82",
    "refresh": "#a582f2",
    "draft": "#ee72ab",
    "read": "#4a5466",
    "stored": "#b4bdcc",
    "none": "#6a7383",
    "c0": "#5d3288",
    "c1": "#80378c",
    "c2": "#a64186",
    "c3": "#c85278",
    "c4": "#e36c64",
    "c5": "#f48b59",
    "c6": "#fbb169",
    "c7": "#ffdd94",
}
BOUNDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)  # where the next colour begins: most confidences are close to 1
KINDS = {
    "prefill": "runs the prompt",
    "denoise": "predicts open positions, exact keys",
    "window": "predicts against keys that may be stale",
    "commit": "makes keys permanent, may predict too",
    "refresh": "recomputes approximate keys",
    "draft": "verifies drafts",
}
SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif"


def shade(confidence: float | None) -> str:
    """The colour's name for a confidence."""
    return "none" if confidence is None else f"c{sum(confidence >= bound for bound in BOUNDS)}"


def scale() -> list[tuple[str, str]]:
    """Names of the colours from unsure to sure, and where each begins."""
    return [("c0", "0"), *((f"c{i + 1}", f"{bound:g}") for i, bound in enumerate(BOUNDS))]


def chart_css() -> str:
    """The style sheet of chart parts."""
    text = f"svg text{{font-family:{SANS}}}.tn{{font-variant-numeric:tabular-nums}}.b{{font-weight:600}}"
    window = ".w{fill-opacity:.17;stroke-width:1;stroke-opacity:.55}.w.thin{stroke:none;fill-opacity:.3}"
    return text + window + _colours(LIGHT) + f"@media (prefers-color-scheme:dark){{{_colours(DARK)}}}"


def variables() -> str:
    """The same colours as CSS variables, for a page."""

    def block(colours: dict[str, str]) -> str:
        fills = ("none", *(name for name, _ in scale()))
        ink = "".join(f"--on-{name}:{_ink(colours[name])};" for name in fills)
        return ":root{" + "".join(f"--{name}:{value};" for name, value in colours.items()) + ink + "}"

    return block(LIGHT) + f"@media (prefers-color-scheme:dark){{{block(DARK)}}}"


def _colours(p: dict[str, str]) -> str:
    rules = [f".{name}{{fill:{p[name]}}}" for name in ("bg", "panel", "stripe", "trail", "read", "stored")]
    rules.append(f"text.i{{fill:{p['ink']}}}text.m{{fill:{p['muted']}}}")
    rules.append(f".line{{stroke:{p['line']}}}.edge{{stroke:{p['muted']}}}")
    rules += [f".k-{kind}{{fill:{p[kind]}}}.w.k-{kind}:not(.thin){{stroke:{p[kind]}}}" for kind in KINDS]
    rules += [f".{name}{{fill:{p[name]}}}" for name in ("none", *(name for name, _ in scale()))]
    return "".join(rules)


def _ink(colour: str) -> str:
    """Black or white, whichever is easier to read on a colour."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#ffffff" if 1.05 / (light + 0.05) > (light + 0.05) / 0.05 else "#000000"
