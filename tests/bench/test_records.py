import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from bench.errors import RecordError
from bench.records import (
    Flag,
    RunFailure,
    RunRecord,
    check_writable,
    find_record,
    read_record,
    read_records,
    record_path,
    record_paths,
    save_record,
)


def make_record(run_id="lenet5-s0-abc", **changes):
    fields = {
        "run_id": run_id,
        "status": "completed",
        "config": {"model": "lenet5"},
        "environment": {"threads": 2},
        "metrics": {"params": 62_006, "test_top1": 0.1 + 0.2, "note": "x"},
        "history": [{"epoch": 0, "train_loss": 1 / 3}],
        "samples": {"infer_block_seconds": [0.1, 0.2], "test_confusion": [[1.0, 2.0], [3.0, 4.0]]},
        "flags": [Flag(kind="load", phase="train", message="busy")],
    }
    return RunRecord(**fields | changes)


def test_record_comes_back_as_it_was_written_to_the_last_digit(tmp_path):
    record = make_record(error=RunFailure(kind="ValueError", message="<b>ü\u202e\n", traceback="…"), status="failed")
    path = save_record(record, tmp_path)
    assert path == record_path(tmp_path, record.run_id)
    assert read_record(path) == record
    assert find_record(tmp_path, record.run_id) == record
    assert read_records(tmp_path) == ([record], [])


def test_top_level_keys_are_those_of_the_schema(tmp_path):
    content = json.loads(Path(save_record(make_record(), tmp_path)).read_text())
    keys = "schema_version run_id status config environment metrics history samples flags error"
    assert list(content) == keys.split()
    assert content["schema_version"] == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_become_null(tmp_path, value):
    path = save_record(make_record(metrics={"test_loss": value}, history=[{"train_loss": value}]), tmp_path)
    record = read_record(path)
    assert record.metrics["test_loss"] is None
    assert record.history[0]["train_loss"] is None


def test_integers_booleans_and_text_keep_their_type(tmp_path):
    metrics = {"params": 1, "reached": True, "loss": 1.0, "name": "1"}
    read = read_record(save_record(make_record(metrics=metrics), tmp_path)).metrics
    assert {key: type(value) for key, value in read.items()} == {key: type(value) for key, value in metrics.items()}


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda text: text[: len(text) // 2], "not JSON"),
        (lambda text: "", "not JSON"),
        (lambda text: "[]", "schema version None"),
        (lambda text: text.replace('"schema_version": 1', '"schema_version": 7'), "schema version 7"),
        (lambda text: text.replace('"completed"', '"finished"'), "status"),
        (lambda text: text.replace('"metrics"', '"metrix"'), "metrix"),
        (lambda text: text.replace("62006", "[1]"), "metrics.params"),
    ],
)
def test_damaged_record_is_named_with_its_fault_and_hides_no_other(tmp_path, damage, expected):
    good = make_record("good")
    save_record(good, tmp_path)
    path = Path(save_record(make_record("bad"), tmp_path))
    path.write_text(damage(path.read_text()))
    with pytest.raises(RecordError, match=r"bad\.json") as raised:
        read_record(path)
    assert expected in str(raised.value)
    records, damaged = read_records(tmp_path)
    assert records == [good]
    assert [str(error) for error in damaged] == [str(raised.value)]


def test_missing_record_and_missing_folder(tmp_path):
    assert find_record(tmp_path / "none", "x") is None
    assert read_records(tmp_path / "none") == ([], [])


def test_bucket_works_like_a_folder():
    results = "memory://bucket/results"
    record = make_record()
    check_writable(results)
    save_record(record, results)
    assert find_record(results, record.run_id) == record
    assert read_records(results) == ([record], [])
    assert fsspec.filesystem("memory").exists("/bucket/results/runs/lenet5-s0-abc.json")


def test_results_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot be written"):
        check_writable(tmp_path / "file")
    with pytest.raises(RecordError, match="cannot be written"):
        save_record(make_record(), tmp_path / "file")


WRITER = """
import sys
from pathlib import Path
from bench.records import RunRecord, save_record
record = {"run_id": "r", "status": "completed", "config": {}, "environment": {"pad": "x" * 300_000}}
print("ready", flush=True)
while True:
    save_record(RunRecord(**record), sys.argv[1])
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_record(tmp_path):
    save_record(make_record("r"), tmp_path)
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        assert writer.stdout.readline() == b"ready\n"
        for _ in range(20):
            assert read_record(record_path(tmp_path, "r")).run_id == "r"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        records, damaged = read_records(tmp_path)
        assert len(records) == 1
        assert damaged == []


def test_full_disk_keeps_the_old_record(tmp_path, small_disk):
    path = save_record(make_record("r"), small_disk)
    with pytest.raises(RecordError, match="No space left"):
        save_record(make_record("r", environment={"pad": "x" * 4_000_000}), small_disk)
    assert read_record(path) == make_record("r")
    assert [entry.name for entry in (small_disk / "runs").iterdir()] == ["r.json"]


def test_a_newer_record_keeps_the_earlier_one(tmp_path):
    started = ["2026-01-02T03:04:05+00:00", "2026-01-03T03:04:05+00:00", "2026-01-04T03:04:05+00:00"]
    first, second, third = (make_record(environment={"started_at": time}) for time in started)
    for record in (first, second, second, third):
        save_record(record, tmp_path)
    assert read_records(tmp_path) == ([third], [])
    paths = record_paths(tmp_path, earlier=True)
    assert [Path(path).relative_to(tmp_path).as_posix() for path in paths] == [
        "runs/lenet5-s0-abc.json",
        "earlier/lenet5-s0-abc-20260102T030405.json",
        "earlier/lenet5-s0-abc-20260103T030405.json",
    ]
    assert [read_record(path) for path in paths] == [third, first, second]


def test_a_failure_is_replaced_and_not_kept(tmp_path):
    save_record(make_record(status="failed"), tmp_path)
    save_record(make_record(), tmp_path)
    assert len(record_paths(tmp_path, earlier=True)) == 1
