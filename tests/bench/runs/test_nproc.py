"""A run of two processes: its numbers, a rank that is killed, and what is refused."""

import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from bench.cli.app import app
from bench.config import load_plan
from bench.errors import ConfigError, DeviceError
from bench.events import Row
from bench.records import read_records
from bench.runs import executors, runner, scaling
from bench.runs.executors import LocalExecutor
from bench.runs.ledger import explain_death
from bench.runs.runner import run_plan

FAST = {
    "models": ["lenet5"],
    "recipe": {"base": "quick", "batch_size": 30},
    "measure": {"seconds": 0.05, "block_seconds": 0.001, "batch_size": 2, "probes": False},
    "limit_train": 600,
    "limit_test": 600,
    "budget": {"epochs": 2},
    "autocast": False,
    "channels_last": True,
    "threads": 1,
}
TOLERANCE = 1e-4
"""Relative, of the losses: what another order of summation, in float32, makes of some forty steps."""


def plan(**overrides):
    return load_plan("quick", FAST | overrides)


def ranks_of(executor):
    """The processes of a run: the server's fork launches them."""

    def children(pid):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    (launcher,) = children(executor._server.pid)
    return sorted(children(launcher))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Runs of one process and of two; and one of two whose second rank was killed, with what happened."""
    folder = tmp_path_factory.mktemp("nproc")
    found = {"folder": folder}

    class Kill:
        def on(self, event):
            # After the third step two checkpoints are written.
            if isinstance(event, Row) and event.row["step"] > 2 and "killed" not in found:
                found["killed"] = ranks_of(executor)
                os.kill(found["killed"][1], signal.SIGKILL)

    with runner.LocalExecutor() as executor:  # the one that this process keeps
        options = {"executor": contextlib.nullcontext(executor)}  # one server for all: importing torch takes seconds
        found["one"] = run_plan(plan(), str(folder / "one"), **options).records[0]
        found["two"] = run_plan(plan(nproc=2), str(folder / "two"), **options).records[0]
        found["failed"] = run_plan(
            plan(nproc=2), str(folder / "killed"), [Kill()], checkpoint_seconds=0.0, **options
        ).records[0]
        found["alive"] = [pid for pid in found["killed"] if Path(f"/proc/{pid}").exists()]
        found["again"] = run_plan(plan(nproc=2), str(folder / "killed"), **options).records[0]
    return found


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in Linux's /proc")


def test_two_processes_follow_the_loss_curve_of_one(done):
    one, two = done["one"], done["two"]
    assert (one.status, two.status) == ("completed", "completed"), two.error
    assert one.run_id != two.run_id
    for key in ("train_loss", "val_loss"):
        losses = [row[key] for row in one.history]
        assert [row[key] for row in two.history] == pytest.approx(losses, rel=TOLERANCE)
    assert [row["train_top1"] for row in two.history] == pytest.approx(
        [row["train_top1"] for row in one.history], abs=0.01
    )
    assert two.metrics["steps"] == one.metrics["steps"]
    assert two.metrics["images_seen"] == one.metrics["images_seen"]
    assert two.metrics["test_loss"] == pytest.approx(one.metrics["test_loss"], rel=TOLERANCE)
    counts = [sum(map(sum, record.samples["test_confusion"])) for record in (one, two)]
    assert counts[0] == counts[1] == two.environment["data"]["test"]


def test_the_record_has_one_device_s_speed_and_how_well_two_scale(done):
    metrics = done["two"].metrics
    tail = {"latency_p95_ms", "latency_p99_ms"}  # there where enough images fitted into the time
    assert metrics.keys() >= done["one"].metrics.keys() - tail
    cores = scaling._shares_cores(2, 1)
    kinds = [flag.kind for flag in done["two"].flags]
    assert ("scaling_efficiency" in metrics) == (not cores)
    assert ("shared_cores" in kinds) == bool(cores)
    if not cores:
        alone, together = done["two"].samples["scaling_step_seconds"]
        ratios = sorted(one / both for one, both in zip(alone, together, strict=True))
        assert metrics["scaling_efficiency"] == pytest.approx(ratios[len(ratios) // 2] / 2)


def test_a_killed_rank_ends_the_run_which_resumes_bit_for_bit(done):
    assert done["failed"].status == "failed"
    assert done["failed"].error.kind == "SIGKILL"
    assert done["failed"].error.message.startswith("rank 1 of 2 was ended by SIGKILL")
    assert done["alive"] == []
    again, two = done["again"], done["two"]
    assert again.status == "completed", again.error
    assert again.metrics["weights_sha256"] == two.metrics["weights_sha256"]
    first, second = again.environment["attempts"]
    assert first["step"] == 0 < second["step"]
    losses = [[(row["train_loss"], row["val_loss"]) for row in record.history] for record in (again, two)]
    assert losses[0] == losses[1]
    assert not (done["folder"] / "killed" / "checkpoints").exists()
    assert len(read_records(done["folder"] / "killed")[0]) == 1


def test_ranks_that_are_spawned_as_for_gpus_give_the_same_weights(done, monkeypatch):
    monkeypatch.setattr(executors.sys, "platform", "other")  # where nothing is forked
    spawned = run_plan(plan(nproc=2), str(done["folder"] / "spawned")).records[0]
    assert spawned.status == "completed", spawned.error
    assert spawned.metrics["weights_sha256"] == done["two"].metrics["weights_sha256"]


def test_what_ended_a_rank_is_said():
    ending, failure = explain_death(-signal.SIGKILL, None, "rank 3 of 8")
    assert (ending, failure.kind) == ("killed", "SIGKILL")
    assert failure.message == "rank 3 of 8 was ended by SIGKILL; where nobody sent it, the system ran out of memory"


def test_one_device_or_too_few_images_cannot_be_shared(monkeypatch):
    with pytest.raises(ConfigError, match="nproc = 31 processes cannot share a batch of 30 images"):
        plan(nproc=31)
    with pytest.raises(ConfigError, match="device = 'cuda:1' names one"):
        plan(nproc=2, device="cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(DeviceError, match="--nproc wants 2 GPUs of this machine, and torch sees 1"),
        LocalExecutor() as executor,
    ):
        executor.resolve(plan(nproc=2, device="cuda"), None, lambda event: None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nproc", "3", "--nodes", "2", "--rendezvous", "localhost:29400"], "spread over --nodes 2 machines evenly"),
        (["--nproc", "2", "--nodes", "2"], "--nodes and --rendezvous belong together"),
        (["--nproc", "2", "--nodes", "2", "--rendezvous", "localhost:29400", "--force"], "--force"),
    ],
)
def test_machines_that_cannot_share_are_refused(arguments, message, tmp_path):
    result = CliRunner().invoke(app, ["run", "smoke", "--results", str(tmp_path), *arguments])
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)


def test_processes_that_share_cores_are_not_compared():
    assert "share" in scaling._shares_cores(10_000, 1)
    assert scaling._shares_cores(1, 1) == ""
