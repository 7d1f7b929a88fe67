"""Files that the real pytest-benchmark wrote, and files that are none."""

import json
import os
import subprocess
import sys

import pytest

from bench.errors import RecordError
from bench.gate.pytest_benchmark import load_pytest_benchmark

ONE = '{"name": "a", "fullname": "f::a", "stats": {"data": [1.0]}}'
SUITE = """
import pytest

@pytest.mark.parametrize("size", [10, 1000])
def test_sum(benchmark, size):
    benchmark.extra_info["unit"] = "numbers"
    benchmark.pedantic(lambda: sum(range(size)), rounds=7, iterations=3)
"""


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    (folder / "test_suite.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_suite.py"]
    command += ["--benchmark-json", "full.json", "--benchmark-save", "short", "--benchmark-storage", "storage"]
    # Of our own session it must not know: in a worker of pytest-xdist benchmarks are switched off.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environment)
    return folder


def test_benchmarks_of_a_real_session(stored):
    benchmarks = load_pytest_benchmark(stored / "full.json")
    raw = json.loads((stored / "full.json").read_text())
    assert [each.name for each in benchmarks] == ["test_sum[10]", "test_sum[1000]"]
    for benchmark, stored_one in zip(benchmarks, raw["benchmarks"], strict=True):
        assert list(benchmark.seconds) == stored_one["stats"]["data"]
        assert len(benchmark.seconds) == 7
        assert benchmark.iterations == 3
        assert benchmark.fullname.endswith(f"test_suite.py::{benchmark.name}")
        assert benchmark.extra_info == {"unit": "numbers"}
        assert benchmark.params == stored_one["params"]
        assert benchmark.machine_info["cpu"] == raw["machine_info"]["cpu"]
        assert benchmark.commit.rstrip("+") == raw["commit_info"]["id"]
        assert benchmark.recorded_at == raw["datetime"]


def test_a_session_saved_without_its_rounds_has_their_median(stored):
    (path,) = (stored / "storage").rglob("*.json")
    raw = json.loads(path.read_text())["benchmarks"]
    for benchmark, stored_one, full in zip(
        load_pytest_benchmark(path), raw, load_pytest_benchmark(stored / "full.json"), strict=True
    ):
        assert "data" not in stored_one["stats"]
        assert benchmark.seconds == (stored_one["stats"]["median"],) == (full.median_seconds,)
        assert benchmark.summarized_rounds == 7
        assert full.summarized_rounds == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[]", "not one of pytest-benchmark's"),
        ('{"benchmarks": [{"name": "a", "stats": {"data": [1.0, "x"]}}]}', "'a'"),
        ('{"benchmarks": [{"name": "a", "stats": {"data": []}}]}', "'a'"),
        ('{"benchmarks": [{"name": "a", "stats": {"data": [NaN]}}]}', "'a'"),
        ('{"benchmarks": [7]}', "has no times"),
        ('{"benchmarks": [{"name": "a", "stats": {"median": 0, "rounds": 5}}]}', "'a' .* has no times"),
        ('{"benchmarks": [{"name": "a", "stats": {"median": 1.5}}]}', "'a' .* no number of rounds"),
        ('{"benchmarks": [{"name": "a", "stats": {"data": [], "median": 1.5, "rounds": 5}}]}', "'a' .* has no times"),
        ('{"benchmarks": [%s, %s]}' % ((ONE,) * 2), "two benchmarks .* are named 'f::a'"),
    ],
)
def test_other_files_are_refused(tmp_path, content, said):
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(RecordError, match=said):
        load_pytest_benchmark(path)


def test_a_missing_file_is_named():
    with pytest.raises(RecordError, match="/no/such/file"):
        load_pytest_benchmark("/no/such/file.json")
