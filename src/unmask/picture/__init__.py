"""Pictures of a trace: an SVG, or an HTML page with a player. Both stand alone: no network, no fonts, no libraries."""

from unmask.picture.html import html
from unmask.picture.svg import svg

__all__ = ["html", "svg"]
