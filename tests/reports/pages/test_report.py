"""The report as a whole: what is written, for any records there may be, and how fast."""

import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from bench.errors import RecordError
from bench.records import RunFailure
from reports.data.budgets import choices, scores_by_cost
from reports.data.loading import load_history, load_runs
from reports.data.report_data import load_report_data
from reports.pages.snapshot import curves_of, runs_of, take_snapshot
from reports.pages.verify import verify_page
from reports.report import write_report


def test_everything_is_written_and_the_page_comes_first(zoo_results, tmp_path) -> None:
    written = write_report(zoo_results, tmp_path / "a" / "b", latex=True)
    assert written[0].name == "index.html"
    assert {path.name for path in written} == {
        "index.html", "leaderboard.csv", "leaderboard.md", "leaderboard.parquet", "leaderboard.tex",
        "accuracy-macs.svg", "accuracy-params.svg", "accuracy-throughput.svg",
    }  # fmt: skip
    assert all(path.stat().st_size > 100 for path in written)
    csv, parquet = pd.read_csv(tmp_path / "a/b/leaderboard.csv"), pd.read_parquet(tmp_path / "a/b/leaderboard.parquet")
    pd.testing.assert_frame_equal(csv, parquet, check_dtype=False)


def test_the_same_records_give_the_same_page(zoo_results, zoo_report, tmp_path) -> None:
    write_report(zoo_results, tmp_path)
    assert (tmp_path / "index.html").read_bytes() == (zoo_report / "index.html").read_bytes()


def test_a_snapshot_carries_the_runs_as_they_are(zoo_results) -> None:
    data = load_report_data(zoo_results)
    snapshot = take_snapshot(data)
    pd.testing.assert_frame_equal(runs_of(snapshot), data.results.runs)
    assert set(curves_of(snapshot).model) == {"lenet5", "simple_cnn", "mobilenet_v1", "resnet18", "resnet50"}
    assert snapshot["target"]["val_top1"] == pytest.approx(0.8)


def test_failures_disturbances_and_provenance_are_shown(zoo_report) -> None:
    page = (zoo_report / "index.html").read_text(encoding="utf-8")
    for shown in ("OutOfMemoryError: 20 GiB wanted", "in train", "the loss is NaN at step 7", "others used 64%",
                  "zoobench run quick", "c0ffee", "Test CPU", "ab" * 32, "16.0 GiB", "torch 2.14.1"):  # fmt: skip
        assert shown in page, shown


def test_one_view_head_alone_and_what_the_tuner_tried_are_shown_where_records_have_them(save, make_record, tmp_path):
    tuning = {
        "form": {"autocast": True, "channels_last": True, "compile": False},
        "images_per_s": {"float32, contiguous": 1234.4, "bfloat16, channels_last": 2345.6},
        "failed": {"float32, contiguous, compiled": "no compiler <b>"}, "reason": "",
    }  # fmt: skip
    numbers = {"test_top1": 0.5, "macs": 5, "test_single_view_top1": 0.4321, "head_only_top1": 0.3456}
    folder = save([make_record(metrics=numbers, environment={"tuning": tuning})])
    page = write_report(folder, tmp_path / "report")[0]
    shown = page.read_text(encoding="utf-8")
    for heading, value in (("Test accuracy, one view", "43.21"), ("Validation accuracy, head alone", "34.56")):
        assert f">{heading} <br>(%)</th>" in shown
        assert f">{value}</td>" in shown
    words = " ".join(re.sub("<[^>]*>", "", shown[shown.index("How the networks were computed") :]).split())
    assert (
        "lenet5: bfloat16, channels_last; tried: bfloat16, channels_last 2,350 images/s, float32, contiguous 1,230 "
        "images/s; float32, contiguous, compiled failed: no compiler &lt;b&gt;"
    ) in words
    assert verify_page(page, folder).ok


def test_captions_say_what_is_seen(save, make_record, tmp_path):
    """Of one model nothing is compared; of five, of which all are named and reached the target, nothing is left out."""
    alone = write_report(save([make_record()]), tmp_path / "report")[0].read_text(encoding="utf-8")
    assert "lenet5 alone. Bars are 95% intervals.</figcaption>" in alone
    assert "Pareto front, where" not in alone


def test_captions_of_several_models_name_the_better_side_and_who_is_left_out(zoo_report):
    page = (zoo_report / "index.html").read_text(encoding="utf-8")
    captions = dict(re.findall(r'<figcaption id="([^"]+)-caption">(.*?)</figcaption>', page))
    assert captions["accuracy-macs"].startswith("Better is up and to the left. On the Pareto front")
    assert captions["accuracy-throughput"].startswith("Better is up and to the right.")
    for caption in captions.values():
        assert "0 models" not in caption
        assert "overlap" not in caption  # all five have a name
    assert captions["curves-epoch"].startswith("Lines are means over seeds, bands reach")
    assert "A dot" not in captions["curves-epoch"]


def test_the_summary_says_who_wins_and_what_is_open(zoo_report) -> None:
    page = (zoo_report / "index.html").read_text(encoding="utf-8")
    assert "resnet50 has the highest test accuracy" in page
    assert "lenet5 has the fastest inference" in page
    assert "1 of 17 runs diverged, 1 of 17 runs failed. 5 of 17 runs were disturbed while being measured." in page
    assert "The seeds do not separate it from resnet18." in page
    assert "more seeds of each would separate them" in page


