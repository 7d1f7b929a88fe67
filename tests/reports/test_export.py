import sqlite3
from contextlib import closing

import pandas as pd
import pytest

from bench.errors import RecordError
from reports.data.loading import load_history, load_runs
from reports.export import export_runs


def test_every_format_holds_the_same_runs(zoo_results, tmp_path) -> None:
    written = {path.name for path in export_runs(zoo_results, tmp_path)}
    tables = ("runs", "history", "leaderboard")
    assert written == {f"{t}.{kind}" for t in tables for kind in ("parquet", "csv")} | {"zoobench.sqlite"}
    for name, expected in (("runs", load_runs(zoo_results)), ("history", load_history(zoo_results))):
        parquet = pd.read_parquet(tmp_path / f"{name}.parquet")
        csv = pd.read_csv(
            tmp_path / f"{name}.csv",
            keep_default_na=False,
            na_values={c: [""] for c in expected.select_dtypes("number")},
        )
        with closing(sqlite3.connect(tmp_path / "zoobench.sqlite")) as connection:
            sql = pd.read_sql(f"select * from {name}", connection)
        pd.testing.assert_frame_equal(parquet, expected)
        for other in (csv, sql):
            numbers = expected.select_dtypes("number").columns
            pd.testing.assert_frame_equal(other[numbers].astype(float), expected[numbers].astype(float))
            assert other.iloc[:, 0].tolist() == expected.iloc[:, 0].tolist()


def test_only_what_is_asked_for_is_written_and_again_replaces(zoo_results, tmp_path) -> None:
    for _ in range(2):
        assert [path.name for path in export_runs(zoo_results, tmp_path, ["sqlite"])] == ["zoobench.sqlite"]
    with closing(sqlite3.connect(tmp_path / "zoobench.sqlite")) as connection:
        assert connection.execute("select count(*) from runs").fetchone() == (17,)


def test_no_records_export_empty_tables(tmp_path) -> None:
    export_runs(tmp_path / "none", tmp_path / "out")
    assert pd.read_parquet(tmp_path / "out" / "runs.parquet").empty


def test_an_unwritable_folder_is_a_clear_error(zoo_results, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot be written"):
        export_runs(zoo_results, tmp_path / "file")
