import io
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from bench.records import RunFailure, save_record
from reports.data.leaderboard import (
    LEADERBOARD_COLUMNS,
    leaderboard,
    pareto_front,
    render_leaderboard,
    row_notes,
    separations,
    to_latex,
    to_markdown,
)
from reports.data.loading import RUN_COLUMNS, load_history, load_results, load_runs
from reports.data.metrics import metric


def test_runs_are_tidy_and_their_columns_documented(zoo_results) -> None:
    runs = load_runs(zoo_results)
    assert len(runs) == 17
    assert list(runs) == list(RUN_COLUMNS)
    assert runs.setting.unique().tolist() == ["digits · fast · 3 epochs · cpu, 2 threads"]
    assert runs.status.value_counts().to_dict() == {"completed": 15, "failed": 1, "diverged": 1}


def test_history_has_a_row_an_epoch_counted_from_one(zoo_results) -> None:
    history = load_history(zoo_results)
    assert len(history) == 15 * 5
    assert sorted(history.epoch.unique()) == [1, 2, 3, 4, 5]


def test_the_leaderboard_is_what_plain_pandas_gives(zoo_results) -> None:
    runs = load_runs(zoo_results)
    table = leaderboard(runs).set_index("model")
    completed = runs[runs.status == "completed"].groupby("model")
    for key in ("test_top1", "macs", "throughput_img_per_s", "train_seconds"):
        pd.testing.assert_series_equal(table[key].dropna().sort_index(), completed[key].mean(), check_names=False)
    half = stats.t.ppf(0.975, 2) * completed.test_top1.std() / math.sqrt(3)
    measured = table[table.seeds > 0].sort_index()
    np.testing.assert_allclose(measured.test_top1_high, completed.test_top1.mean() + half)
    np.testing.assert_allclose(measured.test_top1_low, completed.test_top1.mean() - half)
    assert measured.seeds.tolist() == [3] * 5
    assert list(table.reset_index()[list(LEADERBOARD_COLUMNS)]) == list(LEADERBOARD_COLUMNS)


def test_the_best_stands_first_and_what_failed_last_without_a_rank(zoo_results) -> None:
    table = leaderboard(load_runs(zoo_results))
    assert table.test_top1.dropna().is_monotonic_decreasing
    assert table.model.tolist()[-2:] == ["vit_tiny", "xception"]
    assert table["rank"].isna().tolist() == [False] * 5 + [True] * 2
    assert table.failed.tolist() == [0] * 5 + [1] * 2
    assert table.disturbed.tolist() == [1] * 5 + [0] * 2
    assert table.loc[table.model == "lenet5", "rank"].item() == 5


def test_one_seed_has_wilsons_interval_of_its_accuracy(save, make_record) -> None:
    row = leaderboard(load_runs(save([make_record(metrics={"test_top1": 200 / 297})]))).iloc[0]
    expected = stats.binomtest(200, 297).proportion_ci(method="wilson")
    assert (row.test_top1_low, row.test_top1_high) == pytest.approx((expected.low, expected.high))


def test_a_model_with_one_seed_among_others_says_that_it_is_not_tested(zoo_results, save, make_record) -> None:
    runs = load_runs(zoo_results)
    runs = runs[(runs.model != "lenet5") | (runs.seed == 0)]
    table = leaderboard(runs).set_index("model")
    assert table.rank_basis.to_dict() == dict.fromkeys(table.index, "seeds") | {"lenet5": "order", "vit_tiny": "order",
                                                                               "xception": "order"}  # fmt: skip
    assert table.loc["lenet5", "rank"] == 5
    assert not table.tested["lenet5"]
    assert "not tested: one seed" in to_markdown(leaderboard(runs))


def test_one_seed_takes_the_interval_of_its_own_blocks(save, make_record) -> None:
    numbers = {
        "test_top1": 0.5,
        "throughput_img_per_s": 100.0,
        "throughput_img_per_s_low": 90.0,
        "throughput_img_per_s_high": 110.0,
        "latency_p50_ms": 2.0,
        "latency_p50_ms_low": 1.5,
        "latency_p50_ms_high": 2.5,
    }
    table = leaderboard(load_runs(save([make_record(metrics=numbers)])))
    assert (table.throughput_img_per_s_low[0], table.throughput_img_per_s_high[0]) == (90, 110)
    assert (table.latency_p50_ms_low[0], table.latency_p50_ms_high[0]) == (1.5, 2.5)


def test_a_size_that_was_asked_for_is_a_setting_of_its_own(save, make_record) -> None:
    runs = [make_record(seed=k, config={"network_input_size": size}) for k, size in enumerate((None, 160))]
    assert load_runs(save(runs)).setting.nunique() == 2


def test_runs_under_other_terms_are_not_averaged_with_these(save, make_record) -> None:
    other = {"budget": {"epochs": 9, "seconds": None}}
    faster = {"machine": {"cpu": "Another CPU"}}
    runs = [
        make_record("a", 0), make_record("b", 0),
        make_record("a", 0, metrics={"test_top1": 0.9}, config=other, run_id="a9"),
        make_record("a", 0, metrics={"test_top1": 0.7}, environment=faster, run_id="ax"),
    ]  # fmt: skip
    table = leaderboard(load_runs(save(runs)))
    assert len(table) == 4
    assert table.setting.nunique() == 3
    assert table.setting[0] == table.setting[1]  # the setting with the most models comes first
    assert table["rank"].tolist() == [1, 1, 1, 1]


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=30))
def test_the_pareto_front_is_what_the_definition_says(points: list[tuple[int, int]]) -> None:
    df = pd.DataFrame(points, columns=["macs", "test_top1"], dtype=float)
    front = pareto_front(df)
    beaten = [
        any(x <= a and y >= b and (x < a or y > b) for x, y in points)
        for a, b in points
    ]  # fmt: skip
    assert set(front.index) == {k for k, lost in enumerate(beaten) if not lost}
    assert front.macs.is_monotonic_increasing


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=30))
def test_for_speed_the_front_is_that_of_its_negative(points: list[tuple[int, int]]) -> None:
    df = pd.DataFrame(points, columns=["speed", "test_top1"], dtype=float)
    mirrored = pareto_front(df.assign(speed=-df.speed), "speed")
    assert set(pareto_front(df, "speed", cost_better="higher").index) == set(mirrored.index)


