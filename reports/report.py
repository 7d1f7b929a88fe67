"""`zoobench report`: a results folder in, a folder of tables, figures and one page out."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bench.records import unwritable
from reports.loading import load_results
from reports.tables import leaderboard, to_latex, to_markdown, write_csv


def write_report(results: str | Path, out: str | Path, *, latex: bool = False) -> list[Path]:
    """Write the report of a results folder into a folder of its own, and return the files, the main one first.

    Raises `RecordError` if ``out`` cannot be written. Records that cannot be read are named in the report.
    """
    from reports.figures import plot_accuracy_against
    from reports.svg import figure_svg

    loaded = load_results(results)
    table = leaderboard(loaded.runs)
    folder = Path(out)
    figure = figure_svg(plot_accuracy_against(_main_setting(table)))
    texts = {"leaderboard.md": to_markdown(table), "accuracy-macs.svg": figure}
    if latex:
        texts["leaderboard.tex"] = to_latex(table)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(table, folder / "leaderboard.csv")
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise unwritable(out, error) from error
    return [folder / name for name in ("leaderboard.csv", *texts)]


def _main_setting(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the setting with the most models; the leaderboard has it first."""
    return table[table.setting == table.setting.iloc[0]] if len(table) else table
