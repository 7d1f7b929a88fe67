"""The files of baselines, and those made of what pytest-benchmark stored."""

import json
import subprocess
import sys

import pytest

from bench.cli.baseline import _print
from bench.errors import RecordError
from bench.gate.baselines import (
    Baseline,
    BaselineError,
    EmptyBaselineError,
    Entry,
    list_baselines,
    load_baseline,
    save_baseline,
)
from bench.gate.compare import compare
from bench.gate.pytest_benchmark import import_pytest_benchmark
from bench.gate.result import CompareOptions
from bench.gate.summary import render_markdown
from bench.gate.timing.interference import Notice
from bench.gate.timing.reference import REFERENCE
from bench.gate.timing.sample import Abba, Block, PairSample

SUITE = """
import pytest, os

@pytest.mark.parametrize("size", [100, 1000])
def test_sum(benchmark, size):
    benchmark.pedantic(lambda: sum(range(size * int(os.environ["TIMES"]))), rounds=9, iterations=40, warmup_rounds=3)
"""


def pair(seconds=0.03):
    blocks = tuple(Block(subject, seconds * (1 + subject), seconds, 3) for subject in (0, 1, 1, 0))
    return PairSample(
        (Abba(blocks, ("load",)), Abba(blocks, ())), (11, 2), (0.003, 0.03), 1.5, (Notice("load", "others used 9%"),)
    )


def baseline(name="main", **entries):
    return Baseline(
        name=name, source="measured", saved_at="2026-01-02T03:04:05+00:00", side=".", reference="x-1",
        environment={"cpu": "A", "threads": 1}, entries=entries,
    )  # fmt: skip


def test_a_baseline_comes_back_as_it_was(tmp_path):
    kept = baseline(net=Entry(batch_size=4, step_ms=30.0, pairs=(pair(),)))
    assert save_baseline(tmp_path / "new" / "folder", kept) == tmp_path / "new" / "folder" / "main.json"
    loaded = load_baseline(tmp_path / "new" / "folder", "main")
    assert loaded == kept
    assert loaded.entries["net"].clocks(with_cpu=False).wall.log_ratio == pytest.approx(2.4, abs=0.01)  # ln(2·11/2)
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["main.json"]


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ("{", "not JSON"),
        ("[]", "schema version None"),
        ('{"schema_version": 2}', "schema version 2"),
        ('{"schema_version": 1}', "name: Field required"),
        ('{"schema_version": 1, "name": "x", "figures": {"net": {"step_ms": 0}}}', "source: Field required"),
    ],
)
def test_a_damaged_baseline_is_named_with_what_is_wrong(tmp_path, content, shown):
    (tmp_path / "main.json").write_text(content)
    save_baseline(tmp_path, baseline("other"))
    with pytest.raises(BaselineError, match=shown):
        load_baseline(tmp_path, "main")
    baselines, damaged = list_baselines(tmp_path)
    assert [each.name for each in baselines] == ["other"]
    assert len(damaged) == 1


def test_a_network_without_the_workload_it_was_timed_beside_is_refused():
    entry = Entry(batch_size=4, step_ms=30.0, pairs=(pair(),))
    content = baseline(net=entry).model_dump(mode="json") | {"reference": REFERENCE}
    with pytest.raises(ValueError, match="without their workload: net"):
        Baseline.model_validate(content)


def test_times_that_are_none_are_refused():
    stored = Entry(step_ms=30.0, pairs=(pair(),)).model_dump(mode="json")
    first = stored["pairs"][0]["quads"][0]["blocks"]
    assert first[0] == [0, 0.03, 0.03, 3]  # as in every file since the first
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        stored["pairs"][0]["quads"][0]["blocks"] = [[0, wrong, 0.1, 0], *first[1:]]
        with pytest.raises(ValueError, match=r"pairs\.0\.quads\.0\.blocks\.0"):
            Entry.model_validate(stored)
    for wrong in ([[2, 0.1, 0.1, 0], *first[1:]], first[:3], []):
        stored["pairs"][0]["quads"][0]["blocks"] = wrong
        with pytest.raises(ValueError, match=r"pairs\.0\.quads\.0\.blocks"):
            Entry.model_validate(stored)
    stored["pairs"][0]["quads"] = []
    with pytest.raises(ValueError, match=r"pairs\.0\.quads"):
        Entry.model_validate(stored)
    with pytest.raises(ValueError, match="either pairs or sessions"):
        Entry(step_ms=1.0)


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
    assert list(before.entries) == ["test_suite.py::test_sum[100]", "test_suite.py::test_sum[1000]"]
    raw = json.loads((sessions / "1-2.json").read_text())["benchmarks"][0]["stats"]["data"]
    assert list(before.entries["test_suite.py::test_sum[100]"].sessions_seconds[2]) == raw
    assert before.reference is None
    comparison = compare(before, after, CompareOptions(("*1000*",)))
    (result,) = comparison.results
    assert result.status in ("regressed", "inconclusive")  # three sessions of a busy machine may differ much
    assert result.judgement.change > 0.3
    assert comparison.environment_differences == ()
    with pytest.raises(BaselineError, match="which zoobench cannot run"):
        compare(before, ".", CompareOptions(()))


def test_one_session_tells_nothing_on_how_sessions_differ(sessions):
    lone = import_pytest_benchmark("lone", [sessions / "1-0.json"])
    other = import_pytest_benchmark("other", [sessions / "2-0.json"])
    assert {result.status for result in compare(lone, other, CompareOptions(())).results} == {"inconclusive"}


