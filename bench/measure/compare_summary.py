"""How a comparison is told: as a table for a terminal, as Markdown for a pull request, as plain values for JSON."""

from __future__ import annotations

import re
import statistics
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.measure.compare import EXIT_CODES, Comparison, ModelResult
from bench.measure.duet import PairSample, Quad

SCHEMA_VERSION = 1
SEEN_FROM = "seen from: the smallest change that this measurement would have found in four of five cases"
COLUMNS = ("model", "verdict", "change", "interval", "seen from", "quads", "disturbed", "why")
STYLES = {"regressed": "bold red", "changed": "bold red", "missing": "red", "new": "red", "failed": "red"}
STYLES |= {"improved": "green", "unchanged": "green", "inconclusive": "yellow"}


def render_table(comparison: Comparison) -> RenderableType:
    """A row a model, the differences of the exact gates beneath, and what it all comes to."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for title in COLUMNS[:-1]:
        table.add_column(title, justify="left" if title in COLUMNS[:2] else "right", no_wrap=True)
    table.columns[0].no_wrap, table.columns[0].min_width, table.columns[0].overflow = False, 12, "fold"
    reasons = []
    for result in comparison.results:
        *row, reason = _row(result)
        table.add_row(*(Text(cell, STYLES[result.status] if at == 1 else "") for at, cell in enumerate(row)))
        if result.status not in ("unchanged", "improved", "regressed", "changed"):
            reasons.append(f"{result.model}: {reason}")
    parts: list[RenderableType] = [table] if comparison.results else []
    parts += [Text(line) for line in [*reasons, *_differences(comparison), *_notes(comparison)]]
    parts += [Text(SEEN_FROM, "dim")] if any(result.judgement for result in comparison.results) else []
    return Group(*parts)


def render_markdown(comparison: Comparison) -> str:
    """For a CI job's summary or a comment on a pull request."""
    lines = [f"### Speed: `{_plain(comparison.base.name)}` → `{_plain(comparison.head.name)}`", ""]
    if comparison.results:
        lines += [f"| {' | '.join(COLUMNS)} |", "|---|---|---|---|---:|---:|---:|---|"]
        for result in comparison.results:
            model, verdict, *rest = (_plain(cell) for cell in _row(result))
            strong = "" if result.status in ("unchanged", "improved") else "**"
            lines.append(f"| `{model}` | {strong}{verdict}{strong} | {' | '.join(rest)} |")
        lines.append("")
    lines += [f"- {_plain(line)}" for line in [*_differences(comparison), *_notes(comparison)]]
    lines += [f"- {SEEN_FROM}"] if any(result.judgement for result in comparison.results) else []
    return "\n".join(lines).rstrip() + "\n"


def comparison_to_dict(comparison: Comparison) -> dict[str, Any]:
    """Everything but the raw blocks. Changes are shares: 0.05 is 5% slower; None where nothing can be said."""
    setting = asdict(comparison.options.setting)
    return {
        "schema_version": SCHEMA_VERSION,
        "base": {"name": comparison.base.name, "commit": comparison.base.commit, **comparison.environments[0]},
        "head": {"name": comparison.head.name, "commit": comparison.head.commit, **comparison.environments[1]},
        "environment_differences": list(comparison.environment_differences),
        "forced": comparison.forced,
        "notes": list(comparison.notes),
        "setting": setting | {"budget_seconds": comparison.options.budget_seconds},
        "tolerance": comparison.options.tolerance,
        "results": [_result_to_dict(result) for result in comparison.results],
        "failures": comparison.failures(),
    }


def raw_to_dict(comparison: Comparison) -> dict[str, Any]:
    """The summary with every block of every pair, disturbed ones included."""
    pairs = {
        result.model: [_pair_to_dict(pair) for pair in result.timing.pairs]
        for result in comparison.results
        if result.timing is not None
    }
    return comparison_to_dict(comparison) | {"pairs": pairs}


