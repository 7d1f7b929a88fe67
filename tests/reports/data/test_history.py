"""Steps in a series of records: synthetic ones, whose steps are known."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.errors import RecordError
from bench.records import Flag
from reports.data.history import change_text, find_steps, load_points
from reports.figures.history import MAX_PANELS, plot_history

ROOT = Path(__file__).parents[3]
DEPEND_ON_TRAINING = (
    "test_top1", "train_loss", "train_seconds", "wall_seconds", "images_seen", "epochs", "steps", "peak_memory_bytes",
    "process_peak_memory_bytes",
)  # fmt: skip


@pytest.fixture
def keep(make_record, save):
    """Write a record for each value, a day apart, the commit `c000000000` and so on; and return the folder."""

    def keep_all(values, key="throughput_img_per_s", flagged=(), change_at=None, **environment):
        records = []
        for day, value in enumerate(values):
            flags = [Flag(kind="load", phase="infer", message="busy")] if day in flagged else []
            torch_version = "2.15.0" if change_at is not None and day >= change_at else "2.14.1"
            surroundings = {
                "started_at": f"2026-03-{1 + day:02}T00:00:00+00:00",
                "git": {"commit": f"c{day:09}", "dirty": False},
                "versions": {"torch": torch_version},
            } | environment
            metrics = {key: float(value), f"{key}_low": 0.99 * value, f"{key}_high": 1.01 * value}
            name = f"lenet5-s{day}-{environment.get('name', '000000000000')}"
            surroundings.pop("name", None)
            records.append(
                make_record("lenet5", day, metrics=metrics, environment=surroundings, flags=flags, run_id=name)
            )
        return save(records)

    return keep_all


def levels(*parts, noise=0.01, seed=0):
    random = np.random.default_rng(seed)
    return np.concatenate([level * np.exp(random.normal(0, noise, count)) for level, count in parts])


def test_a_step_has_its_commit_its_size_and_what_else_changed(keep):
    points = load_points([keep(levels((1000, 12), (880, 12)), change_at=12)], "lenet5")
    (step,) = find_steps(points).to_dict("records")
    assert (step["index"], step["commit"], step["commit_before"]) == (12, "c000000012", "c000000011")
    assert step["low"] < -0.12 < step["high"]
    assert step["low"] < step["change"] < step["high"] < -0.1
    assert step["better"] is False
    assert (step["before"], step["after"]) == (12, 12)
    assert step["also_changed"] == "torch 2.14.1 → 2.15.0"


def test_two_steps_each_against_the_level_before(keep):
    steps = find_steps(load_points([keep(levels((1000, 9), (1200, 9), (1000, 9), seed=1))], "lenet5"))
    assert steps["index"].tolist() == [9, 18]
    assert steps.better.tolist() == [True, False]
    assert steps.change.tolist() == pytest.approx([0.2, -1 / 6], abs=0.02)
    assert (steps.low < [0.2, -1 / 6]).all()
    assert (steps.high > [0.2, -1 / 6]).all()


def test_a_gpu_with_another_power_limit_or_tf32_is_another_series(keep):
    def on(limit, tf32="tf32"):
        machine = {"cpu": "x", "cores": 8, "gpu": "NVIDIA H100", "power_limit_watts": limit, "mig": False}
        return {"machine": machine, "precision": {"cuda_matmul": tf32, "cudnn_conv": tf32}, "name": f"{limit}{tf32}"}

    folders = [keep(levels((1000, 3)), **on(*how)) for how in ((700.0,), (500.0,), (700.0, "ieee"))]
    names = load_points([str(folder) for folder in dict.fromkeys(folders)], "lenet5").series.unique()
    assert len(names) == 3
    assert any("power_limit_watts 500" in name for name in names)
    assert any("cuda_matmul ieee" in name for name in names)


def test_what_training_leaves_is_not_mixed_over_budgets(make_record, save):
    def record(epochs, name):
        config = {"budget": {"epochs": epochs}}
        metrics = dict.fromkeys(DEPEND_ON_TRAINING, 100.0 * epochs) | {"throughput_img_per_s": 1000.0, "macs": 5e6}
        started = {"started_at": f"2026-03-0{epochs}T00:00:00+00:00"}
        return make_record("lenet5", 0, config=config, metrics=metrics, environment=started, run_id=f"lenet5-s0-{name}")

    folder = save([record(3, "a"), record(5, "b")])
    for key in DEPEND_ON_TRAINING:
        assert load_points([folder], "lenet5", key).series.nunique() == 2, key
    for key in ("throughput_img_per_s", "macs"):
        assert load_points([folder], "lenet5", key).series.nunique() == 1, key


def test_no_step_in_noise(keep):
    assert find_steps(load_points([keep(levels((1000, 24)))], "lenet5")).empty


def test_lower_latency_is_better_and_accuracy_steps_are_differences(keep):
    latency = load_points([keep(levels((5.0, 10), (4.0, 10)), "latency_p50_ms")], "lenet5", "latency_p50_ms")
    (step,) = find_steps(latency, "latency_p50_ms").to_dict("records")
    assert step["better"] is True
    assert step["change"] == pytest.approx(-0.2, abs=0.02)
    accuracy = load_points([keep(levels((0.90, 10), (0.85, 10), noise=0.002), "test_top1")], "lenet5", "test_top1")
    steps = find_steps(accuracy, "test_top1")
    assert steps.change[0] == pytest.approx(-0.05, abs=0.005)
    assert change_text(steps.iloc[0], "test_top1").startswith("−")
    assert "%" not in change_text(steps.iloc[0], "test_top1")


def test_unlike_machines_and_threads_are_never_mixed(keep):
    keep(levels((1000, 12)), name="a")
    keep(levels((400, 12)), name="b", machine={"cpu": "Another CPU", "cores": 64})
    folder = keep(levels((700, 10), (500, 2)), name="c")
    points = load_points([folder], "lenet5")
    assert sorted(points.groupby("series").size()) == [12, 24]
    assert {name.split(" · ")[0] for name in points.series.unique()} == {"Test CPU", "Another CPU"}
    slow = points[points.series.str.startswith("Another")]
    assert slow.value.max() < 500


def test_records_come_in_the_order_of_time_from_several_folders_once_each(keep, tmp_path):
    folder = keep(levels((1000, 10)))
    copy = tmp_path / "copy"
    (copy / "runs").mkdir(parents=True)
    for path in sorted((folder / "runs").glob("*.json"))[:5]:
        (copy / "runs" / path.name).write_bytes(path.read_bytes())
    points = load_points([copy, folder], "lenet5")
    assert points.run_id.tolist() == [f"lenet5-s{day}-000000000000" for day in range(10)]


def test_disturbed_records_are_marked_or_left_out(keep):
    folder = keep(levels((1000, 12)), flagged=(3, 4))
    points = load_points([folder], "lenet5")
    assert points.disturbed.tolist() == [day in (3, 4) for day in range(12)]
    assert len(load_points([folder], "lenet5", undisturbed=True)) == 10


def test_the_figure_says_what_it_shows(keep):
    points = load_points([keep(levels((1000, 12), (880, 12)), flagged=(5,))], "lenet5")
    steps = find_steps(points)
    figure = plot_history(points, steps, title="lenet5: throughput_img_per_s")
    (axes,) = figure.axes
    assert "lenet5" in figure.get_suptitle()
    assert axes.get_ylabel() == "Inference (images/s)"
    assert "time" in axes.get_xlabel()
    assert [t.get_text() for t in axes.texts] == [
        f"c00000001\n{change_text(steps.iloc[0], 'throughput_img_per_s').split()[0]}"
    ]
    drawn = [line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1]
    expected = [np.exp(np.log(points.value[part]).mean()) for part in (slice(0, 12), slice(12, 24))]
    assert drawn == pytest.approx(expected)
    shown = np.concatenate([np.asarray(collection.get_offsets()) for collection in axes.collections[-2:]])
    assert sorted(shown[:, 1]) == pytest.approx(sorted(points.value))
    labels = [entry.get_text() for entry in axes.get_legend().get_texts()]
    assert labels == ["record", "disturbed record", "level"]


def test_few_records_and_many_series_are_told_by_the_figure(keep):
    for k in range(MAX_PANELS + 1):
        folder = keep(levels((1000, 2)), name=str(k), machine={"cpu": f"CPU {k}", "cores": 2})
    points = load_points([folder], "lenet5")
    figure = plot_history(points, find_steps(points))
    assert len(figure.axes) == MAX_PANELS
    assert "1 shorter series not shown" in figure.get_suptitle()
    assert "too few for steps" in figure.axes[0].texts[0].get_text()


@pytest.mark.parametrize(
    ("model", "key", "said"),
    [
        ("lenet6", "throughput_img_per_s", "Did you mean 'lenet5'"),
        ("lenet5", "troughput_img_per_s", "Did you mean 'throughput_img_per_s'"),
        ("lenet5", "latency_p99_ms", "--metric"),
    ],
)
def test_bad_input_is_one_paragraph(keep, model, key, said):
    folder = keep(levels((1000, 3)))
    with pytest.raises(RecordError, match=said):
        load_points([folder], model, key)


def test_the_command_prints_the_step_draws_it_and_speaks_json(keep, tmp_path):
    folder = keep(levels((1000, 12), (880, 12)), flagged=(2,))

    def history(*arguments):
        command = [sys.executable, "-m", "zoobench", "history", "lenet5", "--results", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"COLUMNS": "160"})

    shown = history("--figure", str(tmp_path / "new" / "steps.svg"))
    assert shown.returncode == 0, shown.stderr
    for part in ("24 records", "1 of them disturbed", "c000000012", "c000000011", "worse", "−12"):
        assert part in shown.stdout
    assert (tmp_path / "new" / "steps.svg").read_text().count("<svg") == 1
    refused = history("--figure", str(tmp_path / "new" / "steps.svg" / "x.svg"))
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    (series,) = json.loads(history("--json").stdout)["series"]
    assert series["searched"]
    assert [step["commit"] for step in series["steps"]] == ["c000000012"]
    assert len(series["points"]) == 24
    refused = history("--figure", "steps.bmp")
    assert refused.returncode == 2
    assert ".svg" in refused.stderr
