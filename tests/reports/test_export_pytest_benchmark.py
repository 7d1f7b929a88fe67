"""Held against the real tool: its statistics, and its own comparison of our files."""

import json
import subprocess
import sys

import numpy as np
import pytest
from pytest_benchmark.stats import Stats

from bench.errors import RecordError
from bench.gate.pytest_benchmark import load_pytest_benchmark
from bench.records import Flag
from reports.export import export_runs
from reports.export_pytest_benchmark import summarize_rounds


@pytest.fixture
def keep(make_record, save):
    """Records of two runs at two commits, twice as slow at the second."""

    def keep_all():
        records = []
        for seed, (commit, day, factor) in enumerate([("aaa111", 1, 1.0), ("bbb222", 2, 2.0)]):
            for name in ("lenet5", "resnet18"):
                blocks = np.linspace(0.05, 0.06, 7) * factor
                records.append(
                    make_record(
                        name,
                        seed,
                        run_id=f"{name}-s{seed}-0123456789ab",
                        metrics={"throughput_steps_per_block": 5, "throughput_batch_size": 64},
                        samples={"infer_block_seconds": blocks.tolist(), "latency_seconds": [0.001, 0.002, 0.003]},
                        environment={
                            "started_at": f"2026-03-0{day}T00:00:00+00:00",
                            "git": {"commit": commit, "dirty": day == 2},
                        },
                        flags=[Flag(kind="load", phase="measure_infer", message="busy")] if day == 2 else [],
                    )
                )
        return save(records)

    return keep_all


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 9, 30])
def test_the_summary_is_the_one_that_pytest_benchmark_makes(count):
    data = np.random.default_rng(count).lognormal(0, 1, count).tolist()
    theirs = Stats()
    for seconds in data:
        theirs.update(seconds)
    ours = summarize_rounds(data)
    assert list(ours) == list(Stats.fields)
    for name, value in theirs.as_dict().items():
        assert ours[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-12)), name


def test_the_real_tool_compares_our_files(keep, tmp_path):
    written = export_runs(keep(), tmp_path / "out", ["pytest-benchmark"])
    assert [path.name for path in written] == ["0001_aaa111.json", "0002_bbb222.json"]
    table = tmp_path / "compared.csv"
    command = [sys.executable, "-m", "pytest_benchmark", "--storage", str(tmp_path / "storage"), "compare"]
    process = subprocess.run(
        [*command, *map(str, written), "--group-by", "group", "--csv", str(table)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert process.returncode == 0, process.stderr
    assert "Failed" not in process.stderr
    for part in ("infer[lenet5-s0-0123456789ab]", "infer[resnet18-s1-0123456789ab]", "latency[lenet5-s0"):
        assert part in process.stdout
    rows = [line.split(",") for line in table.read_text().splitlines()]
    median = rows[0].index("median")
    medians = {row[0].rpartition("::")[2]: float(row[median]) for row in rows[1:]}
    assert medians["infer[lenet5-s0-0123456789ab]"] == pytest.approx(0.055 / 5)
    assert medians["infer[lenet5-s1-0123456789ab]"] == pytest.approx(0.110 / 5)
    assert medians["latency[lenet5-s0-0123456789ab]"] == pytest.approx(0.002)


def test_our_files_read_back_as_figures(keep, tmp_path):
    _, second = export_runs(keep(), tmp_path, ["pytest-benchmark"])
    figures = {figure.name: figure for figure in load_pytest_benchmark(second)}
    assert len(figures) == 4
    figure = figures["infer[resnet18-s1-0123456789ab]"]
    assert figure.seconds == pytest.approx(np.linspace(0.05, 0.06, 7) * 2 / 5)
    assert (figure.iterations, figure.commit) == (5, "bbb222+")
    assert figure.params == {"model": "resnet18", "seed": 1}
    assert figure.extra_info["batch_size"] == 64
    assert "busy" in figure.extra_info["disturbed"][0]
    assert figure.machine_info["cpu"] == "Test CPU"


def test_unlike_machines_are_apart(make_record, save, tmp_path):
    samples = {"infer_block_seconds": [0.1, 0.1]}
    records = [
        make_record("lenet5", k, samples=samples, environment={"machine": {"cpu": f"CPU {k}"}}) for k in range(2)
    ]
    written = export_runs(save(records), tmp_path, ["pytest-benchmark"])
    assert [json.loads(path.read_text())["machine_info"]["cpu"] for path in written] == ["CPU 0", "CPU 1"]


def test_records_without_times_are_nothing_to_write(make_record, save, tmp_path):
    hostile = make_record("lenet5", samples={"infer_block_seconds": [[1.0], [-2.0]], "latency_seconds": [-1.0]})
    with pytest.raises(RecordError, match="no record has timed blocks"):
        export_runs(save([hostile]), tmp_path, ["pytest-benchmark"])


def test_the_blocks_of_all_repeats_are_rounds(make_record, save, tmp_path):
    record = make_record("lenet5", samples={"infer_block_seconds": [[0.1, 0.2], [0.3], [0.4]]})
    (path,) = export_runs(save([record]), tmp_path, ["pytest-benchmark"])
    (benchmark,) = (each for each in json.loads(path.read_text())["benchmarks"] if each["group"] == "infer")
    steps = benchmark["stats"]["iterations"]
    assert benchmark["stats"]["data"] == [seconds / steps for seconds in (0.1, 0.2, 0.3, 0.4)]
