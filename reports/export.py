"""`zoobench export`: the runs as one table for other tools."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Literal

import pandas as pd

from bench.records import Folders, unwritable
from reports.data.loading import history_table
from reports.data.report_data import load_report_data
from reports.export_pytest_benchmark import write_pytest_benchmark

Format = Literal["parquet", "csv", "sqlite", "pytest-benchmark"]


FORMATS: tuple[Format, ...] = ("parquet", "csv", "sqlite")
"""The default: every table."""


def export_runs(results: Folders, out: str | Path, formats: Iterable[Format] = FORMATS) -> list[Path]:
    """Write the tables `runs`, `history` and `leaderboard` into a folder, in each format, and return the files.

    Parquet and CSV have one file per table; SQLite is one `zoobench.sqlite` with three tables. Columns are those of
    `RUN_COLUMNS`, `HISTORY_COLUMNS` and `LEADERBOARD_COLUMNS` (`reports.data`), in full precision; what was not
    measured is empty. ``pytest-benchmark`` is no table: see `reports.export_pytest_benchmark`. Raises `RecordError` if
    the folder cannot be written.
    """
    data = load_report_data(results)
    tables = {
        "runs": data.results.runs,
        "history": history_table(data.results.runs, data.results.records),
        "leaderboard": data.table,
    }
    folder = Path(out)
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind in formats:
            if kind == "pytest-benchmark":
                written += write_pytest_benchmark(data.results.records.values(), folder)
            else:
                written += _WRITERS[kind](tables, folder)
    except (OSError, sqlite3.OperationalError) as error:
        raise unwritable(out, error if isinstance(error, OSError) else OSError(str(error))) from error
    return written


def _parquet(tables: dict[str, pd.DataFrame], folder: Path) -> list[Path]:
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
    return [folder / f"{name}.parquet" for name in tables]


def _csv(tables: dict[str, pd.DataFrame], folder: Path) -> list[Path]:
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False, encoding="utf-8")
    return [folder / f"{name}.csv" for name in tables]


def _sqlite(tables: dict[str, pd.DataFrame], folder: Path) -> list[Path]:
    path = folder / "zoobench.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        for name, table in tables.items():
            table.to_sql(name, connection, index=False, if_exists="replace")
    return [path]


_WRITERS = {"parquet": _parquet, "csv": _csv, "sqlite": _sqlite}
