"""The comparison page: a snapshot in, one self-contained HTML text out; the same snapshot gives the same text."""

from __future__ import annotations

import base64
import hashlib
import math
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from reports.gallery import pictures
from reports.loading import number
from reports.metrics import Metric, metric
from reports.safety import visible
from reports.snapshot import Snapshot, runs_of, to_json
from reports.summary import highlights, inseparable, sentences
from reports.tables import leaderboard, rank_text, ranked_by, scores_in_text, separations, shown_metrics

ROWS, SETTINGS = 1000, 12
"""So many rows and settings a page shows; the tables beside it hold them all."""


@dataclass(frozen=True)
class Cell:
    """One number of a table: what is shown, the key that names it, what it is sorted by, and its whisker."""

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
    tested: bool
    troubled: bool
    scores: str


def build_page(snapshot: Snapshot) -> str:
    """The whole page. Everything it shows is computed from the snapshot, which it carries."""
    return build_page_and_figures(snapshot)[0]


def build_page_and_figures(snapshot: Snapshot) -> tuple[str, dict[str, str]]:
    """The page, and its figures as stand-alone SVG by name."""
    runs = runs_of(snapshot)
    table = leaderboard(runs)
    names = list(dict.fromkeys(table.setting))
    main = table[table.setting == names[0]] if names else table
    pairs = separations(runs, names[0]) if names else separations(runs.assign(setting=""), "")
    data = to_json(snapshot)
    groups = pictures(snapshot, main) if len(main) else {}
    page = render(
        "comparison.html.j2",
        data=data,
        digest=digest(data),
        verifiable=True,
        title=_title(main, runs),
        setting=names[0] if names else "",
        sentences=sentences(main, runs, pairs, int(snapshot["damaged_count"])),
        highlights=highlights(main) if len(main) else [],
        boards=_boards(table, snapshot["pages"]),
        hidden_rows=max(len(table) - ROWS, 0),
        hidden_settings=max(len(names) - SETTINGS, 0),
        inseparable=inseparable(main, pairs) if len(main) else [],
        pairs=(len(pairs), int(pairs.separated.astype(bool).sum())),
        score=metric(ranked_by(main)).in_text,
        groups=groups,
        failures=snapshot["failures"],
        hidden_failures=int((runs.status != "completed").sum()) - len(snapshot["failures"]),
        disturbances=snapshot["disturbances"],
        damaged=snapshot["damaged"],
        hidden_damaged=snapshot["damaged_count"] - len(snapshot["damaged"]),
        provenance=snapshot["provenance"],
        made_with=snapshot["made_with"],
    )
    return page, {picture.name: picture.file for group in groups.values() for picture in group}


def digest(data: str) -> str:
    """The hash of an embedded snapshot that a page shows."""
    return hashlib.sha256(data.encode()).hexdigest()


def render(template: str, **context: Any) -> str:
    """A page from one of our templates: autoescape on, style and script inlined and allowed by their hashes alone."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reports", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    style, script = asset("page.css"), asset("page.js")
    policy = (
        f"default-src 'none'; script-src '{content_hash(script)}'; style-src '{content_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    # Our own two files, and a JSON text with < > & escaped: the only values that are not escaped by the template.
    context |= {"style": Markup(style), "script": Markup(script), "policy": policy}  # noqa: S704
    return environment.get_template(template).render(context | {"data": Markup(context["data"])})  # noqa: S704


def asset(name: str) -> str:
    """The text of our style or script, as a page holds it."""
    return files("reports").joinpath("templates", name).read_text(encoding="utf-8").strip()


def content_hash(text: str) -> str:
    """The hash of a style or script as a Content-Security-Policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _title(table: pd.DataFrame, runs: pd.DataFrame) -> str:
    if runs.empty:
        return "No records yet"
    data = str(runs[runs.setting == table.setting.iloc[0]]["data"].iloc[0])
    return f"{len(table)} architecture{'s' * (len(table) != 1)}" + (f" on {data}" if data else "")


def _boards(table: pd.DataFrame, pages: dict[str, str]) -> list[Board]:
    boards, left = [], ROWS
    for k, (setting, rows) in enumerate(table.groupby("setting", sort=False)):
        if left <= 0 or k >= SETTINGS:
            break
        boards.append(_board(f"b{k}", str(setting), rows.head(left), pages if k == 0 else {}))
        left -= len(rows)
    return boards


def _board(name: str, setting: str, table: pd.DataFrame, pages: dict[str, str]) -> Board:
    metrics = shown_metrics(table)
    score = ranked_by(table)
    accuracy = table[[score, f"{score}_low", f"{score}_high"]]
    low, high = float(accuracy[score].min()), float(accuracy[score].max())
    spread = max(high - low, 0.01)
    scale = (max(float(accuracy.min().min()), low - spread / 2, 0), min(float(accuracy.max().max()), high + spread / 2))
    rows = []
    for k, row in enumerate(table.to_dict("records")):
        key = f"{name}/{k}"
        rank = rank_text(row["rank"], row["rank_worst"], row["tested"])
        cells = [Cell(f"{key}/rank", rank, _sort(row["rank"]))]
        cells += [_cell(key, m, row, scale if m.key == score else None) for m in metrics]
        cells.append(Cell(f"{key}/seeds", str(row["seeds"]), str(row["seeds"])))
        note = ", ".join(
            f"{row[what]} {word}" for what, word in (("failed", "failed"), ("disturbed", "disturbed")) if row[what]
        )
        model = str(row["model"])
        rows.append(Row(model, pages.get(model, ""), cells, note, row["seeds"] == 0))
    troubled = any(row.note for row in rows)
    return Board(name, setting, metrics, rows, bool(table.tested.any()), troubled, scores_in_text(table))


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
