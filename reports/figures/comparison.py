"""Figures of the comparison: one function per figure, DataFrame in, matplotlib Figure out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from reports.data.leaderboard import leaderboard, pareto_front
from reports.data.metrics import Metric, metric
from reports.data.safety import label_text
from reports.figures.style import ACCENT, MANY, PALETTE, QUIET, figure_style, new_figure, nothing_to_show, place_labels

MAX_SETTINGS = 6
OTHERS = "published, on others' machines"
CIRCLE = 150
"""Area of the circle around a marked model, in square points."""


def points_shown(table: pd.DataFrame, x: str = "macs", y: str = "test_top1") -> pd.DataFrame:
    """The rows of a leaderboard that have both numbers, with x above zero: what a figure of the two shows."""
    return table[table[x].gt(0) & table[y].notna()].reset_index(drop=True)


def plot_accuracy_against(
    df: pd.DataFrame,
    x: str = "macs",
    y: str = "test_top1",
    highlight: str = "",
    published: Mapping[str, float] | None = None,
) -> Figure:
    """Accuracy, or another score y, against a cost or a speed, one point per model; with Pareto front and error bars.

    ``df`` is a leaderboard, or the runs for one; ``highlight`` is a model to mark. ``published`` gives what others have
    measured for x, by model: a hollow point at the height of ours. Bars are 95% intervals over seeds,
    or of the measurement itself; more than 300 points have none.
    """
    table = points_shown(df if "rank" in df else leaderboard(df), x, y)
    with figure_style():
        if table.empty:
            return nothing_to_show(f"No model has both {metric(y).in_text} and {metric(x).in_text}.")
        figure, axes = new_figure()
        xs, ys = table[x] * metric(x).scale, table[y] * metric(y).scale
        front = pareto_front(table, x, y, cost_better=metric(x).better or "lower")
        many = len(table) > MANY
        axes.set_xscale("log")
        if not many:
            _error_bars(axes, table, metric(x), metric(y))
        curve = front.sort_values(x)
        axes.plot(
            curve[x] * metric(x).scale,
            curve[y] * metric(y).scale,
            color=ACCENT,
            lw=1.2,
            label="Pareto front",
            drawstyle="steps-pre" if metric(x).better == "higher" else "steps-post",
        )
        if table.setting.nunique() > 1 and table.setting.nunique() <= MAX_SETTINGS:
            colours: dict[str, object] = {"hue": table.setting.map(label_text), "style": table.setting.map(label_text)}
        else:
            colours = {"c": np.where(table.index.isin(front.index), ACCENT, QUIET).tolist()}
        sns.scatterplot(x=xs, y=ys, s=34, linewidth=0.6, ax=axes, rasterized=many, zorder=3, **colours)
        axes.collections[-1].set_gid("points")
        if highlight:
            own = table.model == highlight
            axes.scatter(xs[own], ys[own], s=CIRCLE, facecolors="none", edgecolors=ACCENT, linewidths=1.8, zorder=4)
        others = table.model.map(dict(published or {})).astype(float) * metric(x).scale
        if others.notna().any():
            _hollow_points(axes, others, ys)
        axes.set(xlabel=f"{metric(x).axis}, log scale", ylabel=metric(y).axis)
        _limits(axes, ys)
        log_room(axes, pd.concat([xs, others.dropna()]))
        plain_log_axis(axes)
        axes.legend(loc="lower right" if many else "best")
        marked = set(table.index[table.model == highlight])
        radii = dict.fromkeys(marked, math.sqrt(CIRCLE / math.pi) + 1)
        place_labels(axes, list(xs), list(ys), list(table.model), {*front.index, *marked}, radii)
    return figure


def _hollow_points(axes: Axes, xs: pd.Series, ys: pd.Series) -> None:
    """What was published of the same models, on other machines."""
    axes.scatter(xs, ys, s=34, facecolors="none", edgecolors=PALETTE[2], linewidths=1.2, zorder=3, label=OTHERS)
    axes.collections[-1].set_gid("published")


def log_room(axes: Axes, values: pd.Series) -> None:
    """Limits of a logarithmic x axis with some room around the values, also where all are the same."""
    low, high = float(values.min()), float(values.max())
    pad = max(0.05 * np.log10(high / low), 0.1)
    axes.set_xlim(low * 10**-pad, high * 10**pad)


def plain_log_axis(axes: Axes, which: Literal["x", "y"] = "x") -> None:
    """Label a logarithmic axis with plain numbers: 1, 10, 100, and also 2 and 5 within two decades."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if np.log10(high / low) < 2.2 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())
    axes.grid(visible=False, which="minor")