def test_sessions_that_are_no_repetitions_are_refused(sessions, tmp_path):
    content = json.loads((sessions / "1-0.json").read_text())
    content["machine_info"]["cpu"]["brand_raw"] = "Another CPU"
    (tmp_path / "elsewhere.json").write_text(json.dumps(content))
    with pytest.raises(BaselineError, match=r"differ in their machine.*Another CPU"):
        import_pytest_benchmark("x", [sessions / "1-0.json", tmp_path / "elsewhere.json"])
    with pytest.raises(BaselineError, match=r"1-0.json and .*1-0.json are the same session"):
        import_pytest_benchmark("x", [sessions / "1-0.json", sessions / "1-1.json", sessions / "1-0.json"])
    content["benchmarks"] = []
    (tmp_path / "none.json").write_text(json.dumps(content))
    with pytest.raises(EmptyBaselineError) as caught:
        import_pytest_benchmark("x", [tmp_path / "none.json"])
    assert caught.value.exit_code == 14
    with pytest.raises(RecordError, match="cannot be read"):
        import_pytest_benchmark("x", [tmp_path / "nothing.json"])


def summary_file(path, *medians, rounds=20):
    """As repositories keep it: pytest-benchmark's statistics of one benchmark, without its rounds."""
    stats = [{"median": median, "mean": 1.1 * median, "rounds": rounds, "iterations": 1} for median in medians]
    benchmarks = [{"name": f"b{at}", "fullname": f"t.py::b{at}", "stats": each} for at, each in enumerate(stats)]
    path.write_text(json.dumps({"machine_info": {"cpu": {"brand_raw": "A"}}, "benchmarks": benchmarks}))
    return path


def test_files_with_medians_alone_are_compared_by_one_value_a_session(tmp_path, capsys):
    before = [summary_file(tmp_path / f"a{at}.json", 1.0 + at / 1000, 2.0 - at / 1000) for at in range(4)]
    after = [summary_file(tmp_path / f"b{at}.json", 1.3 + at / 1000, 2.0 + at / 1000) for at in range(4)]
    base, head = import_pytest_benchmark("a", before), import_pytest_benchmark("b", after)
    assert base.entries["t.py::b0"].sessions_seconds == ((1.0,), (1.001,), (1.002,), (1.003,))
    assert base.entries["t.py::b0"].summarized_rounds == (20,) * 4
    comparison = compare(base, head, CompareOptions(()))
    assert {result.model: result.status for result in comparison.results} == {
        "t.py::b0": "regressed",
        "t.py::b1": "unchanged",
    }
    first = comparison.results[0].judgement
    assert first.change == pytest.approx(1.3015 / 1.0015 - 1, abs=1e-4)
    notes = "\n".join(comparison.notes)
    assert "baseline:a has no rounds of 2 of 2 benchmarks, only their medians: one value per session." in notes
    _print(base)
    shown = capsys.readouterr().out
    assert "The rounds of 2 entries are not in the files: the median is the session's one value." in shown
    assert " 80" in shown  # rounds, of four sessions


def test_rounds_and_medians_are_compared_by_medians(tmp_path):
    """The mean of skewed rounds is not their median, so the two must not be compared."""
    skewed = [0.9, 1.0, 1.0, 1.0, 3.0, 3.0, 3.0]
    files = []
    for at in range(3):
        stats = {"data": [each + at / 1000 for each in skewed], "rounds": 7}
        files.append(tmp_path / f"full{at}.json")
        content = {"machine_info": {"cpu": {"brand_raw": "A"}}, "benchmarks": [{"name": "b0", "stats": stats}]}
        content["benchmarks"][0]["fullname"] = "t.py::b0"
        files[-1].write_text(json.dumps(content))
    full = import_pytest_benchmark("full", files)
    short = import_pytest_benchmark("short", [summary_file(tmp_path / f"s{at}.json", 1 + at / 1000) for at in range(3)])
    (result,) = compare(full, short, CompareOptions(())).results
    assert result.judgement.change == pytest.approx(0, abs=1e-9)
    mixed = import_pytest_benchmark("mixed", [*files[:2], summary_file(tmp_path / "s.json", 1.002)])
    assert mixed.entries["t.py::b0"].sessions_seconds == ((1.0,), (1.001,), (1.002,))
    assert mixed.entries["t.py::b0"].summarized_rounds == (7, 7, 20)


def test_an_inconclusive_comparison_of_stored_files_says_what_can_be_done(tmp_path):
    base, head = (import_pytest_benchmark("x", [summary_file(tmp_path / f"{m}.json", m)]) for m in (1.0, 2.0))
    comparison = compare(base, head, CompareOptions(()))
    assert {result.status for result in comparison.results} == {"inconclusive"}
    shown = render_markdown(comparison)
    assert "run pytest several times, and give all files to" in shown
    assert "budget" not in shown


def test_the_same_session_in_two_files_is_one(tmp_path):
    one = summary_file(tmp_path / "one.json", 1.0, 2.0)
    copied = json.loads(one.read_text()) | {"datetime": "2026-01-01T00:00:00"}
    (tmp_path / "copy.json").write_text(json.dumps(copied))
    with pytest.raises(BaselineError, match=r"copy.json and .*one.json are the same session"):
        import_pytest_benchmark("x", [one, tmp_path / "copy.json"])
