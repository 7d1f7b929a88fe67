"""`zoobench report`: a results folder in, a folder of tables, figures and one page out."""

from __future__ import annotations

from pathlib import Path

from bench.records import unwritable
from reports.loading import load_results, without_collector
from reports.snapshot import take_snapshot
from reports.tables import leaderboard, to_latex, to_markdown, write_csv

FILES = ("accuracy-macs", "accuracy-params", "accuracy-throughput")
"""Figures of the page that are files of their own as well, for a README or a slide."""


@without_collector()
def write_report(results: str | Path, out: str | Path, *, latex: bool = False) -> list[Path]:
    """Write the report of a results folder into a folder of its own, and return the files, the page first.

    `index.html`, a page for each model that has a card or probes, the leaderboard as CSV, Parquet and Markdown (LaTeX
    where asked for), and some figures as SVG. Records that cannot be read are named in the report.
    Raises `RecordError` if ``out`` cannot be written.
    """
    from reports.architecture import models_with_pages, page_name, write_page
    from reports.html import build_page_and_figures

    loaded = load_results(results)
    table = leaderboard(loaded.runs)
    pages = {model: page_name(model) for model in models_with_pages(results, loaded.runs)}
    page, figures = build_page_and_figures(take_snapshot(loaded, pages))
    texts = {"index.html": page, "leaderboard.md": to_markdown(table)}
    texts |= {f"{name}.svg": figures[name] for name in FILES if name in figures}
    if latex:
        texts["leaderboard.tex"] = to_latex(table)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        write_csv(table, folder / "leaderboard.csv")
        table.to_parquet(folder / "leaderboard.parquet", index=False)
    except OSError as error:
        raise unwritable(out, error) from error
    written = [folder / name for name in (*texts, "leaderboard.csv", "leaderboard.parquet")]
    return written + [write_page(loaded, results, model, folder) for model in pages]
