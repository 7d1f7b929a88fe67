"""Runs of networks as people write them: trained right, or a record that says what to change."""

import pytest
import torch
from torch import nn

from bench.config import load_plan
from bench.runs.job import run_job
from bench.runs.job_description import Job
from bench.runs.resolve import resolve_plan
from zoo import list_models, registry

SMALL = {
    "recipe": {"base": "quick", "batch_size": 20},
    "measure": {"seconds": 0.02, "batch_size": 4, "block_seconds": 0.01},
    "limit_train": 100,
    "limit_test": 20,
    "input_size": 8,
    "threads": 1,
    "budget": {"epochs": 1},
}


class Net(nn.Module):
    """A convolution, a batch norm and a head; forward is what the tests replace."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.pool, self.fc = nn.AvgPool2d(4), nn.Linear(32, num_classes)

    def features(self, x):
        return self.pool(self.norm(self.conv(x)).relu())

    def forward(self, x):
        return self.fc(self.features(x).flatten(1))


class Views(Net):
    """As kuangliu's networks do it."""

    def forward(self, x):
        out = self.features(x)
        return self.fc(out.view(out.size(0), -1))


class FiveOutputs(Net):
    def __init__(self, num_classes):
        super().__init__(5)


class Tuples(Net):
    def forward(self, x):
        return super().forward(x), self.features(x)


class Column(Net):
    def forward(self, x):
        return super().forward(x)[:, :, None, None]


class Shared(Net):
    """It has a layer under two names."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.again = self.conv


class NoStatistics(Net):
    """Its running variance has become less than nothing, which shows in evaluation mode alone."""

    def forward(self, x):
        if self.training:
            self.norm.running_var.fill_(-1.0)
        return super().forward(x)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a network by its class, in this process."""
    list_models()  # so that the copy holds the zoo as well
    monkeypatch.setattr(registry, "_builders", dict(registry._builders))

    def run(network, **overrides):
        def build(num_classes: int = 10, input_size: int = 8) -> nn.Module:
            return network(num_classes)

        registry.register_model(name=network.__name__.lower())(build)
        plan = load_plan("quick", SMALL | {"models": [network.__name__.lower()]} | overrides)
        (config,) = resolve_plan(plan, data_dir=None)
        return run_job(Job(config=config, results=str(tmp_path / "results")))

    return run


def kinds(record):
    return {flag.kind for flag in record.flags if flag.kind in ("layout", "not_finite")}


def test_view_under_channels_last_trains_in_the_contiguous_format_and_says_so(run):
    record = run(Views)
    assert record.status == "completed", record.error
    assert record.config["channels_last"]
    (flag,) = (flag for flag in record.flags if flag.kind == "layout")
    assert "channels_last=false" in flag.message
    plain = run(Views, channels_last=False)
    assert kinds(plain) == set()
    assert plain.metrics["weights_sha256"] == record.metrics["weights_sha256"]
    assert kinds(run(Net)) == set()


def test_a_layer_with_two_names_is_trained_checkpointed_and_saved(run):
    record = run(Shared)
    assert record.status == "completed", record.error
    assert not [flag for flag in record.flags if flag.kind == "no_checkpoint"]


def test_the_number_of_classes_is_checked_before_training(run):
    record = run(FiveOutputs, classes=["0", "1", "2"])
    assert record.status == "failed"
    assert record.error.kind == "ModelError"
    assert "2×5" in record.error.message
    assert "num_classes=3" in record.error.message
    assert record.history == []


@pytest.mark.parametrize(("network", "message"), [(Tuples, "returns a tuple of 2"), (Column, "flatten(1) it")])
def test_outputs_that_cannot_be_trained_say_what_to_do(run, network, message):
    record = run(network)
    assert record.status == "failed"
    assert message in record.error.message
    assert record.history == []


def test_nan_in_evaluation_alone_is_a_diverged_record_that_says_so(run):
    record = run(NoStatistics)
    assert record.status == "diverged"
    assert torch.isfinite(torch.tensor(record.history[-1]["train_loss"]))
    messages = {flag.phase: flag.message for flag in record.flags if flag.kind == "not_finite"}
    assert messages.keys() == {"train", "test"}
    assert "20 of the images or pixels of 'test'" in messages["test"]
    assert "test_top1" not in record.metrics
