"""Reports: records in, tables and figures out. Nothing here needs the network that was measured.

    >>> import reports
    >>> runs = reports.load_runs("results")  # doctest: +SKIP
    >>> reports.leaderboard(runs)  # doctest: +SKIP

Functions are pure: DataFrame in, DataFrame or matplotlib Figure out. Names are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "reports.data.loading": ("load_runs", "load_history", "load_results"),
    "reports.data.leaderboard": (
        "leaderboard",
        "pareto_front",
        "separations",
        "to_markdown",
        "to_latex",
        "render_leaderboard",
    ),
    "reports.data.predictions": ("compare_images",),
    "reports.figures.comparison": ("plot_accuracy_against", "plot_roofline", "plot_throughput_by_batch"),
    "reports.figures.curves": ("plot_learning_curves", "plot_time_to_target"),
    "reports.figures.mistakes": ("plot_confusion", "plot_per_class_accuracy", "plot_reliability"),
    "reports.report": ("write_report",),
    "reports.pages.architecture": ("write_architecture_report",),
    "reports.export": ("export_runs",),
    "reports.data.history": ("load_points", "find_steps"),
    "reports.figures.history": ("plot_history",),
    "reports.pages.verify": ("verify_page",),
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}

__all__ = list(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'reports' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
