"""How figures look: one palette for light and dark, one font size, and labels that do not overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from reports.safety import label_text

INK, MUTED, GRID, SURFACE = "#1d2733", "#5a6675", "#dbe1e8", "#fefefe"
PALETTE = ("#1f6fb2", "#c4501b", "#16855f", "#8a4fae", "#a8791a", "#b8336a", "#2b8a9e", "#6b6b6b")
"""Each has a contrast of at least 3:1 on white; the page swaps them for lighter ones on a dark ground."""
ACCENT, QUIET = PALETTE[1], PALETTE[0]
SIZE = (4.8, 3.8)
MANY = 300
"""Above so many points a figure's marks are stored as pixels: the page stays small."""
LABELS = 60

_RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "zoobench",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10.5,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "figure.facecolor": SURFACE,
    "axes.facecolor": SURFACE,
    "axes.unicode_minus": True,
}


@contextmanager
def figure_style() -> Iterator[None]:
    """The look of every figure, and nothing of it left behind afterwards."""
    with mpl.rc_context(), sns.axes_style("ticks"), sns.color_palette(PALETTE):
        mpl.rcParams.update(_RC)
        yield


def new_figure(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    """A figure of its own, unknown to pyplot, so that nothing has to be closed; size in inches."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def nothing_to_show(why: str) -> Figure:
    """A figure that says why it is empty."""
    figure, axes = new_figure((SIZE[0], 1.2))
    axes.axis("off")
    axes.text(0.5, 0.5, why, ha="center", va="center", color=MUTED)
    return figure


def place_labels(axes: Axes, x: Sequence[float], y: Sequence[float], names: Sequence[str], first: set[int]) -> None:
    """Label points where there is room, those of ``first`` before the others; a label that would overlap is left out.

    Greedy over eight places around each point; a label keeps clear of other labels, points and the axes' edge.
    """
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    points = axes.transData.transform(list(zip(x, y, strict=True)))
    inside = axes.get_window_extent()
    scale = figure.dpi / 72
    taken = np.concatenate([points - 3 * scale, points + 3 * scale], axis=1)
    order = sorted(range(len(names)), key=lambda k: (k not in first, -y[k]))
    for k in order[:LABELS]:
        label = axes.annotate(
            label_text(names[k]), (x[k], y[k]), (0, 0), textcoords="offset points", fontsize=9, color=INK
        )
        label.set_gid("label")
        extent = label.get_window_extent()
        for dx, dy, ha, va in _PLACES:
            left = points[k][0] + dx * scale - {"left": 0, "center": 0.5, "right": 1}[ha] * extent.width
            low = points[k][1] + dy * scale - {"bottom": 0, "center": 0.5, "top": 1}[va] * extent.height
            right, high = left + extent.width, low + extent.height
            if left < inside.x0 or right > figure.bbox.x1 or low < inside.y0 or high > inside.y1:
                continue
            over = (left < taken[:, 2]) & (taken[:, 0] < right) & (low < taken[:, 3]) & (taken[:, 1] < high)
            over[k] = False  # its own point
            if not over.any():
                label.set(position=(dx, dy), ha=ha, va=va)
                taken = np.vstack([taken, (left, low, right, high)])
                break
        else:
            label.remove()


_PLACES = (
    (5, 0, "left", "center"),
    (0, 5, "center", "bottom"),
    (-5, 0, "right", "center"),
    (0, -5, "center", "top"),
    (4, 4, "left", "bottom"),
    (4, -4, "left", "top"),
    (-4, 4, "right", "bottom"),
    (-4, -4, "right", "top"),
    (0, 12, "center", "bottom"),
    (0, -12, "center", "top"),
)
