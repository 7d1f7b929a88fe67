"""A record lists the attempts at its run and how each ended: by an exit, an exception or a signal."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.config import load_plan
from bench.disturbance import count_oom_kills
from bench.events import Phase, RunBegins
from bench.runs import runner
from bench.runs.job_description import Job
from bench.runs.ledger import Ledger, explain_death
from bench.runs.resolve import resolve_plan
from bench.runs.runner import run_plan

FAST = {
    "models": ["lenet5"],
    "recipe": {"base": "quick", "batch_size": 20},
    "measure": {"seconds": 0.05, "block_seconds": 0.001, "batch_size": 2, "probes": False},
    "limit_train": 60,
    "limit_test": 20,
    "threads": 1,
    "budget": {"epochs": 1},
}
MEMORY = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
if not MEMORY[0].is_dir():
    MEMORY = Path("/sys/fs/cgroup"), "memory.max"


def endings(described):
    return [attempt.get("ended") for attempt in described["attempts"]]


def test_what_nobody_could_say_is_lost_and_a_job_speaks_of_its_own_attempts_only(tmp_path):
    first, second, third = (Ledger(str(tmp_path), "run", job) for job in "abc")
    assert first.describe() == {}
    assert not first.has_begun()
    first.begin({"step": 0})
    assert Ledger(str(tmp_path), "run", "a").has_begun()  # tried again, on another machine
    assert not second.has_begun()
    Ledger(str(tmp_path), "run", "a").end("killed")  # by the one that waited for it
    second.begin({"step": 3})
    third.begin({"step": 3})
    Ledger(str(tmp_path), "run", "another").end("interrupted")
    third.end("completed")
    described = third.describe()
    assert endings(described) == ["killed", "lost", "completed"]
    assert [attempt["step"] for attempt in described["attempts"]] == [0, 3, 3]
    assert described["ledger"] == {"attempts": 3, "retries": 2, "preemptions": 1, "out_of_memory": 0}
    (tmp_path / "checkpoints/run/attempts/0001.json").write_text("{")
    assert endings(third.describe()) == ["lost", "lost", "completed"]


def test_what_cannot_be_written_is_known_to_the_attempt_itself(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    ledger = Ledger(str(tmp_path), "run", "a")
    ledger.begin({"step": 0})
    ledger.end("completed")
    assert endings(ledger.describe()) == ["completed"]


@pytest.mark.parametrize(
    ("exit_code", "oom_kills", "ending", "kind", "says"),
    [
        (-signal.SIGKILL, 1, "out_of_memory", "OutOfMemory", "ran out of memory"),
        (-signal.SIGKILL, 0, "killed", "SIGKILL", "from outside"),
        (-signal.SIGKILL, None, "killed", "SIGKILL", "where nobody sent it"),
        (-signal.SIGTERM, 0, "killed", "SIGTERM", "SIGTERM"),
        (-signal.SIGSEGV, 1, "crashed", "SIGSEGV", "SIGSEGV"),
        (7, 1, "exited", "ProcessExit", "exit status 7"),
    ],
)
def test_a_death_is_explained_by_its_cause(exit_code, oom_kills, ending, kind, says):
    found, failure = explain_death(exit_code, oom_kills)
    assert (found, failure.kind) == (ending, kind)
    assert says in failure.message


@pytest.fixture
def little_memory(tmp_path):
    """A control group in which a process gets 20 MB more than it has."""
    folder = MEMORY[0] / f"zoobench-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / MEMORY[1]).write_text(str(20 * 2**20))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    yield folder
    folder.rmdir()


@pytest.mark.skipif(sys.platform != "linux" or count_oom_kills() is None, reason="needs Linux's /proc/vmstat")
def test_a_run_is_killed_by_the_kernel_then_by_someone_then_ends_and_its_record_says_so(tmp_path, little_memory):
    run = resolve_plan(load_plan("quick", FAST), data_dir=None)[0]

    def job():
        return Job(config=run, results=str(tmp_path))

    with runner.LocalExecutor() as executor:  # the one that this process keeps

        def starve(event):
            if event == Phase("train", run.run_id):
                (fork,) = Path(f"/proc/{executor._server.pid}/task/{executor._server.pid}/children").read_text().split()
                (little_memory / "cgroup.procs").write_text(fork)

        starved = executor.run(job(), starve)
        assert starved.error.kind == "OutOfMemory", starved.error
        assert endings(starved.environment) == ["out_of_memory"]

        def kill(event):
            if event == Phase("train", run.run_id):
                (fork,) = Path(f"/proc/{executor._server.pid}/task/{executor._server.pid}/children").read_text().split()
                os.kill(int(fork), signal.SIGKILL)

        killed = executor.run(job(), kill)
        assert (killed.status, killed.error.kind) == ("failed", "SIGKILL")
        record = executor.run(job(), lambda event: None)
    assert record.status == "completed"
    assert endings(record.environment) == ["out_of_memory", "killed", "completed"]
    assert record.environment["ledger"] == {"attempts": 3, "retries": 2, "preemptions": 0, "out_of_memory": 1}


CONTROLLER = """
import json, sys
from bench.config import load_plan
from bench.runs.runner import run_plan

class Print:
    def on(self, event):
        print(type(event).__name__, flush=True)

run_plan(load_plan("quick", json.loads(sys.argv[1])), sys.argv[2], [Print()])
"""


def test_ctrl_c_and_a_preemption_stand_in_the_ledger(tmp_path):
    class Interrupt:
        def on(self, event):
            if event == Phase("train", event.run_id if isinstance(event, Phase) else ""):
                raise KeyboardInterrupt

    plan = FAST | {"budget": {"epochs": 20}}
    assert run_plan(load_plan("quick", plan), str(tmp_path), [Interrupt()]).interrupted
    command = [sys.executable, "-c", CONTROLLER, json.dumps(plan), str(tmp_path)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True) as process:
        assert "Row\n" in iter(process.stdout.readline, "")
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
    begun = []
    record = run_plan(load_plan("quick", plan), str(tmp_path), [type("Log", (), {"on": begun.append})]).records[0]
    assert [event for event in begun if isinstance(event, RunBegins)]
    assert endings(record.environment) == ["interrupted", "preempted", "completed"]
    assert record.environment["ledger"]["preemptions"] == 1
