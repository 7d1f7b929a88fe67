"""The files of baselines, and those made of what pytest-benchmark stored."""

import json
import subprocess
import sys

import pytest

from bench.baselines import (
    Baseline,
    BaselineError,
    EmptyBaselineError,
    Figure,
    StoredPair,
    list_baselines,
    load_baseline,
    save_baseline,
)
from bench.errors import RecordError
from bench.imported_baselines import import_pytest_benchmark
from bench.measure.compare import CompareOptions
from bench.measure.duet import Block, PairSample, Quad
from bench.measure.interference import Notice
from bench.measure.past import compare_baselines, compare_with_baseline

SUITE = """
import pytest, os

@pytest.mark.parametrize("size", [100, 1000])
def test_sum(benchmark, size):
    benchmark.pedantic(lambda: sum(range(size * int(os.environ["TIMES"]))), rounds=9, iterations=40, warmup_rounds=3)
"""


def pair(seconds=0.03):
    blocks = tuple(Block(lane, seconds * (1 + lane), seconds, 3) for lane in (0, 1, 1, 0))
    quads = (Quad(blocks, ("load",)), Quad(blocks, ()))
    return PairSample(quads, (11, 2), (0.003, 0.03), 1.5, (Notice("load", "others used 9%"),))


def baseline(name="main", **figures):
    return Baseline(
        name=name, source="measured", saved_at="2026-01-02T03:04:05+00:00", side=".", reference="x-1",
        environment={"cpu": "A", "threads": 1}, figures=figures,
    )  # fmt: skip


def test_a_pair_comes_back_as_it_was():
    assert StoredPair.model_validate_json(StoredPair.of(pair()).model_dump_json()).to_sample() == pair()


def test_a_baseline_comes_back_as_it_was(tmp_path):
    kept = baseline(net=Figure(batch_size=4, step_ms=30.0, pairs=(StoredPair.of(pair()),)))
    assert save_baseline(tmp_path / "new" / "folder", kept) == tmp_path / "new" / "folder" / "main.json"
    loaded = load_baseline(tmp_path / "new" / "folder", "main")
    assert loaded == kept
    assert loaded.figures["net"].witnesses(with_cpu=False).wall.log_ratio == pytest.approx(2.4, abs=0.01)  # ln(2·11/2)
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["main.json"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not JSON"),
        ("[]", "schema version None"),
        ('{"schema_version": 2}', "schema version 2"),
        ('{"schema_version": 1}', "name: Field required"),
        ('{"schema_version": 1, "name": "x", "figures": {"net": {"step_ms": 0}}}', "source: Field required"),
    ],
)
def test_a_damaged_baseline_is_named_with_what_is_wrong(tmp_path, content, told):
    (tmp_path / "main.json").write_text(content)
    save_baseline(tmp_path, baseline("other"))
    with pytest.raises(BaselineError, match=told):
        load_baseline(tmp_path, "main")
    baselines, damaged = list_baselines(tmp_path)
    assert [each.name for each in baselines] == ["other"]
    assert len(damaged) == 1


def test_times_that_are_none_are_refused():
    stored = StoredPair.of(pair()).model_dump()
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        stored["quads"][0]["blocks"] = [(0, wrong, 0.1, 0), *stored["quads"][0]["blocks"][1:]]
        with pytest.raises(ValueError, match="quads"):
            StoredPair.model_validate(stored)
    with pytest.raises(ValueError, match="either pairs or sessions"):
        Figure(step_ms=1.0)


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    """Three sessions of real benchmarks, and three with twice the work."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "test_suite.py").write_text(SUITE)
    for times in (1, 2):
        for number in range(3):
            subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_suite.py",
                 "--benchmark-json", f"{times}-{number}.json"],
                cwd=folder, check=True, capture_output=True, env={"TIMES": str(times)},
            )  # fmt: skip
    return folder


def test_sessions_of_pytest_benchmark_become_baselines_that_are_compared(sessions):
    before, after = (import_pytest_benchmark("x", sorted(sessions.glob(f"{times}-*.json"))) for times in (1, 2))
    assert list(before.figures) == ["test_suite.py::test_sum[100]", "test_suite.py::test_sum[1000]"]
    raw = json.loads((sessions / "1-2.json").read_text())["benchmarks"][0]["stats"]["data"]
    assert list(before.figures["test_suite.py::test_sum[100]"].sessions_seconds[2]) == raw
    assert before.reference is None
    comparison = compare_baselines(before, after, CompareOptions(("*1000*",)))
    (result,) = comparison.results
    assert result.status in ("regressed", "inconclusive")  # three sessions of a busy machine may differ much
    assert result.judgement.change > 0.3
    assert comparison.environment_differences == ()
    with pytest.raises(BaselineError, match="which zoobench cannot run"):
        compare_with_baseline(before, ".", CompareOptions(()))


def test_one_session_tells_nothing_on_how_sessions_differ(sessions):
    lone = import_pytest_benchmark("lone", [sessions / "1-0.json"])
    other = import_pytest_benchmark("other", [sessions / "2-0.json"])
    assert {result.status for result in compare_baselines(lone, other, CompareOptions(())).results} == {"inconclusive"}


def test_sessions_that_are_no_repetitions_are_refused(sessions, tmp_path):
    content = json.loads((sessions / "1-0.json").read_text())
    content["machine_info"]["cpu"]["brand_raw"] = "Another CPU"
    (tmp_path / "elsewhere.json").write_text(json.dumps(content))
    with pytest.raises(BaselineError, match=r"differ in their machine.*Another CPU"):
        import_pytest_benchmark("x", [sessions / "1-0.json", tmp_path / "elsewhere.json"])
    content["benchmarks"] = []
    (tmp_path / "none.json").write_text(json.dumps(content))
    with pytest.raises(EmptyBaselineError) as caught:
        import_pytest_benchmark("x", [tmp_path / "none.json"])
    assert caught.value.exit_code == 14
    with pytest.raises(RecordError, match="cannot be read"):
        import_pytest_benchmark("x", [tmp_path / "nothing.json"])
