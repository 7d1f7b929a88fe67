"""Whole plans, each run in a process of its own, on the embedded digits."""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from bench.config import load_plan
from bench.errors import ConfigError, DataError, DeviceError
from bench.records import CARD_SUFFIX, PROBES_SUFFIX, read_record, read_records, record_path
from bench.runner import resolve_models, resolve_plan, run_plan
from zoo import UnknownModelError, ZooError, list_models, model_info

FAST = {"recipe": "quick", "measure": {"seconds": 0.2, "batch_size": 4}, "limit_train": 200, "limit_test": 50}


class Silent:
    """A display that keeps what it is told."""

    def __init__(self):
        self.events, self.began, self.ended = [], [], []

    def loading(self, what, done, total):
        pass

    def begin(self, runs, done):
        self.planned, self.done = runs, done

    def close(self):
        pass

    def run_begins(self, config):
        self.began.append(config.model)

    def run_goes_on(self, event):
        self.events.append(event)

    def run_ends(self, record):
        self.ended.append(record.run_id)


def plan(*models, **overrides):
    return load_plan("quick", FAST | {"models": list(models), "budget": {"epochs": 1}} | overrides)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The same plan done twice in one folder, and once in another."""
    first, other = (str(tmp_path_factory.mktemp(name)) for name in ("first", "other"))
    displays = Silent(), Silent(), Silent()
    outcomes = [
        run_plan(plan("lenet5", "simple_cnn"), folder, display, command="zoobench run quick")
        for folder, display in zip((first, first, other), displays, strict=True)
    ]
    return outcomes, displays, first


def test_a_record_says_everything_that_was_measured(done):
    outcomes, _, folder = done
    for record in outcomes[0].records:
        assert record.status == "completed"
        assert read_record(record_path(folder, record.run_id)) == record
        metrics = record.metrics
        for name in ("params", "macs", "test_top1", "test_loss", "val_top1", "peak_memory_bytes", "train_seconds"):
            assert metrics[name] is not None, name
        assert metrics["flops"] == 2 * metrics["macs"]
        for name in ("throughput_img_per_s", "train_throughput_img_per_s"):
            assert 0 < metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]
        assert 0 <= metrics["test_top1"] <= 1
        assert len(metrics["weights_sha256"]) == 64
        assert metrics["images_seen"] == record.history[-1]["images_seen"]
        assert len(record.samples["infer_block_seconds"]) >= 3
        assert len(record.samples["latency_seconds"]) >= 3
        assert metrics["latency_p50_ms"] <= metrics["latency_p99_ms"]
        assert record.environment["energy"]
        assert sum(map(sum, record.samples["test_confusion"])) == 50
        assert record.environment["data"]["train"] == 180
        assert record.environment["data"]["val"] == 20
        assert record.environment["data"]["test"] == 50
        assert record.environment["command"] == "zoobench run quick"
        assert record.environment["peak_macs_per_s"] > 1e8
        beside = record_path(folder, record.run_id).removesuffix(".json")
        assert json.loads(Path(beside + CARD_SUFFIX).read_text())["params"] == metrics["params"]
        assert "kernels" in np.load(beside + PROBES_SUFFIX)
        assert record.environment["versions"]["torch"]
        assert record.config["threads"] == record.environment["threads"] >= 1
    assert [record.metrics["params"] for record in outcomes[0].records] == [62_006, 94_986]


def test_the_second_time_nothing_is_trained_and_the_records_are_the_same(done):
    outcomes, displays, _ = done
    assert (outcomes[0].skipped, outcomes[1].skipped) == (0, 2)
    assert displays[0].began == ["lenet5", "simple_cnn"]
    assert displays[1].began == []
    assert outcomes[1].records == outcomes[0].records


def test_the_same_seed_gives_the_same_weights_and_accuracy_elsewhere(done):
    outcomes, _, _ = done
    for here, there in zip(outcomes[0].records, outcomes[2].records, strict=True):
        for name in ("weights_sha256", "test_top1", "test_loss", "val_loss", "train_loss"):
            assert here.metrics[name] == there.metrics[name]


def test_the_display_is_told_phases_and_rows(done):
    _, displays, _ = done
    phases = [event["phase"] for event in displays[0].events if event["event"] == "phase"]
    measured = ["measure_peak", "measure_infer", "measure_latency", "measure_train"]
    assert phases == ["load", "train", "test", *measured, "probe"] * 2
    rows = [event for event in displays[0].events if event["event"] == "row"]
    assert rows[-1]["share"] == 1.0


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
    command = [sys.executable, "-m", "bench.cli", "run", "quick", "--models", "net_that_*,lenet5", "--epochs", "1"]
    for name, value in (("limit_train", 200), ("limit_test", 50), ("measure.seconds", 0.2)):
        command += ["--set", f"{name}={value}"]
    environment = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{Path(__file__).parents[2]}"}
    process = subprocess.run([*command, "--results", str(results)], env=environment, capture_output=True, text=True)
    records, damaged = read_records(results)
    assert damaged == []
    return process, {record.config["model"]: record for record in records}


@pytest.mark.parametrize(
    ("model", "status", "kind", "message"),
    [
        ("net_that_raises", "failed", "RuntimeError", "the <b>wheels</b> came off"),
        ("net_that_out_of_memory", "failed", "RuntimeError", "memory"),
        ("net_that_dies", "failed", "SIGKILL", "ran out of memory"),
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


def start(results, *arguments):
    command = [sys.executable, "-m", "bench.cli", "run", "quick", "--models", "lenet5,simple_cnn,mobilenet_v1"]
    command += ["--set", "measure.seconds=0.2", "--set", "limit_test=50", "--results", str(results), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


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
def test_a_killed_plan_leaves_no_process_and_goes_on_where_it_was(tmp_path):
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

    again = start(tmp_path, "--epochs", "2")
    output, errors = again.communicate()
    assert again.returncode == 0, errors
    assert "lenet5 seed 0: begins" not in errors
    assert "1 of 3 runs are done already" in errors
    assert len(read_records(tmp_path)[0]) == 3
    after = Path(record_path(tmp_path, records[0].run_id)).stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert "3 completed" in output


def test_ctrl_c_says_what_is_done_and_what_is_left(tmp_path):
    process = start(tmp_path, "--seconds", "600")
    wait_for_line(process.stderr, "[1/3] lenet5 seed 0: begins")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "0 completed" in output
    left = next(line for line in output.splitlines() if line.startswith("Interrupted"))
    assert all(model in left for model in ("lenet5", "simple_cnn", "mobilenet_v1"))
    assert read_records(tmp_path) == ([], [])


def test_wildcards_and_families():
    assert resolve_models(["lenet5", "resnet1*", "lenet5"]) == ["lenet5", *list_models("resnet1*")]
    chosen = resolve_models(["@representative"])
    classifiers = [info for info in map(model_info, list_models()) if info.task == "classification"]
    assert {model_info(name).family for name in chosen} == {info.family for info in classifiers}
    with pytest.raises(UnknownModelError, match="lenet5"):
        resolve_models(["lenet"])
    with pytest.raises(ConfigError, match="no architecture matches"):
        resolve_models(["q*"])


def test_what_is_not_here_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        resolve_plan(plan("lenet5", data="folder:nowhere"), data_dir=tmp_path, display=Silent())
    missing = torch.cuda.device_count()
    with pytest.raises(DeviceError, match="--device cpu"):
        resolve_plan(plan("lenet5", device=f"cuda:{missing}"), data_dir=None, display=Silent())


def test_a_damaged_record_is_repeated_and_said(done, tmp_path):
    outcomes, _, _ = done
    record = outcomes[0].records[0]
    path = Path(record_path(tmp_path, record.run_id))
    path.parent.mkdir()
    path.write_text(json.dumps(record.model_dump(mode="json"))[:500])
    with pytest.warns(UserWarning, match="It is repeated now"):
        outcome = run_plan(plan("lenet5"), str(tmp_path), Silent())
    assert outcome.skipped == 0
    assert outcome.records[0].metrics["weights_sha256"] == record.metrics["weights_sha256"]


def test_pretrained_weights_come_with_their_preprocessing(tmp_path):
    weights = tmp_path / "mobilenet.pt"
    torch.manual_seed(0)
    torch.save(torchvision.models.mobilenet_v3_small(num_classes=10).state_dict(), weights)
    tuned = plan("torchvision/mobilenet_v3_small", pretrained=str(weights), limit_train=12, limit_test=6)
    record = run_plan(tuned, str(tmp_path), Silent()).records[0]
    assert record.error is None
    data = record.environment["data"]
    assert data["mean"] == pytest.approx([255 * mean for mean in (0.485, 0.456, 0.406)])
    assert data["input_size"] == 224
    # The network was built and counted at the size of its weights.
    assert record.metrics["macs"] == pytest.approx(56.51e6, rel=0.05)
    weights.write_bytes(weights.read_bytes() + b" ")
    assert run_plan(tuned, str(tmp_path), Silent()).skipped == 0


def test_what_the_recipe_asks_of_a_network_must_be_there(tmp_path):
    asked = plan("simple_cnn", "lenet5", recipe={"base": "quick", "drop_rate": 0.1})
    with pytest.raises(ZooError, match="'lenet5' takes no argument 'drop_rate'"):
        resolve_plan(asked, data_dir=None, display=Silent())
    without = plan("lenet5", recipe={"base": "quick", "drop_rate": 0.0})  # which it does anyhow
    assert resolve_plan(without, data_dir=None, display=Silent())
    with pytest.raises(ConfigError, match=r"target_top1 .* val_fraction"):
        plan("lenet5", target_top1=0.5, val_fraction=0.0)


def test_equal_macs_mean_steps_in_inverse_proportion(tmp_path):
    budget = {"macs": 3e9}
    target = {"target_top1": 0.01}
    outcome = run_plan(plan("lenet5", "simple_cnn", budget=budget, **target), str(tmp_path), Silent())
    for record in outcome.records:
        assert record.error is None
        step_macs = 3 * record.metrics["macs"] * 32
        assert record.metrics["steps"] == max(1, int(3e9 / step_macs))
        assert record.metrics["target_steps"] == record.history[0]["step"]
        assert record.metrics["target_seconds"] == record.history[0]["seconds"]


def test_published_weights_that_do_not_exist_are_told_before_anything_runs(tmp_path):
    with pytest.raises(ZooError, match="simple_cnn"):
        resolve_plan(plan("simple_cnn", pretrained=True), data_dir=None, display=Silent())
    with pytest.raises(ConfigError, match=r"nothing\.pt"):
        resolve_plan(plan("simple_cnn", pretrained="nothing.pt"), data_dir=None, display=Silent())
