"""The comparison page: a snapshot in, one self-contained HTML text out; the same snapshot gives the same text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reports.data.leaderboard import (
    leaderboard,
    note_on_ranks,
    rank_text,
    ranked_by,
    row_notes,
    separations,
    shown_metrics,
)
from reports.data.loading import number
from reports.data.metrics import MISSING, Metric, metric
from reports.pages.gallery import pictures
from reports.pages.page import Snapshot, render
from reports.pages.snapshot import comparisons_of, published_of, runs_of
from reports.pages.summary import highlights, inseparable, sentences

ROWS, SETTINGS = 1000, 12
"""The most rows and settings that a page shows; the tables beside it hold them all."""
PUBLISHED = {"speed": "Inference, published (images/s)", "accuracy": "Top-1, published (%)"}
"""Headings of the columns of what others have measured, on their machines and data."""


@dataclass(frozen=True)
class Cell:
    """One number of a table: its key, the text shown, the value it is sorted by, and its whisker."""

    key: str
    text: str
    value: str
    whisker: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class Row:
    """One model of a leaderboard."""

    model: str
    page: str
    cells: list[Cell]
    note: str
    lost: bool


@dataclass(frozen=True)
class Board:
    """The leaderboard of one setting."""

    name: str
    setting: str
    metrics: list[Metric]
    rows: list[Row]
    noted: bool
    ranks: str
    published: list[str]


def build_page(snapshot: Snapshot) -> str:
    """The whole page. Everything it shows is computed from the snapshot, which it carries."""
    return build_page_and_figures(snapshot, leaderboard(runs_of(snapshot), comparisons_of(snapshot)))[0]


def build_page_and_figures(snapshot: Snapshot, table: pd.DataFrame) -> tuple[str, dict[str, str]]:
    """The page, and its figures as stand-alone SVG by name; ``table`` is the leaderboard of the snapshot's runs."""
    runs = runs_of(snapshot)
    names = list(dict.fromkeys(table.setting))
    main = table[table.setting == names[0]] if names else table
    pairs = separations(runs, names[0] if names else "", comparisons_of(snapshot))
    groups = pictures(snapshot, main) if len(main) else {}
    page = render(
        "comparison.html.j2",
        snapshot,
        title=_title(main, runs),
        setting=names[0] if names else "",
        sentences=sentences(main, runs, int(snapshot["damaged_count"])),
        highlights=highlights(main) if len(main) else [],
        boards=_boards(table, snapshot),
        published=snapshot.get("published"),
        hidden_rows=max(len(table) - ROWS, 0),
        hidden_settings=max(len(names) - SETTINGS, 0),
        inseparable=inseparable(main, pairs) if len(main) else [],
        pairs=(int(pairs.p.notna().sum()), int(pairs.separated.astype(bool).sum())),
        by_images="only_a" in pairs,
        score=metric(ranked_by(main)).in_text,
        groups=groups,
        failures=snapshot["failures"],
        hidden_failures=int((runs.status != "completed").sum()) - len(snapshot["failures"]),
        disturbances=snapshot["disturbances"],
        disturbed=(int((runs.disturbed > 0).sum()), len(runs)),
        damaged=snapshot["damaged"],
        hidden_damaged=snapshot["damaged_count"] - len(snapshot["damaged"]),
        tuning=_tuning(snapshot),
        provenance=snapshot["provenance"],
    )
    return page, {picture.name: picture.file for group in groups.values() for picture in group}


def _tuning(snapshot: Snapshot) -> list[dict[str, Any]]:
    """What was tried to compute faster, the fastest first; an earlier page has none."""
    speed = metric("train_throughput_img_per_s")
    choices = []
    for choice in snapshot.get("tuning", []):
        tried = sorted(choice["tried"], key=lambda each: -(each["images_per_s"] or 0))
        shown = [{"form": each["form"], "speed": speed.text(each["images_per_s"])} for each in tried]
        choices.append(choice | {"tried": shown})
    return choices


def _title(table: pd.DataFrame, runs: pd.DataFrame) -> str:
    if runs.empty:
        return "No records yet"
    data = str(runs[runs.setting == table.setting.iloc[0]]["data"].iloc[0])
    return f"{len(table)} architecture{'s' * (len(table) != 1)}" + (f" on {data}" if data else "")


def _boards(table: pd.DataFrame, snapshot: Snapshot) -> list[Board]:
    boards, left = [], ROWS
    for k, (setting, rows) in enumerate(table.groupby("setting", sort=False)):
        if left <= 0 or k >= SETTINGS:
            break
        boards.append(_board(f"b{k}", str(setting), rows.head(left), snapshot if k == 0 else {}))
        left -= len(rows)
    return boards


def _board(name: str, setting: str, table: pd.DataFrame, snapshot: Snapshot) -> Board:
    pages, metrics = snapshot.get("pages", {}), shown_metrics(table)
    others = {heading: published_of(snapshot, kind) for kind, heading in PUBLISHED.items()}
    others = {heading: rows for heading, rows in others.items() if rows}
    score = ranked_by(table)
    accuracy = table[[score, f"{score}_low", f"{score}_high"]]
    low, high = float(accuracy[score].min()), float(accuracy[score].max())
    spread = max(high - low, 0.01)
    scale = (max(float(accuracy.min().min()), low - spread / 2, 0), min(float(accuracy.max().max()), high + spread / 2))
    rows = []
    for k, (row, note) in enumerate(zip(table.to_dict("records"), row_notes(table), strict=True)):
        key = f"{name}/{k}"
        rank = rank_text(row["rank"], row["rank_worst"], row["tested"])
        cells = [Cell(f"{key}/rank", rank, _sort(row["rank"]))]
        cells += [_cell(key, m, row, scale if m.key == score else None) for m in metrics]
        cells.append(Cell(f"{key}/seeds", str(row["seeds"]), str(row["seeds"])))
        model = str(row["model"])
        cells += [_published_cell(f"{key}/{heading}", rows.get(model)) for heading, rows in others.items()]
        rows.append(Row(model, pages.get(model, ""), cells, note, row["seeds"] == 0))
    return Board(name, setting, metrics, rows, any(row.note for row in rows), note_on_ranks(table), list(others))


def _published_cell(key: str, row: dict[str, Any] | None) -> Cell:
    """``1,234 at 224 px``: what others have measured, and on which images."""
    if row is None:
        return Cell(key, MISSING, "")
    known = metric("throughput_img_per_s" if row["kind"] == "speed" else "test_top1")
    value = row["throughput_img_per_s"] if row["kind"] == "speed" else row["top1"]
    return Cell(key, f"{known.text(value)} at {row['input_size']} px", _sort(number(value)))


def _cell(key: str, m: Metric, row: dict[Any, Any], scale: tuple[float, float] | None) -> Cell:
    value, low, high = (number(row[column]) for column in (m.key, f"{m.key}_low", f"{m.key}_high"))
    whisker = None
    if scale and math.isfinite(value):
        start, end = scale
        places = [value if math.isnan(x) else min(max(x, start), end) for x in (low, value, high)]
        whisker = tuple(f"{4 + 92 * (x - start) / max(end - start, 1e-9):.1f}" for x in places)
    return Cell(f"{key}/{m.key}", m.text_with_interval(value, low, high), _sort(value), whisker)  # type: ignore[arg-type]


def _sort(value: float) -> str:
    return "" if math.isnan(value) else repr(value)
