"""`zoobench report`: a results folder in, a folder of tables, figures and one page out."""

from __future__ import annotations

from pathlib import Path

from bench.records import unwritable
from reports.loading import load_results
from reports.snapshot import take_snapshot
from reports.tables import leaderboard, to_latex, to_markdown, write_csv


def write_report(results: str | Path, out: str | Path, *, latex: bool = False) -> list[Path]:
    """Write the report of a results folder into a folder of its own, and return the files, the page first.

    `index.html`, the leaderboard as CSV, Parquet and Markdown (LaTeX where asked for), and the figures of accuracy
    against MACs and against throughput as SVG. Raises `RecordError` if ``out`` cannot be written. Records that cannot
    be read are named in the report.
    """
    from reports.figures import plot_accuracy_against
    from reports.html import build_page
    from reports.svg import figure_svg

    loaded = load_results(results)
    table = leaderboard(loaded.runs)
    first = table[table.setting == table.setting.iloc[0]] if len(table) else table
    texts = {"index.html": build_page(take_snapshot(loaded)), "leaderboard.md": to_markdown(table)}
    for key in ("macs", "throughput_img_per_s"):
        texts[f"accuracy-{key.split('_')[0]}.svg"] = figure_svg(plot_accuracy_against(first, key))
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
    return [folder / name for name in (*texts, "leaderboard.csv", "leaderboard.parquet")]