def _row(result: ModelResult) -> tuple[str, ...]:
    judgement, timing = result.judgement, result.timing
    if judgement is None or timing is None:
        return result.model, result.status, "–", "–", "–", "–", "–", result.detail
    quads, disturbed = sum(len(pair.quads) for pair in timing.pairs), sum(pair.disturbed for pair in timing.pairs)
    return (
        result.model,
        result.status,
        _change(judgement.change),
        f"{_change(judgement.low)} … {_change(judgement.high)}",
        _change(judgement.smallest_change),
        f"{quads}" if timing.pairs else "–",
        f"{disturbed}" if timing.pairs else "–",
        result.detail,
    )


def _change(share: float | None) -> str:
    """A share as a signed percentage; more than a doubling is all the same here."""
    return "?" if share is None else ">+100%" if share > 1 else f"{share:+.1%}"


def _differences(comparison: Comparison) -> list[str]:
    return [f"{result.model}: {difference}" for result in comparison.results for difference in result.differences]


def _notes(comparison: Comparison) -> list[str]:
    notes = list(comparison.notes)
    if comparison.environment_differences:
        differing = "; ".join(comparison.environment_differences)
        consequence = (
            "measured all the same, as --force asks: what is measured includes these differences"
            if comparison.forced
            else "nothing was measured; --force measures all the same"
        )
        notes.append(f"The environments differ: {differing}. {consequence[0].upper()}{consequence[1:]}.")
    pairs = [pair for result in comparison.results if result.timing is not None for pair in result.timing.pairs]
    noticed: dict[str, list[str]] = {}
    for notice in (notice for pair in pairs for notice in pair.notices):
        noticed.setdefault(notice.kind, []).append(notice.message)
    notes += [f"Disturbed, {len(told)} of {len(pairs)} pairs: {max(told, key=_numbers)}." for told in noticed.values()]
    failures = comparison.failures()
    if failures:
        notes.append("Comes to: " + ", ".join(f"{name} (exit {EXIT_CODES[name]})" for name in failures) + ".")
    return notes


def _numbers(text: str) -> list[float]:
    """By which notices of one kind are ranked: as text, 9% would be more than 67%."""
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


def _result_to_dict(result: ModelResult) -> dict[str, Any]:
    told: dict[str, Any] = {
        "model": result.model,
        "status": result.status,
        "detail": result.detail,
        "differences": [asdict(difference) for difference in result.differences],
    }
    if result.timing is not None:
        timing = result.timing
        told |= {
            "seconds": timing.seconds,
            "batch_size": timing.contest.batch_size,
            "pairs": len(timing.pairs),
            "quads": sum(len(pair.quads) for pair in timing.pairs),
            "disturbed_quads": sum(pair.disturbed for pair in timing.pairs),
            "left_out_quads": sum(len(pair.quads) - len(pair.counted()) for pair in timing.pairs),
            "step_ms": step_ms(timing.pairs),
        }
    if result.judgement is not None:
        told |= {key: value for key, value in asdict(result.judgement).items() if key not in ("verdict", "reason")}
    return {**told, **result.figures}


def step_ms(pairs: list[PairSample]) -> list[float] | None:
    """The median milliseconds of a step on either side, over all blocks."""
    if not pairs:
        return None
    return [
        1000 * statistics.median(_lane_seconds(quad, lane) / pair.steps[lane] for pair in pairs for quad in pair.quads)
        for lane in (0, 1)
    ]


def _lane_seconds(quad: Quad, lane: int) -> float:
    return statistics.mean(block.seconds for block in quad.blocks if block.lane == lane)


def _pair_to_dict(pair: PairSample) -> dict[str, Any]:
    return {
        "steps": list(pair.steps),
        "seconds": pair.seconds,
        "notices": [asdict(notice) for notice in pair.notices],
        "quads": [
            {
                "flags": list(quad.flags),
                "counted": any(quad is counted for counted in pair.counted()),
                "blocks": [asdict(block) for block in quad.blocks],
            }
            for quad in pair.quads
        ],
    }


def _plain(text: str) -> str:
    """Text that Markdown's tables and code spans leave as it is; names and errors are not ours."""
    return " ".join(text.split()).replace("|", "¦").replace("`", "'").replace("<", "‹").replace(">", "›")
