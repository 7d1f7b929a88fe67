"""Plans whose models fail, that are killed or interrupted: a record of each failure, and what is left is said."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.records import read_records, record_path

BROKEN = """
import os, signal
import torch
from torch import nn
from zoo.registry import register_model

class Net(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.fc, self.act = nn.Linear(3072, 10), act
    def forward(self, x):
        if x.device.type == "meta":
            return self.fc(x.flatten(1))
        return self.act(self.fc(x.flatten(1)))

def raises(x):
    raise RuntimeError("the <b>wheels</b> came off")

def out_of_memory(x):
    return torch.empty(2**60)

def hungers(x):
    if torch.is_grad_enabled() and len(x) > 8:
        torch.empty(2**60)
    return x

def dies(x):
    os.kill(os.getpid(), signal.SIGKILL)

def exits(x):
    os._exit(7)

def nan(x):
    return x * float("nan")

def build(act):
    def builder(num_classes: int = 10, input_size: int = 32) -> nn.Module:
        return Net(act)
    return builder

for act in (raises, out_of_memory, hungers, dies, exits, nan):
    register_model(name=f"net_that_{act.__name__}")(build(act))
"""


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Records of models that fail in their own ways, with a sound one behind them; they come by an entry point."""
    site = tmp_path_factory.mktemp("site")
    (site / "broken_nets.py").write_text(BROKEN)
    info = site / "broken_nets-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-nets\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[zoobench.models]\nbroken = broken_nets\n")
    results = tmp_path_factory.mktemp("results")
    command = [sys.executable, "-m", "zoobench", "run", "quick", "--models", "net_that_*,lenet5", "--epochs", "1"]
    options = {"limit_train": 200, "limit_test": 50, "measure.seconds": 0.2, "recipe.batch_size": 32}
    for name, value in options.items():
        command += ["--set", f"{name}={value}"]
    environment = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{Path(__file__).parents[3]}"}
    process = subprocess.run([*command, "--results", str(results)], env=environment, capture_output=True, text=True)
    records, damaged = read_records(results)
    assert damaged == []
    return process, {record.config["model"]: record for record in records}


@pytest.mark.parametrize(
    ("model", "status", "kind", "message"),
    [
        ("net_that_raises", "failed", "RuntimeError", "the <b>wheels</b> came off"),
        ("net_that_out_of_memory", "failed", "RuntimeError", "memory"),
        ("net_that_dies", "failed", "SIGKILL", "ended by SIGKILL"),
        ("net_that_exits", "failed", "ProcessExit", "exit status 7"),
        ("net_that_hungers", "completed", None, None),
        ("net_that_nan", "diverged", None, None),
        ("lenet5", "completed", None, None),
    ],
)
def test_a_failure_becomes_a_record_and_the_plan_goes_on(broken, model, status, kind, message):
    process, records = broken
    record = records[model]
    assert record.status == status
    if kind is None:
        assert record.error is None
    else:
        assert record.error.kind == kind
        assert message in record.error.message
        assert record.run_id in process.stdout
    if kind == "RuntimeError":
        assert "Traceback" in record.error.traceback
        assert "broken_nets.py" in record.error.traceback
        assert record.metrics["params"] == 30_730  # what was found before the failure is kept
    assert process.returncode == 1
    assert "Traceback" not in process.stderr


def test_out_of_memory_keeps_the_effective_batch_and_is_told(broken):
    _, records = broken
    record = records["net_that_hungers"]
    steps = record.environment["data"]["train"] // record.config["recipe"]["batch_size"]
    assert (record.metrics["steps"], record.metrics["micro_batch_size"]) == (steps, 8)
    (flag,) = [flag for flag in record.flags if flag.kind == "out_of_memory"]
    assert flag.phase == "train"
    assert "8 of 32 images at a time" in flag.message
    assert "micro_batch_size" not in records["lenet5"].metrics


def wait_for_line(stream, text):
    for line in stream:
        if text in line:
            return line
    raise AssertionError(f"the process ended without saying {text!r}")


def command(results, *arguments):
    fixed = ["run", "quick", "--models", "lenet5,simple_cnn,mobilenet_v1_025", "--threads", "1", "--limit-train", "300"]
    fixed += ["--limit-test", "50", "--set", "measure.seconds=0.05", "--set", "measure.probes=false"]
    return [*fixed, "--results", str(results), *arguments]


def start(results, *arguments):
    process = [sys.executable, "-m", "zoobench", *command(results, *arguments)]
    return subprocess.Popen(process, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children_of(process):
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


def wait_for_end(pid):
    """Wait until a process, not a child of this one, is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], 60)[0], f"process {pid} lives on"
    finally:
        os.close(descriptor)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
def test_a_killed_plan_leaves_no_process_and_goes_on_where_it_was(tmp_path, zoobench_here):
    process = start(tmp_path, "--epochs", "2")
    wait_for_line(process.stderr, "[2/3] simple_cnn seed 0: begins")
    workers = [int(child) for child in children_of(process)]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for worker in workers:
        wait_for_end(worker)
    records, damaged = read_records(tmp_path)
    assert [record.config["model"] for record in records] == ["lenet5"]
    assert damaged == []
    before = Path(record_path(tmp_path, records[0].run_id)).stat()

    again = zoobench_here(*command(tmp_path, "--epochs", "2"))
    assert again.returncode == 0, again.stderr
    assert "lenet5 seed 0: begins" not in again.stderr
    assert "1 of 3 runs are done already" in again.stderr
    assert len(read_records(tmp_path)[0]) == 3
    after = Path(record_path(tmp_path, records[0].run_id)).stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert "3 completed" in again.stdout


def test_ctrl_c_says_what_is_done_and_what_is_left(tmp_path):
    process = start(tmp_path, "--seconds", "600")
    wait_for_line(process.stderr, "[1/3] lenet5 seed 0: begins")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "0 completed" in output
    left = next(line for line in output.splitlines() if line.startswith("Interrupted"))
    assert all(model in left for model in ("lenet5", "simple_cnn", "mobilenet_v1_025"))
    assert read_records(tmp_path) == ([], [])


def test_what_would_begin_anew_is_not_said_to_go_on(tmp_path):
    process = start(tmp_path, "--seconds", "600", "--force")
    wait_for_line(process.stderr, "[1/3] lenet5 seed 0: begins")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert "begins anew: --force" in output
    assert "goes on from here" not in output
