"""The leaderboard: runs summarised over seeds and ranked, its Pareto front, and its renderings as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from reports.data.loading import RUN_COLUMNS, load_history, load_runs
from reports.data.metrics import METRICS, MISSING, Metric, metric
from reports.data.predictions import ImageComparison
from reports.data.safety import latex_text, markdown_text
from reports.data.statistics import MAX_TESTED, compare_image_by_image, compare_pairs, shared_ranks

if TYPE_CHECKING:
    from reports.data.terminal import TerminalTable

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
]

RANKED_BY = "test_top1"
SCORES = ("test_miou", RANKED_BY)
"""The scores that models are ranked by: mean intersection over union for dense labels, else accuracy."""
SHOWN = (
    "test_top1",
    "test_single_view_top1",
    "head_only_top1",
    "test_miou",
    "test_pixel_accuracy",
    "corruption_top1",
    "epochs",
    "params",
    "macs",
    "throughput_img_per_s",
    "train_throughput_img_per_s",
    "throughput_batch_size",
    "latency_p50_ms",
    "train_peak_memory_bytes",
    "peak_memory_bytes",
    "train_seconds",
)
"""The metrics that a leaderboard shows, in this order."""

_OPTIONAL = {
    "seeds": 11,
    "latency_p50_ms": 10,
    "train_peak_memory_bytes": 9,
    "peak_memory_bytes": 9,
    "throughput_batch_size": 8,
    "train_seconds": 7,
    "train_throughput_img_per_s": 6,
    "epochs": 5,
    "head_only_top1": 4,
    "test_single_view_top1": 4,
    "test_pixel_accuracy": 4,
    "params": 3,
    "macs": 2,
}
"""What a narrow terminal leaves out, the highest first."""
FEW_EPOCHS, LEARNED = 3, 0.5
"""A score below ``LEARNED`` after fewer than ``FEW_EPOCHS`` is the budget's fault, not the model's."""

RANK_NOTES = {
    "seeds": "Models that the seeds cannot separate share a rank (Welch's t-test, Holm-corrected, 5%): 2–5 means "
    "second at best, fifth at worst. ± is half the 95% interval over seeds.",
    "images": "Ranks compare the weights of each model's first seed, not the architectures: models that "
    "differ by no more than chance on this test set share a rank (McNemar's exact test image by image, "
    "Holm-corrected, 5%). ± is half the 95% interval (Wilson's for an accuracy).",
}
"""What ranks rest on, by ``rank_basis``."""


LEADERBOARD_COLUMNS: dict[str, str] = {
    "setting": "what the compared runs share: data, recipe, budget, device",
    "rank": "1 + number of models that tests put above it; NaN where nothing was measured",
    "rank_worst": "the last place that the tests leave open",
    "tested": "whether the rank rests on tests; else it is the order of the means",
    "rank_basis": "what the tests compare: `seeds`, or `images` where there is one seed of each; `order` if not tested",
    "model": "name of the architecture",
    "seeds": "completed runs",
    "failed": "runs that failed or diverged",
    "disturbed": "runs that were disturbed while they were measured",
} | {
    column: what
    for key, m in METRICS.items()
    for column, what in (
        (key, f"{m.axis}: mean over seeds, unscaled"),
        (f"{key}_low", "low end of its 95% t-interval over seeds; where there is one, of the run's own interval"),
        (f"{key}_high", "high end of it"),
    )
}
"""Columns of `leaderboard` and what they hold."""


def leaderboard(runs: pd.DataFrame, images: Mapping[str, ImageComparison] | None = None) -> pd.DataFrame:
    """Summarise runs over seeds and rank the models within each setting, by what `ranked_by` says.

    Ranks rest on tests over seeds. A setting in which no two models have two seeds is ranked by comparing the models'
    answers image by image instead, where ``images`` (from `compare_images`) has those of all of them; else the rank is
    the order of the means. One row for each model and setting; settings with the most models, then the most seeds, come
    first. Only completed runs count; a model without one is listed last, without a rank. Columns:
    `LEADERBOARD_COLUMNS`.
    """
    columns = list(LEADERBOARD_COLUMNS)
    if runs.empty:
        return pd.DataFrame(columns=columns)
    summary = _summary(runs)
    tables = []
    for setting, rows in summary.groupby("setting", sort=False):
        ranks = _ranks(separations(runs, str(setting), images), rows)
        tables.append(rows.set_index("model").join(ranks).loc[ranks.index].reset_index(names="model"))
    tables.sort(key=lambda table: (-table["rank"].notna().sum(), -table.seeds.sum(), str(table.setting.iloc[0])))
    result = pd.concat(tables, ignore_index=True)
    return result[columns].astype({"tested": bool}).copy()  # in one piece: more than a hundred columns are slow else


def ranked_by(table: pd.DataFrame) -> str:
    """The column that ranks the models of one setting: ``test_miou`` where a run has it, else ``test_top1``."""
    return next((key for key in SCORES if table[key].notna().any()), RANKED_BY)


def separations(runs: pd.DataFrame, setting: str, images: Mapping[str, ImageComparison] | None = None) -> pd.DataFrame:
    """Every pair of the best models of a setting, tested on what ranks them: over seeds, or image by image.

    See `leaderboard` for which; the columns are `PAIR_COLUMNS` or `IMAGE_PAIR_COLUMNS` of `reports.data.statistics`.
    """
    completed = runs[(runs.setting == setting) & (runs.status == "completed")]
    score = ranked_by(completed)
    groups = {str(name): values.to_numpy() for name, values in completed.dropna(subset=score).groupby("model")[score]}
    best = sorted(groups, key=lambda name: (-groups[name].mean(), name))[:MAX_TESTED]
    compared = (images or {}).get(setting)
    several_seeds = sum(len(values) > 1 for values in groups.values()) > 1
    if compared and not several_seeds and score == RANKED_BY and set(best) == set(compared.models):
        return compare_image_by_image(compared.models, compared.right_wrong, compared.images)
    return compare_pairs({name: groups[name] for name in best})


def pareto_front(
    df: pd.DataFrame, cost: str = "macs", value: str = RANKED_BY, *, cost_better: str = "lower", value_better: str = ""
) -> pd.DataFrame:
    """The rows that no other row dominates (is at least as good in both columns and better in one).

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
    """The first row with the largest (or smallest) value of a column, ignoring NaN."""
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
        lines = [f"### {markdown_text(str(setting))}", "", *_markdown_lines(header, body), "", note_on_ranks(rows), ""]
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


