"""Figures of what a budget of training buys."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from reports.data.budgets import front_of
from reports.data.metrics import metric
from reports.data.safety import label_text
from reports.figures.comparison import log_room, plain_log_axis
from reports.figures.curves import DASHES
from reports.figures.style import ACCENT, PALETTE, figure_style, new_figure, nothing_to_show

COSTS = {"train_seconds": ("Training time (s)", 1.0), "train_macs": ("MACs of training (T)", 1e-12)}
"""Label and scale of each cost."""


def plot_score_by_cost(table: pd.DataFrame, cost: str = "train_seconds", score: str = "val_top1") -> Figure:
    """Score against what training has cost so far, one line per model, one point per epoch; with the front of them all.

    ``table`` is that of `scores_by_cost`; ``cost`` is ``train_seconds`` or ``train_macs``; ``score`` names what its
    column of that name holds.
    """
    known = table[table[cost].gt(0)]
    with figure_style():
        if known.empty:
            return nothing_to_show("What training costs was not measured.")
        figure, axes = new_figure()
        (label, scale), height = COSTS[cost], metric(score).scale
        front = front_of(known, cost)
        axes.plot(
            front[cost] * scale, front.score * height, color=ACCENT, lw=5, alpha=0.25, drawstyle="steps-post",
            solid_capstyle="butt", label="front",
        )  # fmt: skip
        for k, (model, rows) in enumerate(known.groupby("model", sort=False)):
            line = sns.lineplot(
                x=rows[cost] * scale, y=rows.score * height, ax=axes, color=PALETTE[k % len(PALETTE)], lw=1.4,
                marker="o", markersize=3.5, label=label_text(str(model), 22), errorbar=None,
            ).lines[-1]  # fmt: skip
            line.set_dashes(DASHES[k // len(PALETTE) % len(DASHES)])
        axes.set_xscale("log")
        axes.set(xlabel=f"{label}, log scale", ylabel=metric(score).axis)
        log_room(axes, known[cost] * scale)
        plain_log_axis(axes)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, columnspacing=1.2, handlelength=1.8)
    return figure
