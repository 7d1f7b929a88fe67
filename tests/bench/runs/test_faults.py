"""Kill anything, fill the disk, take permissions away: no record is damaged, lost or doubled; then the command ends."""

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kill_campaign import FAULTS, new_result, newest_steps

from bench.config import load_plan
from bench.errors import RecordError, UnwritableError
from bench.events import Row
from bench.records import find_record, read_records, record_paths
from bench.runs.executors import LocalExecutor
from bench.runs.job import run_job
from bench.runs.job_description import Job
from bench.runs.locks import is_held, only_one
from bench.runs.resolve import resolve_plan
from bench.runs.runner import _remove_checkpoints, run_plan
from bench.training.checkpoint import Checkpoints

ROOT = Path(__file__).parents[3]
FAST = {
    "recipe": {"base": "quick", "batch_size": 20},
    "measure": {"seconds": 0.05, "block_seconds": 0.001, "batch_size": 2, "probes": False},
    "limit_train": 60,
    "limit_test": 20,
    "threads": 1,
    "budget": {"epochs": 1},
}


def plan(*models, **overrides):
    return load_plan("quick", FAST | {"models": list(models)} | overrides)


CONTROLLER = """
import json, sys
from bench.config import load_plan
from bench.runs.runner import _remove_checkpoints, run_plan
from bench.runs.shards import parse_shard

class Print:
    def on(self, event):
        print(type(event).__name__, flush=True)

overrides, results, shard = json.loads(sys.argv[1])
run_plan(load_plan("quick", overrides), results, [Print()], shard=shard and parse_shard(shard), checkpoint_seconds=0.0)
"""


def start(results, overrides, shard=None):
    command = [sys.executable, "-c", CONTROLLER, json.dumps([FAST | overrides, str(results), shard])]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def numbers(results):
    """What must not depend on kills, by run; and that each record is whole and there once."""
    records, damaged = read_records(results)
    assert damaged == []
    assert not list(Path(results).glob("earlier/*.json"))  # nothing was done twice
    keys = ("test_top1", "test_loss", "weights_sha256", "steps", "params", "macs")
    return {record.run_id: tuple(record.metrics[key] for key in keys) for record in records}


def test_shards_and_controllers_on_one_folder_with_kills_leave_each_run_once(tmp_path):
    overrides = {"models": ["lenet5", "simple_cnn"], "seeds": [0, 1], "budget": {"epochs": 2}}
    run_plan(load_plan("quick", FAST | overrides), str(tmp_path / "whole"))
    folder = tmp_path / "killed"
    shards = ("1/2", "2/2", None)
    generator = random.Random(0)
    for shard in shards:
        with start(folder, overrides, shard) as process:
            events = generator.randint(3, 12)
            assert len(list(itertools.islice(process.stdout, events))) == events
            process.send_signal(signal.SIGKILL)
    finishing = [start(folder, overrides, shard) for shard in shards]
    for process in finishing:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert numbers(folder) == numbers(tmp_path / "whole")
    assert len(numbers(folder)) == 4


