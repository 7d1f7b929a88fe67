"""Files that the real pytest-benchmark wrote, and files that are none."""

import json
import os
import subprocess
import sys

import pytest

from bench.errors import RecordError
from bench.pytest_benchmark import load_pytest_benchmark

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


def test_figures_of_a_real_session(stored):
    figures = load_pytest_benchmark(stored / "full.json")
    raw = json.loads((stored / "full.json").read_text())
    assert [figure.name for figure in figures] == ["test_sum[10]", "test_sum[1000]"]
    for figure, benchmark in zip(figures, raw["benchmarks"], strict=True):
        assert list(figure.seconds) == benchmark["stats"]["data"]
        assert len(figure.seconds) == 7
        assert figure.iterations == 3
        assert figure.fullname.endswith(f"test_suite.py::{figure.name}")
        assert figure.extra_info == {"unit": "numbers"}
        assert figure.params == benchmark["params"]
        assert figure.machine_info["cpu"] == raw["machine_info"]["cpu"]
        assert figure.commit.rstrip("+") == raw["commit_info"]["id"]
        assert figure.recorded_at == raw["datetime"]


def test_a_session_saved_without_its_data_says_how_to_keep_it(stored):
    (path,) = (stored / "storage").rglob("*.json")
    with pytest.raises(RecordError, match="--benchmark-save-data"):
        load_pytest_benchmark(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[]", "not one of pytest-benchmark's"),
        ('{"benchmarks": [{"name": "a", "stats": {"data": [1.0, "x"]}}]}', "'a'"),
        ('{"benchmarks": [{"name": "a", "stats": {"data": []}}]}', "'a'"),
        ('{"benchmarks": [{"name": "a", "stats": {"data": [NaN]}}]}', "'a'"),
        ('{"benchmarks": [7]}', "has no times"),
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