def render_leaderboard(df: pd.DataFrame) -> TerminalTable:
    """A leaderboard (or the runs for one) as a table for a rich console of any width.

    A narrow one leaves out memory, time and seeds; all numbers are in the CSV.
    """
    from reports.data.terminal import Column, TerminalTable

    table = df if "rank" in df else leaderboard(df)
    metrics = shown_metrics(table)
    header, _ = _cells(table, metrics)
    columns = [Column("#", "number"), Column("Model")]
    columns += [Column(m.short or m.axis, "number", optional=_OPTIONAL.get(m.key, 0)) for m in metrics]
    columns += [Column("Seeds", "number", optional=_OPTIONAL["seeds"])]
    columns += [Column("Note") for name in header if name == "Note"]
    remedy = "The report's leaderboard.csv has all."
    rendered = TerminalTable(columns, "Leaderboard", note_on_ranks(table), remedy=remedy)
    settings = list(dict.fromkeys(table.setting))
    for setting in settings:
        if len(settings) > 1:
            rendered.add_heading(setting)
        for cells in _cells(table[table.setting == setting], metrics, intervals=SCORES)[1]:
            rendered.add_row(*cells, *[""] * (len(columns) - len(cells)))
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


def _ranks(pairs: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    means = {str(m): float(v) for m, v in zip(rows.model, rows[ranked_by(rows)], strict=True)}
    best = sorted((m for m in means if math.isfinite(means[m])), key=lambda m: (-means[m], m))
    tested, rest = best[:MAX_TESTED], best[MAX_TESTED:]
    parts = [shared_ranks(pairs, {m: means[m] for m in tested})]
    if rest:  # too many pairs to test: below the best, the order of the means
        places = np.arange(len(tested), len(best)) + 1
        parts.append(pd.DataFrame({"rank": places, "rank_worst": places, "tested": False}, index=rest))
    lost = sorted(m for m in means if not math.isfinite(means[m]))
    if lost:
        parts.append(pd.DataFrame({"rank": math.nan, "rank_worst": math.nan, "tested": False}, index=lost))
    result = pd.concat([part for part in parts if len(part)]).astype({"rank": float, "rank_worst": float})
    basis = "images" if "only_a" in pairs else "seeds"
    return result.assign(rank_basis=np.where(result.tested.astype(bool), basis, "order"))


def _cells(
    table: pd.DataFrame, metrics: Iterable[Metric] | None = None, intervals: Iterable[str] = SHOWN
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a leaderboard as text; only what at least one row has."""
    metrics = list(shown_metrics(table) if metrics is None else metrics)
    header = ["#", "Model", *(m.axis for m in metrics), "Seeds"]
    notes = row_notes(table)
    body = []
    for row, note in zip(table.to_dict("records"), notes, strict=True):
        numbers = [
            m.text_with_interval(row[m.key], row[f"{m.key}_low"], row[f"{m.key}_high"])
            if m.key in intervals
            else m.text(row[m.key])
            for m in metrics
        ]
        cells = [rank_text(row["rank"], row["rank_worst"], row["tested"]), str(row["model"]), *numbers]
        body.append([*cells, str(row["seeds"]), *([note] if any(notes) else [])])
    return header + (["Note"] if any(notes) else []), body


def row_notes(table: pd.DataFrame) -> list[str]:
    """A note for each row of one setting.

    Failed runs, a budget too short to learn, disturbed runs unless every row has some, an untested rank.
    """
    completed = table[table.seeds > 0]
    all_noisy = len(completed) > 1 and bool((completed.disturbed > 0).all())
    any_tested = bool(table.tested.any())
    return [
        ", ".join(
            ([f"{row['failed']} failed"] if row["failed"] else [])
            + ([f"too few epochs: {row['epochs']:.2g}"] if _is_cut_short(row) else [])
            + ([f"{row['disturbed']} noisy"] if row["disturbed"] and not all_noisy else [])
            + (["not tested: one seed"] if any_tested and not row["tested"] and row["seeds"] == 1 else [])
        )
        for row in table.to_dict("records")
    ]


def _is_cut_short(row: Mapping[Any, Any]) -> bool:
    """Whether the budget of a model ended before it had seen enough to be judged."""
    return row["epochs"] < FEW_EPOCHS and any(row[score] < LEARNED for score in SCORES)


def note_on_ranks(rows: pd.DataFrame) -> str:
    """How to read the ranks, in a sentence."""
    if rows.empty:
        return "No runs yet."
    basis = set(rows.rank_basis) - {"order"}
    if rows["rank"].notna().sum() < 2:
        return "± is half the 95% interval."
    if not basis:
        return f"Ranks are the order of the {scores_in_text(rows)}, not tested: that takes several seeds of each model."
    return " ".join(text for key, text in RANK_NOTES.items() if key in basis)


def scores_in_text(table: pd.DataFrame) -> str:
    """What the models are ranked by, in the plural."""
    keys = {ranked_by(rows) for _, rows in table.groupby("setting")}
    return " or ".join(words for key, words in ((RANKED_BY, "accuracies"), ("test_miou", "mean IoUs")) if key in keys)


def _markdown_lines(header: list[str], body: list[list[str]]) -> list[str]:
    rule = ["---:", ":---", *["---:"] * (len(header) - 2)]
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *([markdown_text(c) for c in row] for row in body))]
