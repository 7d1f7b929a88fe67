"""How figures look: one palette for light and dark, one font size, and labels that do not overlap."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cbook import STEP_LOOKUP_MAP
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from reports.data.safety import label_text

INK, MUTED, GRID, SURFACE = "#1d2733", "#5a6675", "#dbe1e8", "#fefefe"
PALETTE = ("#1f6fb2", "#c4501b", "#16855f", "#8a4fae", "#a8791a", "#b8336a", "#2b8a9e", "#6b6b6b")
"""Each has a contrast of at least 3:1 on white; the page replaces them by lighter ones in its dark theme."""
ACCENT, QUIET = PALETTE[1], PALETTE[0]
SIZE = (4.8, 3.8)
MANY = 300
"""With more points than this a figure's marks are stored as pixels, so that the page stays small."""
LABEL, LABELS = "label", 60
"""The gid of a point's label, and the most labels that are tried."""

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
    """The style of every figure, restored to what it was afterwards."""
    with mpl.rc_context(), sns.axes_style("ticks"), sns.color_palette(PALETTE):
        mpl.rcParams.update(_RC)
        yield


def new_figure(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    """A figure that pyplot does not manage, so that none has to be closed; size in inches."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def nothing_to_show(why: str) -> Figure:
    """A figure that says why it is empty."""
    figure, axes = new_figure((SIZE[0], 1.2))
    axes.axis("off")
    axes.text(0.5, 0.5, why, ha="center", va="center", color=MUTED)
    return figure


def as_picture(image: NDArray[Any]) -> NDArray[np.uint8]:
    """A C×H×W image of 0 to 255 as matplotlib shows it: H×W×3, or H×W of a single channel."""
    picture = np.moveaxis(np.clip(image, 0, 255).astype(np.uint8), 0, -1)
    return np.array(picture if picture.shape[-1] == 3 else picture[..., 0])


def picture_sheet(images: Iterable[NDArray[Any]], titles: Sequence[str], columns: int = 4) -> Figure:
    """Images (C×H×W) in a grid, each under its title of one line or two; ``figure.axes`` are theirs, in order."""
    columns = min(len(titles), columns)
    rows = math.ceil(len(titles) / columns)
    figure, first = new_figure((4.8, 0.3 + 6.2 / max(columns, 4) * rows))
    first.remove()
    for k, (image, title) in enumerate(zip(images, titles, strict=True)):
        axes = figure.add_subplot(rows, columns, k + 1)
        axes.imshow(
            as_picture(image), extent=(0, image.shape[-1], image.shape[-2], 0), cmap="gray", interpolation="nearest"
        )
        axes.set_title(title, fontsize=8.5, color=INK)
        axes.axis("off")
    return figure


def place_labels(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    names: Sequence[str],
    first: set[int],
    radii: Mapping[int, float] | None = None,
) -> None:
    """Label points where there is room, those of ``first`` before the others; a label that would overlap is left out.

    Greedy over ten places around each point. A label keeps clear of other labels, of all points, of the legend and of
    the axes' edge, and where it can of lines and error bars. ``radii`` are those of points that are larger than usual,
    in points (1/72 inch), by index.
    """
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    points = axes.transData.transform(list(zip(x, y, strict=True)))
    radius = np.array([(radii or {}).get(k, RADIUS) for k in range(len(names))])[:, None]
    inside = axes.get_window_extent()
    scale = figure.dpi / 72
    taken = np.concatenate([points - radius * scale, points + radius * scale], axis=1)
    if (legend := axes.get_legend()) is not None:
        taken = np.vstack([taken, legend.get_window_extent().extents])
    lines = _line_boxes(axes)
    order = sorted(range(len(names)), key=lambda k: (k not in first, -y[k]))
    for k in order[:LABELS]:
        label = axes.annotate(
            label_text(names[k]), (x[k], y[k]), (0, 0), textcoords="offset points", fontsize=9, color=INK
        )
        label.set_gid(LABEL)
        extent = label.get_window_extent()
        free: list[tuple[int, dict[str, Any], tuple[float, float, float, float]]] = []
        for right, up, ha, va in _PLACES:
            dx, dy = (right * (radius[k, 0] + 2), up * (radius[k, 0] + 2))
            left = points[k][0] + dx * scale - {"left": 0, "center": 0.5, "right": 1}[ha] * extent.width
            low = points[k][1] + dy * scale - {"bottom": 0, "center": 0.5, "top": 1}[va] * extent.height
            box = (left, low, left + extent.width, low + extent.height)
            out = left < inside.x0 or box[2] > figure.bbox.x1 or low < inside.y0 or box[3] > inside.y1
            if not out and not _overlaps(box, taken).any():
                free.append((int(_overlaps(box, lines).sum()), {"position": (dx, dy), "ha": ha, "va": va}, box))
        if free:
            _, place, box = min(free, key=lambda found: found[0])
            label.set(**place)
            taken = np.vstack([taken, box])
        else:
            label.remove()


def _overlaps(box: tuple[float, float, float, float], boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of the boxes (left, bottom, right, top) overlap the first."""
    apart = (boxes[:, 2] <= box[0]) | (box[2] <= boxes[:, 0]) | (boxes[:, 3] <= box[1]) | (box[3] <= boxes[:, 1])
    return np.asarray(~apart)


def _line_boxes(axes: Axes) -> NDArray[np.float64]:
    """A box around each segment of the lines and error bars, all of which are horizontal or vertical, in pixels."""
    steps = [
        (line, np.column_stack(STEP_LOOKUP_MAP[line.get_drawstyle()](*line.get_data())).astype(float))
        for line in axes.lines
        if line.get_linestyle() != "None"
    ]
    paths = [line.get_transform().transform(corners) for line, corners in steps]
    bars = (bar for bar in axes.collections if isinstance(bar, LineCollection))
    paths += [bar.get_transform().transform(segment) for bar in bars for segment in bar.get_segments()]
    ends = [(path[:-1], path[1:]) for path in paths if len(path) > 1]
    boxes = [np.hstack([np.minimum(*pair) - 1, np.maximum(*pair) + 1]) for pair in ends]
    return np.vstack([np.empty((0, 4)), *boxes])


RADIUS = 3.0
"""Of a point in a figure, in points (1/72 inch)."""

_PLACES = (
    (1, 0, "left", "center"),
    (0, 1, "center", "bottom"),
    (-1, 0, "right", "center"),
    (0, -1, "center", "top"),
    (0.8, 0.8, "left", "bottom"),
    (0.8, -0.8, "left", "top"),
    (-0.8, 0.8, "right", "bottom"),
    (-0.8, -0.8, "right", "top"),
    (0, 2.4, "center", "bottom"),
    (0, -2.4, "center", "top"),
)
"""Where a label may be: its offset from the point in units of the point's radius and a gap, and its alignment."""
