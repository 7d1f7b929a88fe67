"""Processes of runs: a fork gives what a fresh process gives, and a server lives as long as its settings hold."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.config import load_plan
from bench.runs import executors
from bench.runs.executors import ForkServer, LocalExecutor
from bench.runs.job_description import Job
from bench.runs.resolve import resolve_plan
from bench.subprocesses import AUTOGROUP

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")
ROOT = Path(__file__).parents[3]
TINY = {
    "models": ["lenet5"],
    "seeds": [0, 1],
    "budget": {"epochs": 1},
    "device": "cpu",
    "limit_train": 100,
    "limit_test": 20,
    "threads": 2,
    "measure": {"seconds": 0.05, "batch_size": 2, "probes": False},
}
SETTINGS = {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "1000"}


@pytest.fixture
def jobs(tmp_path):
    runs = resolve_plan(load_plan("quick", TINY), data_dir=None)
    return [Job(config=run, results=str(tmp_path), fresh=True) for run in runs]


def ignore(event):
    pass


def test_a_fork_gives_the_weights_of_a_fresh_process_bit_for_bit(jobs, monkeypatch):
    monkeypatch.setattr(executors, "thread_settings", lambda threads: SETTINGS)
    with LocalExecutor() as executor:
        forked = [executor.run(job, ignore) for job in jobs]
        assert executor._server is not None
    monkeypatch.setattr(executors.sys, "platform", "other")  # where nothing is forked
    with LocalExecutor() as executor:
        fresh = executor.run(jobs[1], ignore)
        assert executor._server is None
    assert forked[0].metrics["weights_sha256"] != forked[1].metrics["weights_sha256"]
    assert forked[1].status == fresh.status == "completed"
    for name in ("weights_sha256", "test_loss", "train_loss", "params", "macs"):
        assert forked[1].metrics[name] == fresh.metrics[name]
    assert forked[1].environment["threads"] == fresh.environment["threads"] == 2


NICE = """
import sys
from bench.subprocesses import Subprocess
process = Subprocess([sys.executable, "-c", sys.argv[1]], {"PYTHONPATH": sys.argv[2]})
print(process.answers.read())
process.close()
"""
ANSWER = """
from bench.subprocesses import AUTOGROUP, open_answers
answers = open_answers()
print(AUTOGROUP.read_text(), file=answers)
"""


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel does not group processes by session")
def test_a_session_of_its_own_is_as_nice_as_what_started_it():
    command = ["nice", "-n", "7", sys.executable, "-c", NICE, ANSWER, str(ROOT)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split()[1:] == ["nice", "7"]


def again(job):
    """The same as another job: a job that is merely tried again has its record already."""
    return Job(**job.model_dump(exclude={"job_id"}))


def test_a_server_is_replaced_when_the_settings_change_or_it_dies(jobs, monkeypatch):
    settings = dict(SETTINGS)
    monkeypatch.setattr(executors, "thread_settings", lambda threads: dict(settings))
    with LocalExecutor() as executor:
        first = executor.run(again(jobs[0]), ignore)
        server = executor._server
        settings["GOMP_SPINCOUNT"] = "2000"
        second = executor.run(again(jobs[0]), ignore)
        assert executor._server is not server
        assert (first.environment["openmp_spin"], second.environment["openmp_spin"]) == ("1000", "2000")

        os.kill(executor._server.pid, signal.SIGKILL)
        died = executor.run(again(jobs[0]), ignore)
        assert (died.status, died.error.kind) == ("failed", "SIGKILL")
        assert executor._server is None
        assert executor.run(again(jobs[0]), ignore).metrics["weights_sha256"] == first.metrics["weights_sha256"]


def test_what_one_fork_printed_is_not_another_s():
    server = ForkServer(SETTINGS)
    try:
        said = []
        for line in ("no job", "none either"):
            server.send(line)
            assert list(server.answers) == []
            assert server.wait() == 1
            assert server.is_ready
            said.append(server.errors(100_000))
    finally:
        server.close()
    assert "no job" in said[0]
    assert "none either" in said[1]
    assert "no job" not in said[1]