def _limits(axes: Axes, ys: pd.Series) -> None:
    """Room around the points; a bar far longer than their spread is cut rather than squeezing them together."""
    spread = max(float(ys.max() - ys.min()), 1.0)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, ys.min() - 0.35 * spread), min(high, ys.max() + 0.35 * spread))


def _error_bars(axes: Axes, table: pd.DataFrame, x: Metric, y: Metric) -> None:
    def span(m: Metric) -> NDArray[np.float64]:
        ends = (table[m.key] - table[f"{m.key}_low"], table[f"{m.key}_high"] - table[m.key])
        return np.clip(np.nan_to_num(np.array(ends, dtype=float) * m.scale), 0, None)

    axes.errorbar(
        table[x.key] * x.scale, table[y.key] * y.scale, xerr=None if x.exact else span(x), yerr=span(y), fmt="none",
        ecolor=QUIET, elinewidth=0.9, alpha=0.6, capsize=2, zorder=2,
    )  # fmt: skip


def roofline_points(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a leaderboard that `plot_roofline` shows: those with MACs, activations and throughput."""
    return table[table.macs_per_s.gt(0) & table.macs.gt(0) & table.activations.gt(0)]


def plot_roofline(df: pd.DataFrame, peak: float | None = None, published: Sequence[tuple[float, float]] = ()) -> Figure:
    """Achieved MAC/s against MACs per activation, one point per model; ``peak`` is the machine's, in MAC/s.

    ``published`` are pairs of the two numbers as others have measured them: hollow points.

    MACs per activation stands for arithmetic intensity (MACs per byte moved): few of them, as in depthwise
    convolutions, leave the machine waiting for memory.
    """
    table = roofline_points(df if "rank" in df else leaderboard(df))
    intensity = table.macs / table.activations
    with figure_style():
        if table.empty:
            return nothing_to_show("No model has MACs, activations and throughput.")
        figure, axes = new_figure()
        scale, many = metric("macs_per_s").scale, len(table) > MANY
        ys = table.macs_per_s * scale
        sns.scatterplot(x=intensity, y=ys, s=34, linewidth=0.6, color=QUIET, ax=axes, rasterized=many, zorder=3)
        axes.collections[-1].set_gid("points")
        axes.set(xscale="log", yscale="log", xlabel="MACs per activation, log scale")
        axes.set_ylabel(f"{metric('macs_per_s').axis}, log scale")
        others = pd.DataFrame(published, columns=["intensity", "macs_per_s"], dtype=float)
        if len(others):
            _hollow_points(axes, others.intensity, others.macs_per_s * scale)
        if peak:
            axes.axhline(peak * scale, color=ACCENT, lw=1.4, label=f"measured peak {peak * scale:,.3g} GMAC/s")
        if peak or len(others):
            axes.legend(loc="best")
        log_room(axes, pd.concat([intensity, others.intensity]))
        plain_log_axis(axes)
        plain_log_axis(axes, "y")
        place_labels(axes, list(intensity), list(ys), list(table.model), set())
    return figure


def plot_throughput_by_batch(batches: pd.DataFrame) -> Figure:
    """Inference throughput against batch size, one line per model; ``batches`` has model, batch_size, images_per_s."""
    with figure_style():
        if batches.empty:
            return nothing_to_show("Throughput was measured at one batch size only.")
        figure, axes = new_figure()
        medians = batches.groupby(["model", "batch_size"], sort=False).images_per_s.median().reset_index()
        for k, (model, rows) in enumerate(medians.groupby("model", sort=False)):
            if k == 2 * len(PALETTE):
                break
            rows = rows.sort_values("batch_size")
            sns.lineplot(
                x=rows.batch_size, y=rows.images_per_s, ax=axes, color=PALETTE[k % len(PALETTE)], marker="o", lw=1.4,
                ls="-" if k < len(PALETTE) else "--", label=label_text(str(model), 22), errorbar=None,
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="Batch size", ylabel="Inference (images/s), log scale")
        sizes = sorted(medians.batch_size.unique())
        axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axes.xaxis.set_minor_formatter(NullFormatter())
        plain_log_axis(axes, "y")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, columnspacing=1.2, handlelength=1.8)
    return figure
