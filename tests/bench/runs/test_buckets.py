"""Records and checkpoints in a bucket of a local S3 server: a killed plan goes on, and is reported from there."""

import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import fsspec
import pytest
import torch
from typer.testing import CliRunner

from bench.cli.app import app
from bench.config import load_plan
from bench.errors import ConfigError, RecordError
from bench.records import RunRecord, check_exists, check_writable, read_records, save_record
from bench.runs.job import run_job
from bench.runs.job_description import Job
from bench.runs.observers.tensorboard import create_tracker
from bench.runs.resolve import resolve_plan
from bench.runs.runner import run_plan
from bench.training.checkpoint import Checkpoints
from reports.data.loading import load_runs

moto = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")

ROOT = Path(__file__).parents[3]
FAST = {
    "recipe": {"base": "quick", "batch_size": 20},
    "measure": {"seconds": 0.05, "block_seconds": 0.001, "batch_size": 2, "probes": False},
    "limit_train": 60,
    "limit_test": 20,
    "threads": 1,
    "autocast": False,
    "channels_last": False,
    "models": ["lenet5"],
    "budget": {"epochs": 2},
}
NUMBERS = ("test_top1", "test_loss", "weights_sha256", "steps", "params", "macs")


@pytest.fixture
def endpoint(monkeypatch):
    """A server with the bucket ``zoo``, which the environment names as the one to use."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, host)
    s3fs.S3FileSystem.clear_instance_cache()  # those of another server
    urlopen(Request(f"{url}/moto-api/reset", method="POST")).close()  # all servers of a process have the same buckets
    fsspec.filesystem("s3").mkdir("zoo")
    yield server
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


VICTIM = """
import sys
from bench.runs.job import run_job
from bench.runs.job_description import Job

run_job(Job.model_validate_json(sys.argv[1]), lambda event: print(event, flush=True))
"""


def planned(results):
    """The only run of the plan, as a job."""
    run = resolve_plan(load_plan("quick", FAST), data_dir=None)[0]
    return Job(config=run, results=results, checkpoint_seconds=0.0)


def numbers(results):
    records, damaged = read_records(results)
    assert damaged == []
    return {record.run_id: [record.metrics[name] for name in NUMBERS] for record in records}


def make_record():
    return RunRecord(run_id="run", status="failed", config={}, environment={})


def invoke(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, f"{done.output}{done.exception!r}"
    return done.output


def test_a_plan_in_a_bucket_goes_on_after_a_kill_and_is_reported_from_there(endpoint, tmp_path):
    results, store = "s3://zoo/some/plan", fsspec.filesystem("s3")
    command = [sys.executable, "-c", VICTIM, planned(results).model_dump_json()]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        # In the second epoch: the checkpoints of the first have been written.
        assert next(line for line in process.stdout if line.startswith("Row(") and "'epoch': 1" in line)
        process.send_signal(signal.SIGKILL)
    assert read_records(results) == ([], [])
    outcome = run_plan(load_plan("quick", FAST), results, checkpoint_seconds=0.0)
    (record,) = outcome.records
    assert [attempt["step"] > 0 for attempt in record.environment["attempts"]] == [False, True]
    run_job(planned(str(tmp_path / "whole")))
    assert numbers(results) == numbers(tmp_path / "whole")
    store.invalidate_cache()
    assert store.find("zoo/some/plan/checkpoints") == []
    assert len(store.glob("zoo/some/plan/runs/*")) == 1
    # As if it had been killed between the record and the removal of its checkpoints.
    store.pipe_file(f"zoo/some/plan/checkpoints/{record.run_id}/attempts.json", b"[]")
    assert run_plan(load_plan("quick", FAST), results).skipped == 1
    store.invalidate_cache()
    assert store.find("zoo/some/plan/checkpoints") == []
    assert "1 record from" in invoke("history", "lenet5", "--results", results)
    page = tmp_path / "report" / "index.html"
    invoke("report", "--results", results, "--out", page.parent)
    assert "lenet5" in page.read_text()
    assert "0 do not match" in invoke("verify", page, "--results", results)


def test_what_another_process_writes_is_seen(endpoint):
    results = "s3://zoo/plan"
    record = make_record()
    assert read_records(results) == ([], [])
    other = s3fs.S3FileSystem(skip_instance_cache=True)  # with a cache of listings of its own
    other.pipe_file(f"zoo/plan/runs/{record.run_id}.json", record.model_dump_json().encode())
    assert read_records(results) == ([record], [])
    other.rm_file(f"zoo/plan/runs/{record.run_id}.json")
    assert read_records(results) == ([], [])


def test_what_cannot_be_written_or_reached_is_one_paragraph(endpoint, monkeypatch):
    check_writable("s3://zoo/plan")
    assert fsspec.filesystem("s3").find("zoo") == []
    with pytest.raises(RecordError, match=r"'s3://nowhere/plan' cannot be written: .*bucket"):
        check_writable("s3://nowhere/plan")
    assert not fsspec.filesystem("s3").exists("nowhere")  # nor made by that
    with pytest.raises(RecordError, match="'s3://zoo/plan' does not exist"):
        check_exists("s3://zoo/plan")
    with pytest.raises(ConfigError, match="needs a folder of this machine"):
        create_tracker("tensorboard", "s3://zoo/plan")


def test_a_store_that_goes_away_costs_checkpoints_and_not_the_training(endpoint, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # botocore's own retries, between which it waits for seconds
    s3fs.S3FileSystem.clear_instance_cache()
    checkpoints = Checkpoints("s3://zoo/plan/checkpoints/run")
    weights = {"w": torch.arange(3.0)}
    checkpoints.save(1, weights, {"step": 1})
    assert checkpoints.load()[1] == {"step": 1}
    monkeypatch.setattr(fsspec.filesystem("s3"), "retries", 1)
    endpoint.stop()
    with pytest.warns(UserWarning, match="no checkpoint could be written to 's3://zoo/plan/checkpoints/run'"):
        checkpoints.save(2, weights, {"step": 2})
    assert checkpoints.failure
    record = make_record()
    with pytest.raises(RecordError, match=r"'s3://zoo/plan/runs/run\.json' cannot be reached"):
        save_record(record, "s3://zoo/plan")
    with pytest.raises(RecordError, match="'s3://zoo/plan' cannot be reached"):
        check_exists("s3://zoo/plan")


@pytest.mark.parametrize(
    ("url", "message"),
    [("gs://zoo/plan", "needs a package that is not installed: .*gcsfs"), ("nothing://zoo", "that fsspec knows")],
)
def test_a_store_that_nothing_is_known_of_is_one_paragraph(url, message):
    with pytest.raises(RecordError, match=message):
        check_writable(url)


def test_a_run_of_this_process_may_keep_all_in_memory():
    results = "memory://three"
    record = run_job(planned(results))
    assert numbers(results) == {record.run_id: [record.metrics[name] for name in NUMBERS]}
    assert list(load_runs(results).run_id) == [record.run_id]
    with pytest.raises(RecordError, match="one of this process alone"):
        run_plan(load_plan("quick", FAST), results)
