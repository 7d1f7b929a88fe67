"""The page of a study: the claim, what each variant reached, what that decides; a pure function of its snapshot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reports.data.loading import budget_text, text
from reports.data.metrics import MISSING, Metric, counted, format_number, metric
from reports.data.report_data import ReportData
from reports.data.safety import markdown_text
from reports.data.statistics import student_interval
from reports.data.study import RULE, Finding, StudyContent, Variant, judge, overall, values_of
from reports.figures.study import plot_variants
from reports.pages.gallery import Picture, draw_picture
from reports.pages.page import Snapshot, new_snapshot, render
from reports.pages.snapshot import provenance

RUNS_PAGE = "runs.html"
"""The page that compares a study's runs as those of any plan, beside the study's own."""


@dataclass(frozen=True)
class VariantRow:
    """A variant as it is shown: its changes in words, its results, and how many of its runs are done."""

    name: str
    changes: str
    cells: list[str]
    done: str


@dataclass(frozen=True)
class ComparisonRow:
    """A comparison as it is shown; ``interval`` is a dash where there is none."""

    claim: str
    source: str
    what: str
    effect: str
    interval: str
    margin: str
    verdict: str


def take_study_snapshot(data: ReportData) -> Snapshot:
    """Everything that the page of a results folder with a study shows."""
    assert data.study is not None
    runs = data.results.runs
    of_study = runs[runs.run_id.isin([run_id for variant in data.study.variants for run_id in variant.runs])]
    status = dict(zip(of_study.run_id, of_study.status, strict=True))
    return new_snapshot(
        "study",
        study=data.study.model_dump(mode="json"),
        values=values_of(data.study, data.results),
        status={run_id: status[run_id] for run_id in sorted(status)},
        seconds=float(of_study.wall_seconds.sum()),
        disturbed=int((of_study.disturbed > 0).sum()),
        provenance=provenance(of_study, data.results.records),
    )


def findings_of(snapshot: Snapshot) -> tuple[StudyContent, list[Finding]]:
    """The study that a snapshot carries, and the findings on its comparisons."""
    study = StudyContent.model_validate(snapshot["study"])
    return study, [judge(comparison, snapshot["values"]) for comparison in study.comparisons]


def build_study_page(snapshot: Snapshot) -> str:
    """The whole page. Everything it shows is computed from the snapshot, which it carries."""
    study, findings = findings_of(snapshot)
    keys, variants = variant_rows(snapshot)
    return render(
        "study.html.j2",
        snapshot,
        title=study.title,
        study=study,
        verdict=overall(findings),
        setting=" · ".join(_setting(snapshot)),
        part=part_text(snapshot),
        metrics=[metric(key) for key in keys],
        variants=variants,
        pictures=study_pictures(snapshot),
        comparisons=[comparison_row(finding, study) for finding in findings],
        rule=RULE,
        runs_page=RUNS_PAGE,
        provenance=snapshot["provenance"],
    )


def study_pictures(snapshot: Snapshot) -> list[Picture]:
    """The figures of the page: what each seed reached, in each metric that is measured."""
    return [_seeds(snapshot, key) for key in variant_rows(snapshot)[0] if not metric(key).exact]


def variant_rows(snapshot: Snapshot) -> tuple[list[str], list[VariantRow]]:
    """The metrics that the comparisons look at, and what each variant reached in them."""
    study = StudyContent.model_validate(snapshot["study"])
    keys = list(dict.fromkeys(comparison.metric for comparison in study.comparisons))
    return keys, [_variant_row(variant, snapshot, keys) for variant in study.variants]


def comparison_row(finding: Finding, study: StudyContent) -> ComparisonRow:
    """A finding in words and rounded numbers."""
    c = finding.comparison
    m = metric(c.metric)
    known = math.isfinite(finding.low) and math.isfinite(finding.high)
    interval = f"{_effect(finding.low, m, c.ratio)} to {_effect(finding.high, m, c.ratio)}"
    return ComparisonRow(
        claim=c.claim,
        source=c.source or study.source,
        what=f"{c.better} against {c.than}: {m.in_text}",
        effect=_effect(finding.effect, m, c.ratio),
        interval="exact" if m.exact and known else interval if known else MISSING,
        margin=_effect(c.margin, m, c.ratio),
        verdict=finding.verdict,
    )


def part_text(snapshot: Snapshot) -> str:
    """Which part of the study was run, in a sentence."""
    study = snapshot["study"]
    planned = counted(sum(len(variant["runs"]) for variant in study["variants"]), "run")
    statuses = list(snapshot["status"].values())
    lost = ", ".join(f"{statuses.count(status)} {status}" for status in ("diverged", "failed") if status in statuses)
    begun = sum(bool(variant["runs"]) for variant in study["variants"])
    minutes = format_number(snapshot["seconds"] / 60)
    sentences = [
        f"{len(statuses)} of {planned} done{f' ({lost})' if lost else ''}, of {begun} of "
        f"{counted(len(study['variants']), 'variant')}; they took {minutes} minutes."
    ]
    if study["part"]:
        asked = ", ".join(f"{key} {_plain(value)}" for key, value in study["part"].items())
        sentences.append(f"Not the study as it is written, but with {asked}.")
    if snapshot["disturbed"]:
        sentences.append(f"{counted(snapshot['disturbed'], 'run')} disturbed by other programs while measured.")
    return " ".join(sentences)


def _seeds(snapshot: Snapshot, key: str) -> Picture:
    m = metric(key)
    values = {v["name"]: snapshot["values"].get(v["name"], {}).get(key, []) for v in snapshot["study"]["variants"]}
    caption = (
        f"{m.label} of every seed and its mean with Student's 95% interval, by variant; no interval with one seed."
    )
    return draw_picture(f"seeds-{key}", m.label, plot_variants(values, key), caption)


def _setting(snapshot: Snapshot) -> list[str]:
    sources: Sequence[Mapping[str, Any]] = snapshot["provenance"]
    data = dict.fromkeys(source["data"].get("name", "") for source in sources)
    machines = dict.fromkeys(source["machine"].get("cpu", "") for source in sources)
    return [*filter(None, data), *filter(None, machines)]


def _variant_row(variant: Variant, snapshot: Snapshot, keys: Sequence[str]) -> VariantRow:
    cells = []
    for key in keys:
        mean, low, high = student_interval(snapshot["values"].get(variant.name, {}).get(key, []))
        cells.append(metric(key).text_with_interval(mean, low, high))
    done = sum(run_id in snapshot["status"] for run_id in variant.runs)
    changes = ", ".join(f"{key} {_plain(value)}" for key, value in variant.changes.items())
    progress = f"{done} of {len(variant.runs)}" if variant.runs else "not begun"
    return VariantRow(variant.name, changes, cells, progress)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return budget_text(value)
    return ", ".join(map(text, value)) if isinstance(value, list) else text(value)


def _effect(value: float, m: Metric, ratio: bool) -> str:
    """``+1.20 points``, or ``8.60 times`` for a ratio."""
    if not math.isfinite(value):
        return MISSING
    if ratio:
        return f"{format_number(value)} times"
    unit = "points" if m.unit == "%" else m.unit
    sign = "+" if value > 0 else ""
    return f"{sign}{m.text(value)} {unit}".strip()


def findings_as_dict(snapshot: Snapshot) -> dict[str, Any]:
    """The findings as plain JSON, with exact values; None where there is no number."""
    study, findings = findings_of(snapshot)
    return {
        **study.model_dump(include={"name", "claim", "source", "part"}),
        "verdict": overall(findings),
        "runs": snapshot["status"],
        "values": snapshot["values"],
        "comparisons": [finding.comparison.model_dump() | _outcome(finding) for finding in findings],
    }


def findings_as_markdown(snapshots: Sequence[Snapshot]) -> str:
    """The findings of several studies as one table of Markdown, a row for each comparison."""
    lines = ["| study | claim | effect | 95% interval | margin | here |", "| --- | --- | ---: | ---: | ---: | --- |"]
    for snapshot in snapshots:
        study, findings = findings_of(snapshot)
        for finding in findings:
            row = comparison_row(finding, study)
            cells = (study.name, row.claim, row.effect, row.interval, row.margin, row.verdict)
            lines.append(f"| {' | '.join(map(markdown_text, cells))} |")
    parts = [f"`{each['study']['name']}`: {part_text(each)}" for each in snapshots]
    return "\n".join([*lines, "", *(line for part in parts for line in (part, ""))])


def _outcome(finding: Finding) -> dict[str, Any]:
    numbers = {"effect": finding.effect, "low": finding.low, "high": finding.high}
    return {key: value if math.isfinite(value) else None for key, value in numbers.items()} | {
        "verdict": finding.verdict
    }
