"""A study's verdict, from its records alone: what each variant reached, and whether that supports what is claimed.

`RULE` is the rule; `judge` and `overall` apply it. That one comparison of several comes out by chance makes a study
no more likely to be supported, since all of them must be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from bench.errors import RecordError
from bench.records import Folders, RunRecord, each_folder, parse_json, study_path
from bench.stores import file_system
from reports.data.loading import Results, get
from reports.data.metrics import metric
from reports.data.statistics import welch_interval

SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided at this budget"

RULE = (
    "The effect is the mean over seeds of the variant that is said to be better minus that of the other, or divided "
    "by it, turned so that more is better; its 95% interval is Welch's over seeds, of logarithms for a ratio. A "
    "comparison is supported where the whole interval lies above the margin that the study names beforehand, not "
    "supported where the whole interval lies at or below it, and undecided at this budget otherwise: also where a "
    "variant has no result, or one seed and so no interval. Counts such as parameters and MACs are exact and need "
    "none. A study is supported where all its comparisons are, not supported where one is not, else undecided. A run "
    "that diverged counts as guessing (one class in as many as there are, or a mean IoU of 0), one that failed as "
    "missing."
)


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True)


class Comparison(_Content):
    """One statement that can be wrong; see `bench.study.Comparison`."""

    claim: str
    source: str | None = None
    better: str
    than: str
    metric: str
    ratio: bool
    margin: float


class Variant(_Content):
    """One way to train: what it changes in the plan, and the ids of its runs."""

    name: str
    changes: dict[str, Any]
    runs: list[str]


class StudyContent(_Content):
    """What `study.json` holds. ``part`` is what was asked for in place of the study's own settings."""

    schema_version: Literal[1]
    name: str
    title: str
    claim: str
    source: str
    cost: str
    part: dict[str, Any]
    variants: list[Variant]
    comparisons: list[Comparison]


@dataclass(frozen=True)
class Finding:
    """What became of one comparison: the effect with its interval (NaN where there is none), and the verdict."""

    comparison: Comparison
    effect: float
    low: float
    high: float
    verdict: str


def load_study(folders: Folders) -> StudyContent | None:
    """The study of a results folder, or of the first of several that has one; None where none has.

    Raises `RecordError` where it is damaged.
    """
    for folder in each_folder(folders):
        path = study_path(folder)
        fs, local = file_system(path)
        if not fs.exists(local):
            continue
        try:
            return StudyContent.model_validate(parse_json(fs.cat_file(local)))
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise RecordError(
                f"the study {path!r} cannot be read ({reason}). `zoobench study NAME` writes it again and repeats no "
                "run; or remove the file, and the folder is reported as a plan's."
            ) from error
    return None


def values_of(study: StudyContent, results: Results) -> dict[str, dict[str, list[float]]]:
    """By variant and metric, the values of its runs in the order of ``study.json``; those without one are left out."""
    keys = list(dict.fromkeys(comparison.metric for comparison in study.comparisons))
    table = results.runs.set_index("run_id")
    found: dict[str, dict[str, list[float]]] = {}
    for variant in study.variants:
        here = [run_id for run_id in variant.runs if run_id in table.index]
        found[variant.name] = {
            key: [v for run in here if math.isfinite(v := _value(key, table.loc[run], results.records[run]))]
            for key in keys
        }
    return found


def judge(comparison: Comparison, values: Mapping[str, Mapping[str, Sequence[float]]]) -> Finding:
    """The finding of one comparison, by `RULE`; ``values`` are those of `values_of`."""
    m = metric(comparison.metric)
    better, than = (np.array(values.get(v, {}).get(m.key, []), float) for v in (comparison.better, comparison.than))
    if m.better == "lower":
        better, than = (than, better) if comparison.ratio else (-better, -than)
    if comparison.ratio and not ((better > 0).all() and (than > 0).all()):
        better = than = np.array([])  # a ratio of what is not positive says nothing
    effect = low = high = math.nan
    if len(better) and len(than):
        if m.exact:
            effect = float(better.mean() / than.mean() if comparison.ratio else better.mean() - than.mean())
            low = high = effect
        elif comparison.ratio:
            effect, low, high = (math.exp(x) for x in welch_interval(np.log(than), np.log(better)))
        else:
            effect, low, high = welch_interval(than, better)
    if low > comparison.margin:
        verdict = SUPPORTED
    elif high <= comparison.margin:
        verdict = NOT_SUPPORTED
    else:
        verdict = UNDECIDED
    return Finding(comparison, effect, low, high, verdict)


def overall(findings: Iterable[Finding]) -> str:
    """The verdict on a study, from those on its comparisons."""
    verdicts = {finding.verdict for finding in findings}
    if NOT_SUPPORTED in verdicts:
        return NOT_SUPPORTED
    return SUPPORTED if verdicts == {SUPPORTED} else UNDECIDED


def _value(key: str, row: Any, record: RunRecord) -> float:
    if record.status == "completed":
        return float(row[key]) if key in row.index else math.nan
    if record.status == "diverged" and key.endswith(("_top1", "_miou")):
        classes = get(record.environment, "data", "classes")
        if key.endswith("_miou"):
            return 0.0
        return 1 / len(classes) if isinstance(classes, list) and classes else math.nan
    return math.nan