def test_a_campaign_of_kills_goes_on_and_finds_nothing(tmp_path):
    before = new_result(seed=1)
    before["killed"]["record"] = before["kills"] = 2
    out = tmp_path / "campaign.json"
    out.write_text(json.dumps(before))
    command = [sys.executable, "tests/perf/kill_campaign.py", "--kills", "8", "--seeds", "1", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    result = json.loads(out.read_text())
    assert {result[fault] for fault in FAULTS} == {0}
    assert result["kills"] == sum(result["killed"].values()) >= 8
    assert result["killed"]["plan"] >= 2
    assert result["complete_plans"] >= 1


def test_a_checkpoint_that_was_damaged_is_seen_by_the_campaign(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints" / "run")
    checkpoints.save(3, {"w": torch.zeros(2)}, {})
    assert newest_steps(tmp_path) == {"run": 3}
    (tmp_path / "checkpoints" / "run" / "step-000000000003" / "state.pt").write_bytes(b"")
    assert newest_steps(tmp_path) == {"run": -1}


@pytest.mark.skipif(sys.platform != "linux", reason="the executor forks on Linux alone")
def test_a_measurement_that_dies_costs_no_training(tmp_path):
    results = str(tmp_path)
    first = run_plan(plan("lenet5"), results).records[0]
    with LocalExecutor() as executor:
        run = resolve_plan(plan("lenet5"), data_dir=None)[0]

        def kill(event):
            os.killpg(executor._server.pid, signal.SIGKILL)

        failed = executor.run(Job(config=run, results=results, trained=first), kill)
    assert failed.status == "failed"
    assert failed.error.kind == "SIGKILL"
    assert find_record(results, first.run_id) == first
    assert json.loads((tmp_path / "failed" / f"{first.run_id}.json").read_text())["error"]["kind"] == "SIGKILL"
    begun = []

    class Watch:
        def on(self, event):
            begun.append(event)

    again = run_plan(plan("lenet5"), results, [Watch()], measure_again=True)
    assert (again.measured_again, again.records[0].status) == (1, "completed")
    assert not [event for event in begun if isinstance(event, Row)]  # nothing was trained
    assert not (tmp_path / "failed" / f"{first.run_id}.json").exists()
    assert len(record_paths(results, earlier=True)) == 2


def test_a_job_tried_again_leaves_its_record_once(tmp_path):
    run = resolve_plan(plan("lenet5"), data_dir=None)[0]
    forced = Job(config=run, results=str(tmp_path), fresh=True)
    record = run_job(forced).model_dump_json()
    assert run_job(forced).model_dump_json() == record  # a cluster that lost the answer, not the record
    assert run_job(Job(config=run, results=str(tmp_path))).model_dump_json() == record  # another controller was faster
    assert len(record_paths(tmp_path, earlier=True)) == 1
    other = run_job(Job(config=run, results=str(tmp_path), fresh=True))
    assert other.metrics["weights_sha256"] == json.loads(record)["metrics"]["weights_sha256"]
    assert len(record_paths(tmp_path, earlier=True)) == 2


HOLDER = """
import sys
from bench.runs.locks import is_held, only_one
with only_one(sys.argv[1], "run", lambda: print("waits", flush=True)):
    print("holds", flush=True)
    sys.stdin.read()
"""


def test_a_run_s_lock_ends_with_its_holder_and_holds_up_no_other_run(tmp_path):
    for run_id in ("run", "done"):
        (tmp_path / "checkpoints" / run_id).mkdir(parents=True)
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen(command, **pipes) as first, subprocess.Popen(command, **pipes) as second:
        assert not is_held(str(tmp_path), "another run")
        holder, waiting = (first, second) if first.stdout.readline() == "holds\n" else (second, first)
        assert holder is second or waiting.stdout.readline() == "waits\n"
        assert is_held(str(tmp_path), "run")
        _remove_checkpoints(str(tmp_path), ["run", "done"])
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["run"]
        with only_one(str(tmp_path), "another run", pytest.fail):
            holder.send_signal(signal.SIGKILL)
        assert waiting.stdout.readline() == "holds\n"
        waiting.stdin.close()


def test_a_full_disk_ends_in_a_clear_error_and_the_same_command_finishes(small_disk, zoobench_here):
    results, filler = small_disk / "plan", small_disk / "filler"
    (results / "runs").mkdir(parents=True)
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    with pytest.raises(RecordError, match=r"cannot be written: No space left on device.*free space"):
        run_plan(plan("lenet5"), str(results))
    assert read_records(results) == ([], [])
    said = zoobench_here("run", "quick", "--models", "lenet5", "--results", results)
    assert said.returncode == UnwritableError.exit_code == 17
    assert said.stderr.startswith(f"zoobench: the results folder {str(results)!r} cannot be written: No space left")
    assert "Traceback" not in said.stderr
    filler.unlink()
    outcome = run_plan(plan("lenet5"), str(results))
    assert [record.status for record in outcome.records] == ["completed"]
    assert len(numbers(results)) == 1


def test_a_disk_that_fills_during_training_ends_in_an_error_and_the_same_command_goes_on(small_disk, tmp_path):
    results, filler = str(small_disk / "plan"), small_disk / "filler"

    class FillInTheSecondEpoch:
        def on(self, event):
            if isinstance(event, Row) and event.row["epoch"] == 1 and not filler.exists():
                with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                    while True:
                        file.write(b"x" * 4096)

    two_epochs = plan("lenet5", budget={"epochs": 2}, autocast=False, channels_last=False)
    with pytest.raises(UnwritableError, match=r"cannot be written: No space left on device.*free space"):
        run_plan(two_epochs, results, [FillInTheSecondEpoch()], checkpoint_seconds=0.0)
    assert read_records(results) == ([], [])
    filler.unlink()
    (record,) = run_plan(two_epochs, results, checkpoint_seconds=0.0).records
    assert [attempt["step"] > 0 for attempt in record.environment["attempts"]] == [False, True]
    run_plan(two_epochs, str(tmp_path / "elsewhere"))
    assert numbers(results) == numbers(tmp_path / "elsewhere")


def test_a_checkpoint_that_cannot_be_written_is_a_flag_and_the_run_goes_on(tmp_path, recwarn):
    run = resolve_plan(plan("lenet5"), data_dir=None)[0]
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    outcome = run_plan(plan("lenet5"), str(tmp_path), checkpoint_seconds=0.0)
    record = outcome.records[0]
    assert record.status == "completed"
    assert [flag.phase for flag in record.flags if flag.kind == "no_checkpoint"] == ["train"]
    assert any(run.run_id in str(warning.message) and "checkpoint" in str(warning.message) for warning in recwarn)
    elsewhere = run_plan(plan("lenet5"), str(tmp_path / "other")).records[0]
    assert record.metrics["weights_sha256"] == elsewhere.metrics["weights_sha256"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root may become nobody")
def test_without_permission_nothing_is_trained_and_nothing_changes(tmp_path):
    folder = tmp_path / "plan"
    run_plan(plan("lenet5"), str(folder))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    script = (
        "import os, sys, tempfile\n"
        "import fsspec.implementations.local\n"
        "from bench.records import check_writable\n"
        "from bench.errors import RecordError\n"
        "os.setuid(65534)\n"
        "try:\n    check_writable(sys.argv[1])\nexcept RecordError as error:\n    print(error)\n"
    )
    for parent in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(parent.stat().st_mode | 0o005)
    said = subprocess.run([sys.executable, "-c", script, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert "cannot be written: Permission denied" in said.stdout, said.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
