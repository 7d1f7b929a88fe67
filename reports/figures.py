"""Figures of the comparison: DataFrame -> matplotlib Figure, one function a figure."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from reports.metrics import Metric, metric
from reports.safety import label_text
from reports.style import ACCENT, MANY, QUIET, figure_style, new_figure, nothing_to_show, place_labels
from reports.tables import leaderboard, pareto_front

MAX_SETTINGS = 6


def points_shown(table: pd.DataFrame, x: str = "macs", y: str = "test_top1") -> pd.DataFrame:
    """The rows of a leaderboard that have both numbers, and x above zero: those that a figure of the two shows."""
    return table[table[x].gt(0) & table[y].notna()].reset_index(drop=True)


def plot_accuracy_against(df: pd.DataFrame, x: str = "macs", y: str = "test_top1") -> Figure:
    """One point a model: accuracy against a cost (or a speed), with the Pareto front and error bars.

    ``df`` is a leaderboard, or the runs for one. Bars are 95% intervals over seeds, or of the measurement itself.
    """
    table = points_shown(df if "rank" in df else leaderboard(df), x, y)
    with figure_style():
        if table.empty:
            return nothing_to_show(f"No model has both {metric(y).label.lower()} and {metric(x).label.lower()}.")
        figure, axes = new_figure()
        xs, ys = table[x] * metric(x).scale, table[y] * metric(y).scale
        front = pareto_front(table, x, y, cost_better=metric(x).better or "lower")
        many = len(table) > MANY
        axes.set_xscale("log")
        _error_bars(axes, table, metric(x), metric(y), many)
        curve = front.sort_values(x)
        axes.plot(
            curve[x] * metric(x).scale,
            curve[y] * metric(y).scale,
            color=ACCENT,
            lw=1.2,
            label="Pareto front",
            drawstyle="steps-post",
        )
        if table.setting.nunique() > 1 and table.setting.nunique() <= MAX_SETTINGS:
            colours: dict[str, object] = {"hue": table.setting.map(label_text), "style": table.setting.map(label_text)}
        else:
            colours = {"c": np.where(table.index.isin(front.index), ACCENT, QUIET).tolist()}
        sns.scatterplot(x=xs, y=ys, s=34, linewidth=0.6, ax=axes, rasterized=many, zorder=3, **colours)
        axes.collections[-1].set_gid("points")
        axes.set(xlabel=f"{metric(x).axis}, log scale", ylabel=metric(y).axis)
        _limits(axes, ys)
        plain_log_axis(axes)
        axes.legend(loc="best", fontsize=8.5)
        place_labels(axes, list(xs), list(ys), list(table.model), set(front.index))
    return figure


def plain_log_axis(axes: Axes) -> None:
    """Write a logarithmic x axis with plain numbers: 1, 10, 100 and, within two decades, 2 and 5 as well."""
    low, high = axes.get_xlim()
    dense = np.log10(high / low) < 2.2
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if dense else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=False, which="minor")


def _limits(axes: Axes, ys: pd.Series) -> None:
    """Room around the points; a bar far longer than their spread is cut rather than squeezing them together."""
    spread = max(float(ys.max() - ys.min()), 1.0)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, ys.min() - 0.35 * spread), min(high, ys.max() + 0.35 * spread))


def _error_bars(axes: Axes, table: pd.DataFrame, x: Metric, y: Metric, many: bool) -> None:
    def span(m: Metric) -> NDArray[np.float64]:
        ends = (table[m.key] - table[f"{m.key}_low"], table[f"{m.key}_high"] - table[m.key])
        return np.clip(np.nan_to_num(np.array(ends, dtype=float) * m.scale), 0, None)

    axes.errorbar(
        table[x.key] * x.scale, table[y.key] * y.scale, xerr=None if x.exact else span(x), yerr=span(y), fmt="none",
        ecolor=QUIET, elinewidth=0.9, alpha=0.6, capsize=2, rasterized=many, zorder=2,
    )  # fmt: skip