def test_the_report_answers_under_smaller_budgets(zoo_results, zoo_report) -> None:
    page = (zoo_report / "index.html").read_text(encoding="utf-8")
    assert '<figure id="budget-seconds">' in page
    assert '<figure id="budget-macs">' in page
    runs, history = load_report_data(zoo_results).main_runs, load_history(zoo_results)
    table = scores_by_cost(runs[runs.status == "completed"], history)
    for choice in choices(table):
        assert f"min: {choice.model} with {100 * choice.score:.2f}% after {choice.epochs:g} epoch" in page


def _nothing(make_record):
    return []


def _one(make_record):
    return [make_record()]


def _failed_only(make_record):
    return [make_record(status="failed", metrics={}, error=RunFailure(kind="E", message="m"))]


def _one_seed(make_record):
    return [make_record(model, metrics={"test_top1": 0.5 + k / 9, "macs": 9**k}) for k, model in enumerate("abc")]


def _nan(make_record):
    return [make_record("a", metrics={"test_top1": math.nan, "macs": 5}), make_record("b", metrics={"test_top1": 0.4})]


def _equal(make_record):
    return [make_record(model, seed) for model in "abc" for seed in (0, 1)]


@pytest.mark.parametrize("records", [_nothing, _one, _failed_only, _one_seed, _nan, _equal])
def test_any_records_make_a_page_that_verifies(records, save, make_record, tmp_path) -> None:
    results = save(records(make_record))
    page = write_report(results, tmp_path / "out", latex=True)[0]
    assert verify_page(page, results).problems == []
    assert not re.search(r"\b(nan|None|inf)\b", page.read_text(encoding="utf-8").partition("<script type")[0])


def test_damaged_records_are_told_of(save, make_record, tmp_path) -> None:
    results = save([make_record()])
    (results / "runs" / "torn.json").write_text("{")
    page = write_report(results, tmp_path / "out")[0].read_text(encoding="utf-8")
    assert "1 record could not be read" in page
    assert "torn.json" in page


def test_an_unwritable_folder_is_a_clear_error(zoo_results, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot be written"):
        write_report(zoo_results, tmp_path / "file" / "out")


def test_the_page_of_a_whole_zoo_stays_under_three_megabytes(save, make_record, tmp_path) -> None:
    from tests.reports.conftest import ZOO, zoo_records

    base = zoo_records(1)
    records = [
        record.model_copy(update={
            "run_id": f"net{k}-s{seed}", "config": record.config | {"model": f"some_network_{k}", "seed": seed},
            "metrics": record.metrics | {"test_top1": 0.5 + k / 150 + seed / 999, "macs": 10**6 * (k + 1)},
            "history": [record.history[0] | {"epoch": e, "seconds": e + 1.5} for e in range(200)],
        })
        for k in range(60) for seed in range(5) for record in [base[k % len(ZOO)]]
    ]  # fmt: skip
    page = write_report(save(records), tmp_path / "out")[0]
    assert page.stat().st_size < 3_000_000


def _copies(folder: Path, text: str, count: int, models: int) -> Path:
    """A folder with ``count`` records of ``models`` models, all made from the text of one."""
    runs = folder / "runs"
    runs.mkdir(parents=True)
    for k in range(count):
        model, seed = k % models, k // models
        name = f"net_{model:05d}"
        one = text.replace('"MODEL"', f'"{name}"').replace("-77", str(seed)).replace("RUN", f"{name}-s{seed}")
        one = one.replace("0.123456", str(0.1 + 0.8 * ((model * 7919) % 10007) / 10007 + seed / 1e5))
        (runs / f"{name}-s{seed}.json").write_text(one.replace("777777", str(1000 * (1 + model * 31 % 977))))
    return folder


@pytest.mark.parametrize("models", [40, 4_000])
def test_thousands_of_records_take_linear_time(make_record, tmp_path, models: int) -> None:
    one = make_record(
        "MODEL", -77, run_id="RUN",
        metrics={"test_top1": 0.123456, "macs": 777777, "params": 777777, "throughput_img_per_s": 50.0},
        history=[{"epoch": e, "seconds": e + 1.0, "val_top1": e / 9} for e in range(5)],
    )  # fmt: skip
    text = json.dumps(one.model_dump(mode="json"))
    write_report(_copies(tmp_path / "warm", text, 10, 5), tmp_path / "warm-report")
    seconds = {}
    for count in (1_000, 4_000):
        results = _copies(tmp_path / str(count), text, count, max(models * count // 4_000, 1))
        start = time.process_time()
        write_report(results, tmp_path / f"{count}-report")
        seconds[count] = time.process_time() - start
    assert seconds[4_000] < 5.5 * seconds[1_000]


def test_importing_reports_is_cheap_and_needs_no_torch() -> None:
    code = (
        "import sys, reports; assert 'write_report' in dir(reports); "
        "assert not {'matplotlib', 'seaborn', 'pandas', 'torch'} & set(sys.modules); "
        "import reports.report, reports.pages.verify, reports.export; assert not {'torch', 'zoo'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there() -> None:
    import reports

    assert all(callable(getattr(reports, name)) for name in reports.__all__)
    with pytest.raises(AttributeError):
        _ = reports.nothing_of_the_kind


def test_load_runs_of_a_folder_that_does_not_exist_is_empty() -> None:
    assert load_runs("/nowhere/at/all").empty