def test_rows_without_a_number_are_not_on_the_front() -> None:
    df = pd.DataFrame({"macs": [1.0, math.nan, 2.0], "test_top1": [0.5, 0.9, math.nan]})
    assert pareto_front(df).index.tolist() == [0]


def test_separations_are_those_of_the_setting(zoo_results) -> None:
    runs = load_runs(zoo_results)
    pairs = separations(runs, runs.setting[0])
    assert len(pairs) == 10
    assert pairs[(pairs.a == "resnet50") & (pairs.b == "lenet5")].separated.all()


def test_markdown_has_a_row_a_model_and_escapes_names(zoo_results, save, make_record) -> None:
    text = to_markdown(leaderboard(load_runs(zoo_results)))
    assert "| 5 | lenet5 | " in text
    hostile = to_markdown(leaderboard(load_runs(save([make_record("a|b <script>\n*x*")]))))
    assert r"a\|b &lt;script&gt; \*x\*" in hostile
    assert to_markdown(leaderboard(load_runs("/nowhere/at/all"))) == "No runs.\n"


def test_latex_escapes_what_would_break_it(save, make_record) -> None:
    text = to_latex(leaderboard(load_runs(save([make_record(r"50%_{\input x}&$")]))))
    assert r"50\%\_\{\textbackslash{}input x\}\&\$" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_terminal_shows_names_and_numbers_whole(zoo_results, width: int) -> None:
    out = io.StringIO()
    table = leaderboard(load_runs(zoo_results))
    Console(file=out, width=width).print(render_leaderboard(table))
    text = out.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert "1 failed" in text
    for row in table[table.seeds > 0].to_dict("records"):
        (line,) = (line for line in text.splitlines() if f" {row['model']} " in line)
        accuracy = metric("test_top1").text_with_interval(row["test_top1"], row["test_top1_low"], row["test_top1_high"])
        assert accuracy in line
        assert metric("throughput_img_per_s").text(row["throughput_img_per_s"]) in line


def test_nothing_is_shown_for_nothing() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(render_leaderboard(load_runs("/nowhere/at/all")))
    assert "No runs yet." in " ".join(out.getvalue().split())


def test_a_record_may_hold_anything(save, make_record) -> None:
    odd = make_record(
        "odd",
        metrics={"params": "many", "macs": True, "test_top1": 10**400, "throughput_img_per_s": -1},
        config={"recipe": "x", "budget": 7, "seed": "one", "threads": None, "measure": [], "data": ["a"]},
        environment={
            "machine": "a machine",
            "versions": None,
            "git": [],
            "data": 3,
            "started_at": 12.5,
            "peak_macs_per_s": "x",
        },
        history=[{"epoch": None}, {"val_top1": "high"}, {}],
        samples={"test_confusion": [1.0, 2.0], "test_calibration": [[1.0], [1.0, 2.0]], "x": []},
        status="failed",
        error=RunFailure(kind="", message=""),
    )
    results = load_results(save([odd]))
    assert results.runs.model.tolist() == ["odd"]
    assert results.runs[["params", "macs", "seed"]].isna().all(axis=None)
    assert len(leaderboard(results.runs)) == 1


def test_damaged_records_are_named_and_the_others_read(save, make_record) -> None:
    folder = save([make_record()])
    (folder / "runs" / "torn.json").write_text('{"schema_version": 1, "run')
    (folder / "runs" / "later.json").write_text('{"schema_version": 99}')
    (folder / "runs" / "lenet5.card.json").write_text("{}")
    results = load_results(folder)
    assert len(results.runs) == 1
    assert [("later" in m and "99" in m, "torn" in m) for m in results.damaged] == [(True, False), (False, True)]


def test_saving_and_loading_keeps_full_precision(tmp_path, make_record) -> None:
    value = 0.1 + 0.2
    save_record(make_record(metrics={"test_top1": value}), tmp_path)
    assert load_runs(tmp_path).test_top1[0] == value


def test_a_budget_that_did_not_suffice_is_said(make_record, save) -> None:
    learned = {"test_top1": 0.93, "epochs": 0.24, "throughput_batch_size": 8}
    runs = [
        make_record("small", metrics=learned),
        make_record("large", metrics=learned | {"test_top1": 0.31}),
        make_record("weak", metrics=learned | {"test_top1": 0.31, "epochs": 30.0}),
    ]
    table = leaderboard(load_runs(save(runs)))
    assert dict(zip(table.model, row_notes(table), strict=True)) == {
        "small": "", "large": "too few epochs: 0.24", "weak": "",
    }  # fmt: skip
    out = io.StringIO()
    Console(file=out, width=200).print(render_leaderboard(table))
    shown = out.getvalue()
    assert all(text in shown for text in ("Epochs", "0.240", "30.0", "Batch", "too few epochs: 0.24"))
