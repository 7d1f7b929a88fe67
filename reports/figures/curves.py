"""Figures of training: learning curves, and the time to a target."""

from __future__ import annotations

import math

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reports.data.budgets import of_all_seeds
from reports.data.metrics import metric
from reports.data.safety import label_text
from reports.figures.comparison import log_room, plain_log_axis
from reports.figures.style import ACCENT, INK, PALETTE, QUIET, figure_style, new_figure, nothing_to_show

DASHES = ((), (4, 1.5), (1, 1), (5, 1.5, 1, 1.5))
"""Dashes that tell lines apart once all colours are used, one after the other."""


def curve_summary(history: pd.DataFrame, y: str = "val_top1") -> pd.DataFrame:
    """Learning curves over the seeds of each model: columns model, epoch, seconds, ``y``, ``y_low``, ``y_high``.

    ``y`` is the mean over seeds and ``seconds`` the mean time that they took; low and high are the extreme seeds. An
    epoch that only some of a model's seeds have reached is left out.
    """
    if f"{y}_low" in history:
        return history
    known = history[history[y].notna() & history.epoch.notna()]
    groups = known.groupby(["model", "epoch"], sort=False)
    table = pd.DataFrame({"seconds": groups.seconds.mean(), y: groups[y].mean()})
    table = table.assign(**{f"{y}_low": groups[y].min(), f"{y}_high": groups[y].max()})
    return table[of_all_seeds(groups)].reset_index()


def plot_learning_curves(history: pd.DataFrame, x: str = "epoch", y: str = "val_top1") -> Figure:
    """One line per model, the mean over its seeds, with a band from the lowest to the highest seed.

    ``history`` is that of `load_history`, or its `curve_summary`. ``x`` is ``epoch`` or ``seconds`` of training; over
    seconds, an epoch is at the mean time that its seeds took.
    """
    known = curve_summary(history, y)
    known = known[known[x].notna()]
    with figure_style():
        if known.empty:
            return nothing_to_show("No run has a learning curve.")
        figure, axes = new_figure()
        scale = metric(y).scale
        for k, (model, rows) in enumerate(known.groupby("model", sort=False)):
            colour, dashes = PALETTE[k % len(PALETTE)], DASHES[k // len(PALETTE) % len(DASHES)]
            line = sns.lineplot(
                x=rows[x], y=rows[y] * scale, ax=axes, color=colour, lw=1.6, errorbar=None,
                label=label_text(str(model), 22), marker="o" if len(rows) < 3 else None,
            ).lines[-1]  # fmt: skip
            line.set_dashes(dashes)
            axes.fill_between(
                rows[x], rows[f"{y}_low"] * scale, rows[f"{y}_high"] * scale, color=colour, alpha=0.15, lw=0
            )
        axes.set(xlabel="Epoch" if x == "epoch" else "Training time (s), log scale", ylabel=metric(y).axis)
        if x == "epoch":
            axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
        elif known[x].min() > 0:
            axes.set_xscale("log")
            plain_log_axis(axes)
        figure.legends.clear()
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, columnspacing=1.2, handlelength=1.8)
    return figure


def median_seconds(times: pd.DataFrame) -> pd.Series:
    """The median seconds to a target over a model's seeds, the fastest first.

    A seed that never reached it (NaN) took longer than any that did; models whose median is such are left out.
    """
    medians = times.fillna({"seconds": math.inf}).groupby("model").seconds.median()
    return medians[medians < math.inf].sort_values()


def plot_time_to_target(times: pd.DataFrame, target: float, shown: int = 20, y: str = "val_top1") -> Figure:
    """Training seconds until the validation accuracy (or another ``y``) first reached ``target``.

    One point per seed, a bar at the median.

    ``times`` has model, seed, seconds (NaN: never). Models of which half of the seeds or more never reached it are left
    out; fastest first.
    """
    met = times[times.seconds.gt(0)]
    medians = median_seconds(times)
    order = medians.index[:shown].tolist()
    goal = f"{target * 100:g}% {metric(y).in_text}"
    with figure_style():
        if not order:
            return nothing_to_show(f"No run reached {goal}.")
        figure, axes = new_figure((4.8, 1.1 + 0.27 * len(order)))
        met = met[met.model.isin(order)]
        sns.stripplot(
            x=met.seconds, y=pd.Categorical(met.model, order), ax=axes, color=QUIET, size=5, jitter=False, alpha=0.75,
            linewidth=0,
        )  # fmt: skip
        for k, model in enumerate(order):
            median = medians[model]
            axes.plot([median, median], [k - 0.32, k + 0.32], color=ACCENT, lw=2)
        axes.set_yticks(range(len(order)), [label_text(name, 22) for name in order])
        axes.set_xscale("log")
        log_room(axes, met.seconds)
        plain_log_axis(axes)
        axes.set(xlabel=f"Training time to {goal}\n(s), log scale", ylabel="")
        axes.grid(visible=False, axis="y")
        marks = [Line2D([], [], marker="o", ls="", color=QUIET), Line2D([], [], color=ACCENT, lw=2)]
        axes.legend(marks, ["a seed", "median"], loc="best", labelcolor=INK)
    return figure
