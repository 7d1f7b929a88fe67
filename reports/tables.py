"""Tables of a report: the leaderboard over seeds, the Pareto front, and both as text."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from reports.loading import RUN_COLUMNS, load_history, load_runs
from reports.metrics import METRICS, MISSING, Metric, metric
from reports.safety import latex_text, markdown_text, shorten
from reports.statistics import MAX_TESTED, compare_pairs, shared_ranks

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "RUN_COLUMNS",
    "leaderboard",
    "load_history",
    "load_runs",
    "pareto_front",
    "render_leaderboard",
    "separations",
    "to_latex",
    "to_markdown",
    "write_csv",
]

RANKED_BY = "test_top1"
SCORES = ("test_miou", RANKED_BY)
"""What can rank models: of dense labels the mean intersection over union, of image labels the accuracy."""
SHOWN = (
    "test_top1",
    "test_miou",
    "test_pixel_accuracy",
    "params",
    "macs",
    "throughput_img_per_s",
    "train_throughput_img_per_s",
    "latency_p50_ms",
    "peak_memory_bytes",
    "train_seconds",
)
"""The metrics that a leaderboard shows to people, in this order."""

_LEAST_WIDTH = {"test_pixel_accuracy": 105, "peak_memory_bytes": 105, "train_seconds": 105, "latency_p50_ms": 116}
"""Terminals narrower than this do without the metric."""

LEADERBOARD_COLUMNS: dict[str, str] = {
    "setting": "what the compared runs share: data, recipe, budget, device",
    "rank": "1 + number of models that are better beyond what the seeds leave open; NaN where nothing was measured",
    "rank_worst": "the last place that the tests leave open",
    "tested": "whether the rank rests on tests; else it is the order of the means",
    "model": "name of the architecture",
    "seeds": "completed runs",
    "failed": "runs that failed or diverged",
    "disturbed": "runs that were disturbed while they were measured",
} | {
    column: what
    for key, m in METRICS.items()
    for column, what in (
        (key, f"{m.axis}: mean over seeds, unscaled"),
        (f"{key}_low", "low end of its 95% t-interval over seeds; of one run's own interval where there is one seed"),
        (f"{key}_high", "high end of it"),
    )
}
"""Columns of `leaderboard` and what they hold."""


def leaderboard(runs: pd.DataFrame) -> pd.DataFrame:
    """Summarise runs over seeds and rank the models within each setting, by what `ranked_by` says.

    One row for each model and setting, settings with the most models first. Only completed runs count; a model
    without one is listed last, without a rank. Columns: `LEADERBOARD_COLUMNS`.
    """
    columns = list(LEADERBOARD_COLUMNS)
    if runs.empty:
        return pd.DataFrame(columns=columns)
    summary = _summary(runs)
    tables = []
    for setting, rows in summary.groupby("setting", sort=False):
        ranks = _ranks(runs[(runs.setting == setting) & (runs.status == "completed")], rows)
        tables.append(rows.set_index("model").join(ranks).loc[ranks.index].reset_index(names="model"))
    tables.sort(key=lambda table: (-table["rank"].notna().sum(), str(table.setting.iloc[0])))
    result = pd.concat(tables, ignore_index=True)
    return result[columns].astype({"tested": bool}).copy()  # in one piece: more than a hundred columns are slow else


def ranked_by(table: pd.DataFrame) -> str:
    """What ranks the models of one setting, as a column: ``test_miou`` where a run has it, else ``test_top1``."""
    return next((key for key in SCORES if table[key].notna().any()), RANKED_BY)


def separations(runs: pd.DataFrame, setting: str) -> pd.DataFrame:
    """Every pair of the best models of a setting, tested on what ranks them: see `reports.statistics.compare_pairs`."""
    completed = runs[(runs.setting == setting) & (runs.status == "completed")]
    score = ranked_by(completed)
    groups = {str(name): values.to_numpy() for name, values in completed.dropna(subset=score).groupby("model")[score]}
    best = sorted(groups, key=lambda name: (-groups[name].mean(), name))[:MAX_TESTED]
    return compare_pairs({name: groups[name] for name in best})


def pareto_front(
    df: pd.DataFrame, cost: str = "macs", value: str = RANKED_BY, *, cost_better: str = "lower", value_better: str = ""
) -> pd.DataFrame:
    """The rows that no other row beats: none is at least as good in both columns and better in one.

    ``cost_better`` and ``value_better`` are ``lower`` or ``higher``; the latter's default is the metric's own. Rows
    with a NaN in either are left out. Sorted by cost, the index is kept. O(n log n).
    """
    known = df[df[cost].notna() & df[value].notna()]
    x = known[cost].to_numpy(float) * (1 if cost_better == "lower" else -1)
    y = known[value].to_numpy(float) * (1 if (value_better or metric(value).better or "higher") == "lower" else -1)
    order = np.lexsort((y, x))
    best, front, last = math.inf, [], (math.nan, math.nan)
    for k in order:
        if y[k] < best or (x[k], y[k]) == last:
            best, last = min(best, y[k]), (x[k], y[k])
            front.append(k)
    return known.iloc[front]


def extreme(table: pd.DataFrame, key: str, largest: bool = True) -> pd.Series:
    """The row with the largest (or smallest) value of a column, NaN left out; the first of equals."""
    values = table[key].to_numpy(float)
    return table.iloc[int(np.nanargmax(values) if largest else np.nanargmin(values))]


def shown_metrics(table: pd.DataFrame) -> list[Metric]:
    """The metrics of `SHOWN` that at least one row has."""
    return [METRICS[key] for key in SHOWN if key in table and table[key].notna().any()]


def rank_text(rank: float, worst: float, tested: bool) -> str:
    """``2``, or ``2–4`` where the tests leave places open."""
    if not math.isfinite(rank):
        return MISSING
    return f"{rank:.0f}–{worst:.0f}" if tested and worst > rank else f"{rank:.0f}"


def to_markdown(table: pd.DataFrame) -> str:
    """A leaderboard as a Markdown table for each setting, with means and ± half the 95% interval."""
    parts = []
    for setting, rows in table.groupby("setting", sort=False):
        header, body = _cells(rows)
        lines = [f"### {markdown_text(str(setting))}", "", *_markdown_lines(header, body), "", _note(rows), ""]
        parts.append("\n".join(lines))
    return "\n".join(parts) if parts else "No runs.\n"


def to_latex(table: pd.DataFrame) -> str:
    """A leaderboard as LaTeX tables for the package booktabs, one for each setting."""
    parts = []
    for setting, rows in table.groupby("setting", sort=False):
        header, body = _cells(rows)
        lines = [r"\begin{table}", rf"\caption{{{latex_text(str(setting))}}}", r"\centering"]
        lines += [rf"\begin{{tabular}}{{rl{'r' * (len(header) - 2)}}}", r"\toprule"]
        lines += [" & ".join(map(latex_text, header)) + r" \\", r"\midrule"]
        lines += [" & ".join(map(latex_text, row)) + r" \\" for row in body]
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]))
    return "\n".join(parts) or "% No runs.\n"


def write_csv(table: pd.DataFrame, path: str | Path) -> None:
    """The table in full precision, as CSV."""
    table.to_csv(path, index=False, encoding="utf-8")


def render_leaderboard(df: pd.DataFrame, width: int | None = None) -> Table:
    """A leaderboard (or the runs for one) as a table for a terminal, of ``width`` columns where it is given.

    A narrow one does without memory, time and seeds; all numbers are in the CSV.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = df if "rank" in df else leaderboard(df)
    columns = width or shutil.get_terminal_size().columns
    wide = columns >= 105
    metrics = [m for m in shown_metrics(table) if columns >= _LEAST_WIDTH.get(m.key, 0)]
    header, _ = _cells(table, metrics)
    seeds = 2 + len(metrics)
    rendered = Table(title="Leaderboard", caption=_note(table), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ["#", "Model", *(m.short or m.axis for m in metrics), *header[seeds if wide else seeds + 1 :]]:
        justify: Literal["left", "right"] = "left" if name in ("Model", "Note") else "right"
        rendered.add_column(Text("\n".join(name.rsplit(" ", 1))), justify=justify, no_wrap=True)
    settings = list(dict.fromkeys(table.setting))
    for setting in settings:
        if len(settings) > 1:
            rendered.add_section()
            rendered.add_row("", Text(shorten(setting, 60), style="italic"))
        for cells in _cells(table[table.setting == setting], metrics, intervals=SCORES)[1]:
            shown = cells if wide else cells[:seeds] + cells[seeds + 1 :]
            rendered.add_row(*(Text(shorten(cell, 36 if wide else 24)) for cell in shown))
    return rendered


def _summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Means, intervals and counts for each setting and model."""
    keys = ["setting", "model"]
    completed = runs[runs.status == "completed"]
    names = list(METRICS)
    groups = completed.groupby(keys, sort=False)[names]
    mean = groups.mean()
    single = completed.groupby(keys, sort=False)[[c for c in map(str, runs) if c.endswith(("_low", "_high"))]].first()
    intervals: dict[str, pd.Series] = {}
    count, spread = groups.count(), groups.std()
    half = _t_quantile(count) * spread / count.where(count > 1).pow(0.5)
    for key in names:
        for end, sign in (("low", -1), ("high", 1)):
            over_seeds = mean[key] + sign * half[key]
            own = single.get(f"{key}_{end}")
            intervals[f"{key}_{end}"] = over_seeds if own is None else over_seeds.where(count[key] > 1, own)
    everything = runs.groupby(keys, sort=False).agg(total=("status", "size"), disturbed=("disturbed", _count_positive))
    everything["seeds"] = completed.groupby(keys, sort=False).size().reindex(everything.index, fill_value=0)
    everything["failed"] = everything.pop("total") - everything.seeds
    return everything.join([mean, pd.DataFrame(intervals, index=mean.index)]).reset_index()


def _count_positive(counts: pd.Series) -> int:
    return int((counts > 0).sum())


def _t_quantile(count: pd.DataFrame) -> pd.DataFrame:
    from scipy import stats

    return pd.DataFrame(stats.t.ppf(0.975, (count - 1).clip(lower=1)), index=count.index, columns=count.columns)


def _ranks(completed: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    means = {str(m): float(v) for m, v in zip(rows.model, rows[ranked_by(rows)], strict=True)}
    best = sorted((m for m in means if math.isfinite(means[m])), key=lambda m: (-means[m], m))
    tested, rest = best[:MAX_TESTED], best[MAX_TESTED:]
    pairs = separations(completed.assign(setting=""), "")
    ranks = shared_ranks(pairs, {m: means[m] for m in tested})
    parts = [ranks]
    if rest:  # too many pairs to test: below the best, the order of the means
        places = np.arange(len(tested), len(best)) + 1
        parts.append(pd.DataFrame({"rank": places, "rank_worst": places, "tested": False}, index=rest))
    lost = sorted(m for m in means if not math.isfinite(means[m]))
    if lost:
        parts.append(pd.DataFrame({"rank": math.nan, "rank_worst": math.nan, "tested": False}, index=lost))
    result = pd.concat([part for part in parts if len(part)])
    return result.astype({"rank": float, "rank_worst": float})


def _cells(
    table: pd.DataFrame, metrics: Iterable[Metric] | None = None, intervals: Iterable[str] = SHOWN
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a leaderboard as text; only what at least one row has."""
    metrics = list(shown_metrics(table) if metrics is None else metrics)
    header = ["#", "Model", *(m.axis for m in metrics), "Seeds"]
    troubled = bool(len(table)) and bool((table.failed > 0).any() or (table.disturbed > 0).any())
    body = []
    for row in table.to_dict("records"):
        numbers = [
            m.text_with_interval(row[m.key], row[f"{m.key}_low"], row[f"{m.key}_high"])
            if m.key in intervals
            else m.text(row[m.key])
            for m in metrics
        ]
        cells = [rank_text(row["rank"], row["rank_worst"], row["tested"]), str(row["model"]), *numbers]
        body.append([*cells, str(row["seeds"]), *([_trouble(row["failed"], row["disturbed"])] if troubled else [])])
    return header + (["Note"] if troubled else []), body


def _trouble(failed: int, noisy: int) -> str:
    notes = [f"{failed} failed"] if failed else []
    return ", ".join(notes + ([f"{noisy} noisy"] if noisy else []))


def _note(rows: pd.DataFrame) -> str:
    """How to read the ranks, in a sentence."""
    if rows.empty:
        return "No runs yet."
    if bool(rows.tested.any()):
        return (
            "Models that the seeds cannot separate share a rank (Welch's t-test, Holm-corrected, 5%); "
            "± is half the 95% interval over seeds."
        )
    return f"Ranks are the order of the {scores_in_text(rows)}, not tested: that takes several seeds of each model."


def scores_in_text(table: pd.DataFrame) -> str:
    """What the models are ranked by, in the plural."""
    keys = {ranked_by(rows) for _, rows in table.groupby("setting")}
    return " or ".join(words for key, words in ((RANKED_BY, "accuracies"), ("test_miou", "mean IoUs")) if key in keys)


def _markdown_lines(header: list[str], body: list[list[str]]) -> list[str]:
    rule = ["---:", ":---", *["---:"] * (len(header) - 2)]
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *([markdown_text(c) for c in row] for row in body))]
