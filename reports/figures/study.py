"""The figure of a study: every seed of every variant, and the interval of their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reports.data.metrics import metric
from reports.data.safety import label_text
from reports.data.statistics import student_interval
from reports.figures.style import ACCENT, INK, QUIET, figure_style, new_figure, nothing_to_show


def plot_variants(values: Mapping[str, Sequence[float]], key: str) -> Figure:
    """One row for each variant, in their order: a point for each seed, the mean, and its 95% interval.

    ``values`` are unscaled, of the metric ``key``; a variant without any keeps its row.
    """
    m = metric(key)
    with figure_style():
        if not any(values.values()):
            return nothing_to_show(f"No run has a {m.in_text}.")
        figure, axes = new_figure((4.8, 1.1 + 0.42 * len(values)))
        for k, own in enumerate(values.values()):
            axes.plot([v * m.scale for v in own], [k] * len(own), ls="", marker="o", ms=5, color=QUIET, alpha=0.75)
            mean, low, high = (end * m.scale for end in student_interval(own))
            axes.plot([low, high], [k + 0.22, k + 0.22], color=ACCENT, lw=2)
            axes.plot([mean], [k + 0.22], ls="", marker="o", ms=4, color=ACCENT)
        axes.set_yticks(range(len(values)), [label_text(name, 24) for name in values])
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.set(xlabel=m.axis, ylabel="")
        axes.grid(visible=False, axis="y")
        marks = [Line2D([], [], marker="o", ls="", color=QUIET), Line2D([], [], marker="o", color=ACCENT, lw=2)]
        axes.legend(marks, ["a seed", "mean, 95% interval"], loc="upper center", bbox_to_anchor=(0.5, -0.3), ncols=2,
                    labelcolor=INK)  # fmt: skip
    return figure
