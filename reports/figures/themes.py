"""A figure in the page's light or dark theme, as a picture of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from matplotlib.artist import Artist
from matplotlib.collections import Collection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from reports.figures.style import GRID, INK, MUTED, PALETTE, SURFACE, figure_style

Theme = Literal["light", "dark"]

DARK: Mapping[str, str] = {INK: "#e6ebf1", MUTED: "#a3afbd", GRID: "#2b3540", SURFACE: "#12171e"} | dict(
    zip(
        PALETTE,
        ("#6db3f2", "#f08a5d", "#4cc38a", "#c193e0", "#d9b25c", "#f07fa8", "#67c7d8", "#a9b0b8"),
        strict=True,
    )
)
"""The dark theme's colour for each of ours, as in the page's style sheet."""

_COLOURS = (
    (Text, ("color",)),
    (Line2D, ("color", "markerfacecolor", "markeredgecolor")),
    (Patch, ("facecolor", "edgecolor")),
    (Collection, ("facecolor", "edgecolor")),
)


def darken(figure: Figure) -> None:
    """Replace our colours by the dark theme's, in place; colours that stand for values, and pictures, stay."""
    with figure_style():  # in which a colour such as C0 is ours
        for artist in figure.findobj():
            for kind, names in _COLOURS:
                if isinstance(artist, kind) and getattr(artist, "get_array", lambda: None)() is None:
                    for name in names:
                        _replace(artist, name)


def _replace(artist: Artist, name: str) -> None:
    colours: Any = getattr(artist, f"get_{name}")()
    if isinstance(artist, Collection):
        found = [to_hex(colour, keep_alpha=True) for colour in colours]
    elif isinstance(colours, str) and colours == "none":
        return
    else:
        found = [to_hex(colours, keep_alpha=True)]
    replaced = [DARK.get(colour[:7], colour[:7]) + colour[7:] for colour in found]
    if replaced != found:
        getattr(artist, f"set_{name}")(replaced if isinstance(artist, Collection) else replaced[0])
