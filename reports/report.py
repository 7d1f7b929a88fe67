"""`zoobench report`: a plan's results in, a folder of tables, figures and one page out; an index of plans."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from bench.collector import without_collector
from bench.records import Folders, is_local, plan_folders, plan_name, unwritable, write_atomically
from reports.data.leaderboard import to_latex, to_markdown
from reports.data.report_data import ReportData, load_report_data
from reports.pages.snapshot import take_snapshot

FILES = ("accuracy-macs", "accuracy-params", "accuracy-throughput")
"""Figures of the page that are also written as files, for a README or a slide."""


def report_folder(results: str | Path) -> Path:
    """Where the report of a results folder goes by default: into it, or into ``report`` where it is a URL."""
    return Path(results) / "report" if is_local(results) else Path("report")


@without_collector()
def write_report(
    results: Folders, out: str | Path, *, latex: bool = False, beside: Sequence[str | Path] = ()
) -> list[Path]:
    """Write the report of a plan's results folder into a folder of its own, and return the files, the page first.

    `index.html`, a page for each model that has a card or probes, the leaderboard as CSV, Parquet and Markdown (LaTeX
    where asked for), and some figures as SVG; where the runs are those of a study its page comes first, and `runs.html`
    compares them. Records that cannot be read are named in the report. Several results folders, such as those of a
    plan's shards, are drawn as one. ``beside`` are CSV files of timm's results, whose numbers are shown beside ours.
    Raises `RecordError` if ``out`` cannot be written, and `ConfigError` for other files in ``beside``.
    """
    return _write(load_report_data(results, beside), Path(out), latex)


@without_collector()
def write_reports(
    root: str | Path, out: str | Path | None = None, *, latex: bool = False, beside: Sequence[str | Path] = ()
) -> list[Path]:
    """Write a report for each plan in ``root`` and an index of them, and return the files, the index first.

    A report goes into its plan's folder and the index into ``root``; or all into ``out``, a folder for each plan.
    """
    from reports.pages.index import build_index, describe_plan, take_index_snapshot

    home = Path(out) if out is not None else Path(root) if is_local(root) else Path("report")
    entries, written = [], []
    for results in plan_folders(root):
        name = plan_name(results)
        folder = report_folder(results) if out is None and is_local(root) else home / name
        data = load_report_data(results, beside)
        written += _write(data, folder, latex)
        page = os.path.relpath(folder / "index.html", home)
        entries.append(describe_plan(name, quote(Path(page).as_posix()), data))
    index = home / "index.html"
    try:
        home.mkdir(parents=True, exist_ok=True)
        index.write_text(build_index(take_index_snapshot(entries)), encoding="utf-8")
    except OSError as error:
        raise unwritable(home, error) from error
    return [index, *written]


def _write(data: ReportData, folder: Path, latex: bool) -> list[Path]:
    from reports.pages.architecture import models_with_pages, page_name, write_page
    from reports.pages.comparison import build_page_and_figures
    from reports.pages.study import RUNS_PAGE, build_study_page, take_study_snapshot

    pages = {model: page_name(model) for model in models_with_pages(data)}
    page, figures = build_page_and_figures(take_snapshot(data, pages), data.table)
    texts = {"index.html": page, "leaderboard.md": to_markdown(data.table)}
    if data.study is not None:
        texts |= {"index.html": build_study_page(take_study_snapshot(data)), RUNS_PAGE: page}
    texts |= {f"{name}.svg": figures[name] for name in FILES if name in figures}
    if latex:
        texts["leaderboard.tex"] = to_latex(data.table)
    files: dict[str, str | bytes] = {
        **texts,
        "leaderboard.csv": data.table.to_csv(index=False),
        "leaderboard.parquet": data.table.to_parquet(index=False),
    }
    try:
        for name, content in files.items():  # several shards may draw the same report at once
            write_atomically(str(folder / name), content, durable=False)
    except OSError as error:
        raise unwritable(folder, error) from error
    written = [folder / name for name in files]
    return written + [write_page(data, model, folder) for model in pages]
