"""What measuring a model finds, and what it leaves of the model."""

import contextlib

import pytest
import torch
from torch import nn

import zoo
from bench.config import MeasureConfig, Recipe
from bench.errors import ConfigError
from bench.speed import Setting, Speed, look_at_speed, measure_speed
from bench.stages import hash_weights

QUICK = MeasureConfig(seconds=0.05, batch_size=4, block_seconds=0.001)


@pytest.fixture(autouse=True)
def _short_peak(monkeypatch):
    monkeypatch.setattr("bench.speed.PEAK_SECONDS", 0.02)


def setting(**options):
    return Setting(device=torch.device("cpu"), input_size=32, **options)


def measure(model, config=QUICK, modes=("infer", "train"), **options):
    found, phases = Speed(), []

    def phase(name):
        phases.append(name)
        return contextlib.nullcontext()

    measure_speed(model, setting(**options), config, Recipe(), found, phase, modes)
    return found, phases


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was_batch_norm_and_all(training):
    torch.manual_seed(0)
    model = zoo.create_model("resnet20").train(training)
    before, modes = hash_weights(model), [module.training for module in model.modules()]
    layout = [parameter.stride() for parameter in model.parameters()]
    measure(model, dtype="bfloat16")
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert hash_weights(model) == before
    assert [module.training for module in model.modules()] == modes
    assert [parameter.stride() for parameter in model.parameters()] == layout
    assert all(parameter.grad is None for parameter in model.parameters())


def test_everything_that_is_asked_for_is_found():
    config = QUICK.model_copy(update={"batch_sizes": (8, 1)})
    found, phases = measure(zoo.create_model("lenet5"), config)
    assert phases == ["measure_peak", "measure_infer", "measure_latency", "measure_batches", "measure_train"]
    for key in ("throughput_img_per_s", "train_throughput_img_per_s", "latency_p50_ms"):
        assert 0 < found.metrics[f"{key}_low"] <= found.metrics[key] <= found.metrics[f"{key}_high"]
    assert found.metrics["latency_p50_ms"] <= found.metrics["latency_p95_ms"] <= found.metrics["latency_p99_ms"]
    assert [row[0] for row in found.samples["throughput_by_batch"]] == [1, 8]
    rates = {row[0]: row[1] for row in found.samples["throughput_by_batch"]}
    assert found.metrics["best_batch_throughput_img_per_s"] == rates[found.metrics["best_batch_size"]]
    assert rates[found.metrics["best_batch_size"]] == max(rates.values())
    assert found.environment["peak_macs_per_s"] > 1e8
    assert found.environment["energy"].startswith("not measured: cpu")
    assert "energy_per_img_joules" not in found.metrics


def test_one_mode_alone():
    found, phases = measure(zoo.create_model("lenet5"), modes=("train",))
    assert phases == ["measure_peak", "measure_train"]
    assert "throughput_img_per_s" not in found.metrics
    assert found.metrics["train_throughput_img_per_s"] > 0


def test_a_batch_that_does_not_fit_ends_the_sweep_and_is_told():
    config = QUICK.model_copy(update={"batch_sizes": (1, 2**34)})
    found, phases = measure(zoo.create_model("lenet5"), config)
    assert phases[-1] == "measure_train"
    assert [row[0] for row in found.samples["throughput_by_batch"]] == [1]
    assert found.metrics["best_batch_size"] == 1
    (flag,) = (flag for flag in found.flags if flag.kind == "out_of_memory")
    assert "17179869184" in flag.message


def test_a_batch_size_that_does_not_fit_is_told_and_the_rest_is_measured():
    config = QUICK.model_copy(update={"batch_size": 2**34})
    found, phases = measure(zoo.create_model("lenet5"), config)
    assert [flag.phase for flag in found.flags if flag.kind == "out_of_memory"] == ["measure_infer", "measure_train"]
    assert "measure_latency" in phases
    assert found.metrics["latency_p50_ms"] > 0
    assert "throughput_img_per_s" not in found.metrics


def test_any_other_error_is_an_error():
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        measure(nn.Sequential(nn.Flatten(), nn.Linear(7, 10)))


class Spy(nn.Module):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 10)
        self.seen = []

    def forward(self, x):
        if x.shape[0] == QUICK.batch_size:
            out = self.fc(x.mean((2, 3)))
            self.seen.append((x.dtype, x.is_contiguous(memory_format=torch.channels_last), out.dtype, self.training))
            return out
        return self.fc(x.mean((2, 3)))

    def __deepcopy__(self, memo):
        copied = Spy()
        copied.seen = self.seen
        return copied


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"channels_last": True}, (torch.float32, True, torch.float32)),
        ({"channels_last": False}, (torch.float32, False, torch.float32)),
        ({"dtype": "bfloat16"}, (torch.bfloat16, True, torch.bfloat16)),
        ({"dtype": "float16"}, (torch.float16, True, torch.float16)),
        ({"autocast": True}, (torch.float32, True, torch.bfloat16)),
        ({"autocast": True, "dtype": "float32"}, (torch.float32, True, torch.float32)),
    ],
)
def test_inference_is_timed_in_the_precision_and_layout_that_is_asked_for(options, seen):
    model = Spy()
    measure(model, modes=("infer",), **options)
    assert set(model.seen) == {(*seen, False)}


@pytest.mark.parametrize(("dtype", "computed"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_training_is_timed_in_training_mode_with_autocast(dtype, computed):
    model = Spy()
    measure(model, modes=("train",), dtype=dtype)
    assert set(model.seen) == {(torch.float32, True, computed, True)}


class Dense(nn.Module):
    """Labels pixels, as the zoo's segmentation networks do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 1)

    def forward(self, x):
        return {"out": self.conv(x)}


def test_a_network_that_labels_pixels_is_trained_on_maps():
    found, _ = measure(Dense(), modes=("train",))
    assert found.metrics["train_throughput_img_per_s"] > 0


def test_a_quick_look_counts_and_holds_the_speed_against_the_peak():
    told = []
    found = look_at_speed("lenet5", setting(dtype="float32"), QUICK, ("infer",), 10, told.append)
    assert told == ["measure_peak", "measure_infer", "measure_latency"]
    assert found.metrics["macs"] == 651_720
    assert found.metrics["macs_per_s"] == found.metrics["macs"] * found.metrics["throughput_img_per_s"]
    assert found.metrics["macs_utilisation"] == found.metrics["macs_per_s"] / found.environment["peak_macs_per_s"]
    assert found.environment["machine"]["cores"] >= 1


def test_float16_training_is_refused():
    with pytest.raises(ConfigError, match="--dtype bfloat16"):
        look_at_speed("lenet5", setting(dtype="float16"), QUICK, ("infer", "train"), 10, print)
