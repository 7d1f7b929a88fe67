"""The plugin in a project of its own, run by its own pytest, as somebody who has installed zoobench would."""

import gc
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from bench.errors import UserError
from bench.gate.checks import compare_networks, create_network, measure_network
from bench.gate.timing.subject import Setting

NETS = """
from torch import nn

class MyNet(nn.Module):
    def __init__(self, more=False):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.more = nn.Conv2d(8, 8, 1) if more else nn.Identity()
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(self.more(self.stem(x)).relu().mean((2, 3)))

class Copying(MyNet):
    def forward(self, x):
        [x.clone() for _ in range(200)]
        return super().forward(x)
"""
SETTING = "input_size=16, batch_size=4, budget=1"
SUITE = f"""
from nets import Copying, MyNet
import pytest

def test_my_net(throughput):
    throughput.check(MyNet, against="baseline:my_net", {SETTING})

def test_instance(throughput):
    net = MyNet().train()
    throughput.check(net, against="baseline:instance", mode="train", {SETTING})
    assert net.training
"""
CHECKS = f"""
from nets import Copying, MyNet
import pytest

def test_extra_layer(throughput):
    throughput.check(MyNet(more=True), against="baseline:my_net", {SETTING})

def test_no_baseline(throughput):
    throughput.check(MyNet, against="baseline:none_such", {SETTING})

def test_elsewhere(throughput):
    throughput.check(MyNet, against="baseline:elsewhere", {SETTING})

def test_other_work(throughput):
    throughput.check(MyNet, against="baseline:my_net", input_size=24, batch_size=4)

def test_no_name(throughput):
    throughput.check(MyNet, against="my_net")

def test_no_model(throughput):
    throughput.check(lambda: 3, against="baseline:my_net", {SETTING})

def test_wrong_images(throughput):
    throughput.check(MyNet, against="baseline:my_net", in_chans=1, {SETTING})

def test_two(throughput):
    result = throughput.compare(MyNet, Copying, {SETTING})
    assert result.judgement.change > 1
    assert not result.differences
"""


class Project:
    def __init__(self, path):
        self.path = path
        (path / "tests").mkdir(parents=True)
        (path / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
        (path / "nets.py").write_text(NETS)
        (path / "tests" / "test_speed.py").write_text(SUITE)
        (path / "tests" / "test_checks.py").write_text(CHECKS)

    @property
    def baselines(self):
        return self.path / ".zoobench" / "baselines"

    def pytest(self, *arguments):
        command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", *arguments]
        done = subprocess.run(command, cwd=self.path, capture_output=True, text=True)
        assert "INTERNALERROR" not in done.stdout + done.stderr
        return done

    def copy_as_of_another_machine(self):
        content = json.loads((self.baselines / "my_net.json").read_text())
        content |= {"name": "elsewhere", "figures": {"elsewhere": content["figures"]["my_net"]}}
        content["environment"]["machine"]["cpu"] = "Another CPU"
        (self.baselines / "elsewhere.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project whose baselines are saved."""
    made = Project(tmp_path_factory.mktemp("project").resolve())
    saved = made.pytest("tests/test_speed.py", "--throughput-save")
    assert saved.returncode == 0, saved.stdout
    assert saved.stdout.count("SAVED ") == 2
    assert sorted(path.name for path in made.baselines.iterdir()) == ["instance.json", "my_net.json"]
    made.copy_as_of_another_machine()
    return made


def test_what_did_not_change_passes_and_each_failure_says_why_and_what_to_do(project):
    done = project.pytest("-k", "not instance")
    shown = " ".join(done.stdout.split())
    # In so short a time no verdict is certain; a warning and the summary say so.
    assert "PASSED tests/test_speed.py::test_my_net" in shown
    assert "test_my_net against baseline:my_net: time of a step" in shown
    assert "ThroughputWarning: MyNet against baseline:my_net: inconclusive" in shown
    for failing, why in {
        "extra_layer": "more: kind Identity → Conv2d",
        "no_baseline": "Save it where the network is known to be as fast as it should be",
        "other_work": "3×16×16, 10 classes, float32, and this call asks for batches of 4, mode infer, images of 3×24",
        "no_name": "expected baseline:NAME",
        "no_model": "returns int when it is called",
        "wrong_images": "MyNet cannot take input of shape 1×16×16",
    }.items():
        assert f"FAILED tests/test_checks.py::test_{failing} " in shown
        assert why in shown
    assert "test_no_baseline against baseline:none_such" in shown
    assert "pytest --throughput-save" in shown
    assert "PASSED tests/test_checks.py::test_two" in shown
    assert "CHANGED tests/test_checks.py::test_extra_layer" in shown
    assert "SKIPPED" in shown
    assert "NOT compared with baseline:elsewhere" in shown
    assert "cpu Another CPU → " in shown
    assert "UNLIKE tests/test_checks.py::test_elsewhere" in shown
    assert "Traceback" not in shown
    assert "During handling" not in shown
    assert done.returncode == 1


def test_strict_fails_where_nothing_can_be_said(project):
    (project.path / "pytest.ini").write_text("[pytest]\npythonpath = .\nthroughput_strict = true\n")
    try:
        done = project.pytest("tests/test_checks.py", "-k", "elsewhere")
    finally:
        (project.path / "pytest.ini").unlink()
    assert done.returncode == 1
    assert "NOT compared with baseline:elsewhere" in done.stdout


def test_two_tests_cannot_save_one_baseline(tmp_path):
    project = Project(tmp_path / "twice")
    text = f'def test_%s(throughput):\n    throughput.check("lenet5", against="baseline:one", {SETTING})\n'
    (project.path / "tests" / "test_speed.py").write_text((text % "a" + text % "b").replace("input_size=16, ", ""))
    (project.path / "tox.ini").write_text("[pytest]\nthroughput_baselines = kept/here\n")
    (project.path / "pyproject.toml").unlink()
    done = project.pytest("tests/test_speed.py", "--throughput-save")
    assert done.returncode == 1
    assert "1 failed, 1 passed" in done.stdout
    assert "give each test a name of its own" in done.stdout
    assert [path.name for path in (project.path / "kept" / "here").iterdir()] == ["one.json"]


def test_pytest_does_not_pay_for_the_plugin_until_it_is_used(tmp_path):
    code = """
import sys, pytest
assert pytest.main(["-q", "--fixtures"]) == 0
loaded = {name.partition(".")[0] for name in sys.modules} & {"bench", "zoo", "reports", "torch", "numpy", "rich"}
assert "zoobench" in sys.modules and not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "throughput" in done.stdout


def test_the_process_is_left_as_it_was(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 6 * 6, 5)).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    torch.manual_seed(3)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        network = create_network(net, "net", Setting(input_size=8, mode="train"), 2)
        assert network.setting.num_classes == 5
        kept = measure_network(network, "net", tmp_path, budget_seconds=1)
        assert kept.environment["threads"] == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.rand(3), drawn)
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    assert float(torch.tensor(1e-40) * 1.0) > 0  # denormal numbers are as they were
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_network_that_breaks_while_it_is_timed_says_so(tmp_path):
    class Breaks(nn.Module):
        def forward(self, x):
            if x.shape[0] > 1:
                raise RuntimeError("one image at a time")
            return x.mean((2, 3))

    network = create_network(Breaks, "Breaks", Setting(input_size=8), 2)
    with pytest.raises(UserError, match="Breaks cannot be timed: RuntimeError: one image at a time"):
        measure_network(network, "net", tmp_path, budget_seconds=1)
    assert compare_networks(network, network, 0.05, 1).results[0].status == "failed"
