"""The figure of `zoobench history`."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reports.data.change_points import MIN_SERIES
from reports.data.history import change_text, is_ratio
from reports.data.metrics import metric
from reports.data.safety import label_text
from reports.figures.style import ACCENT, MUTED, QUIET, figure_style, nothing_to_show

MAX_PANELS = 6


def plot_history(
    points: pd.DataFrame, steps: pd.DataFrame, key: str = "throughput_img_per_s", title: str = ""
) -> Figure:
    """One panel per series: its records in order of time, the levels between the steps, and each step's commit.

    A hollow mark is a record that was disturbed; bars are a record's own 95% interval. Of more than six series the
    longest are shown, and the figure says so.
    """
    with figure_style():
        if points.empty:
            return nothing_to_show("No record has this metric.")
        lengths = points.series.value_counts()
        shown = [series for series in points.series.unique() if series in lengths.index[:MAX_PANELS]]
        figure = Figure(figsize=(7.2, 0.6 + 2.7 * len(shown)), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
        for series, axes in zip(shown, panels, strict=True):
            own = points[points.series == series].reset_index(drop=True)
            _panel(axes, own, steps[steps.series == series], key)
            axes.set_title(label_text(series, 90), loc="left")
        panels[-1].set_xlabel("records, in order of time")
        hidden = len(lengths) - len(shown)
        note = f" ({hidden} shorter series not shown)" if hidden else ""
        figure.suptitle(label_text(title or metric(key).label, 80) + note, fontsize=11)
    return figure


def _panel(axes: Axes, own: pd.DataFrame, steps: pd.DataFrame, key: str) -> None:
    m = metric(key)
    values = own.value * m.scale
    low, high = ((own.value - own.low) * m.scale).clip(lower=0), ((own.high - own.value) * m.scale).clip(lower=0)
    axes.errorbar(own.index, values, yerr=[low, high], fmt="none", ecolor=QUIET, elinewidth=0.9, alpha=0.6, zorder=2)
    quiet = ~own.disturbed
    marks = {"ax": axes, "s": 30, "zorder": 3, "edgecolor": QUIET}
    if quiet.any():
        sns.scatterplot(x=own.index[quiet], y=values[quiet], color=QUIET, label="record", **marks)
    if (~quiet).any():
        sns.scatterplot(x=own.index[~quiet], y=values[~quiet], facecolor="none", label="disturbed record", **marks)
    ends = [0, *sorted(steps["index"]), len(own)]
    for low_end, high_end in itertools.pairwise(ends):
        part = own.value[low_end:high_end]
        level = math.exp(np.log(part).mean()) if is_ratio(key) else float(part.mean())
        label = "level" if low_end == 0 else None
        axes.plot([low_end - 0.4, high_end - 0.6], [level * m.scale] * 2, color=MUTED, lw=1.4, zorder=1, label=label)
    for _, step in steps.iterrows():
        axes.axvline(step["index"] - 0.5, color=ACCENT, lw=1.2, zorder=1)
        written = f"{label_text(str(step['commit'])[:9] or 'no commit')}\n{change_text(step, key).partition(' ')[0]}"
        axes.annotate(
            written, (step["index"] - 0.5, 1), (3, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
            va="top", color=ACCENT, fontsize=9,
        )  # fmt: skip
    axes.margins(y=0.25)
    axes.set_ylabel(m.axis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(own) < MIN_SERIES:
        axes.text(
            1, 0.02, f"fewer than {MIN_SERIES} records: too few for steps", transform=axes.transAxes, ha="right",
            color=MUTED, fontsize=9,
        )  # fmt: skip
    axes.legend(loc="best")
