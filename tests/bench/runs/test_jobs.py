"""Several runs at once on one machine: the same records as one after the other, and what is timed is alone."""

import json
import os
import select
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from bench.config import load_plan
from bench.errors import ConfigError
from bench.events import PlanEnds, RunBegins, RunEnds
from bench.records import read_records
from bench.runs.locks import MachineLock
from bench.runs.parallel_executor import ParallelExecutor
from bench.runs.resolve import resolve_plan
from bench.runs.runner import run_plan

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs file locks of POSIX")
ROOT = Path(__file__).parents[3]
FAST = {
    "models": ["lenet5"],
    "seeds": [0, 1, 2],
    "recipe": {"base": "quick", "batch_size": 20},
    "measure": {"seconds": 0.05, "block_seconds": 0.001, "batch_size": 2, "probes": False},
    "limit_train": 60,
    "limit_test": 20,
    "threads": 1,
    "budget": {"epochs": 1},
}
ALIKE = ("weights_sha256", "test_top1", "test_loss", "val_loss", "train_loss", "steps", "params", "macs")


class Log(list):
    def on(self, event):
        self.append(event)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The same plan with one job and with two, and the events of the latter."""
    folders, log = [str(tmp_path_factory.mktemp(name)) for name in ("one", "two")], Log()
    one = run_plan(load_plan("quick", FAST), folders[0])
    two = run_plan(load_plan("quick", FAST), folders[1], [log], executor=ParallelExecutor(2))
    return one, two, log


def test_the_records_are_those_of_one_job(done):
    one, two, _ = done
    assert [record.status for record in two.records] == ["completed"] * 3
    for alone, shared in zip(one.records, two.records, strict=True):
        assert alone.run_id == shared.run_id
        assert {name: alone.metrics[name] for name in ALIKE} == {name: shared.metrics[name] for name in ALIKE}
        # How many latencies there was time for decides on the percentiles.
        named = [{key for key in each.metrics if "latency_p9" not in key} for each in (alone, shared)]
        assert named[0] == named[1]
        assert alone.environment["threads"] == shared.environment["threads"] == 1
        assert [flag.kind for flag in shared.flags if flag.kind == "shared_machine"]
        assert not [flag for flag in alone.flags if flag.kind == "shared_machine"]


def test_runs_are_at_once_and_their_measurements_one_after_the_other(done):
    _, two, log = done
    order = [event for event in log if isinstance(event, RunBegins | RunEnds)]
    assert [type(event) for event in order[:2]] == [RunBegins, RunBegins]
    assert isinstance(log[-1], PlanEnds)
    spans = sorted((record.environment["alone"]["from"], record.environment["alone"]["to"]) for record in two.records)
    assert len(spans) == 3
    assert all(ended <= begins for (_, ended), (begins, _) in pairwise(spans))


HOLDER = """
import sys, time
from bench.runs.locks import MachineLock
machine = MachineLock(lambda: print("waits", flush=True))
with getattr(machine, sys.argv[1])():
    print("holds", time.monotonic_ns(), flush=True)
    sys.stdin.read()
    print("leaves", time.monotonic_ns(), flush=True)
"""


def hold(how):
    command = [sys.executable, "-c", HOLDER, how]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_who_waits_to_be_alone_goes_first_and_a_holder_s_death_frees_the_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOOBENCH_CACHE", str(tmp_path))
    with hold("shared") as first, hold("shared") as second:
        assert first.stdout.readline().startswith("holds")  # beside the other
        assert second.stdout.readline().startswith("holds")
        with hold("alone") as alone:
            assert alone.stdout.readline() == "waits\n"
            with hold("shared") as late:
                assert late.stdout.readline() == "waits\n"
                first.send_signal(signal.SIGKILL)
                second.stdin.close()
                left = int(second.stdout.readline().split()[1])
                held = int(alone.stdout.readline().split()[1])
                assert held > left
                alone.stdin.close()
                left = int(alone.stdout.readline().split()[1])
                assert int(late.stdout.readline().split()[1]) > left
                late.stdin.close()


def test_what_shares_is_alone_in_between(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOOBENCH_CACHE", str(tmp_path))
    machine = MachineLock(lambda: pytest.fail("nobody else is here"))
    with machine.shared():
        with machine.alone(), hold("shared") as other:
            assert other.stdout.readline() == "waits\n"
            other.kill()
        with hold("shared") as other:
            assert other.stdout.readline().startswith("holds")
            other.kill()
    assert machine.problem == ""


def test_without_a_lock_a_run_goes_on_and_says_so(tmp_path, monkeypatch):
    (tmp_path / "machines").write_text("a file where the folder should be")
    monkeypatch.setenv("ZOOBENCH_CACHE", str(tmp_path))
    machine = MachineLock(lambda: pytest.fail("there is nothing to wait for"))
    with machine.shared(), machine.alone():
        assert "machines" in machine.problem


def test_threads_are_divided_and_seconds_refused(tmp_path):
    plan = load_plan("quick", FAST | {"threads": None})
    assert resolve_plan(plan, data_dir=None, share=1)[0].threads == torch.get_num_threads()
    assert resolve_plan(plan, data_dir=None, share=1000)[0].threads == 1
    with pytest.raises(ConfigError, match=r"--jobs 2 and a budget in seconds .*--epochs N"):
        run_plan(load_plan("quick", FAST | {"budget": {"seconds": 1.0}}), str(tmp_path), executor=ParallelExecutor(2))


def test_an_interruption_ends_all_jobs(tmp_path):
    class Interrupt(Log):
        def on(self, event):
            super().on(event)
            if isinstance(event, RunBegins) and len([each for each in self if isinstance(each, RunBegins)]) == 2:
                raise KeyboardInterrupt

    executor = ParallelExecutor(2)
    outcome = run_plan(
        load_plan("quick", FAST | {"budget": {"epochs": 100_000}}), str(tmp_path), [Interrupt()], executor=executor
    )
    assert outcome.interrupted
    assert len(outcome.left) == 3
    assert not any(thread.is_alive() for thread in executor._threads)
    assert read_records(tmp_path) == ([], [])


CONTROLLER = """
import json, sys
from bench.config import load_plan
from bench.runs.parallel_executor import ParallelExecutor
from bench.runs.runner import run_plan

class Print:
    def on(self, event):
        print(type(event).__name__, flush=True)

run_plan(load_plan("quick", json.loads(sys.argv[1])), sys.argv[2], [Print()], executor=ParallelExecutor(2))
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
def test_a_plan_that_is_asked_to_end_leaves_no_process(tmp_path):
    overrides = json.dumps(FAST | {"budget": {"epochs": 100_000}})
    command = [sys.executable, "-c", CONTROLLER, overrides, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        rows = 0
        while rows < 2:
            line = process.stdout.readline()
            assert line
            rows += line == "Row\n"
        children = Path(f"/proc/{process.pid}/task").glob("*/children")
        workers = [os.pidfd_open(int(pid)) for file in children for pid in file.read_text().split()]
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
    assert len(workers) == 2
    for worker in workers:
        assert select.select([worker], [], [], 60)[0]
        os.close(worker)
