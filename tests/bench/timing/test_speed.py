"""What measuring a model finds, and what it leaves of the model."""

import functools

import pytest
import torch
from torch import nn

import zoo
from bench.config import MeasureConfig, Recipe
from bench.errors import ConfigError
from bench.runs.speed_check import look_at_speed
from bench.timing.peak import Peak
from bench.timing.setting import Setting
from bench.timing.speed import Speed, measure_speed
from bench.training.step import create_timed_step
from bench.training.weights import hash_weights

QUICK = MeasureConfig(seconds=0.05, batch_size=4, block_seconds=0.001, repeats=3)


@pytest.fixture(autouse=True)
def _short_peak(monkeypatch):
    monkeypatch.setattr("bench.timing.peak.FORM_SECONDS", 0.002)
    monkeypatch.setattr("bench.timing.peak.SIDES", (256, 512))
    monkeypatch.setattr("bench.timing.peak.CHANNELS", (64,))


def setting(**options):
    return Setting(device=torch.device("cpu"), input_size=32, **options)


def measure(model, config=QUICK, modes=("infer", "train"), **options):
    found, phases = Speed(), []
    create_step = functools.partial(create_timed_step, recipe=Recipe())
    measure_speed(model, setting(**options), config, found, phases.append, modes, create_step)
    return found, phases


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was_batch_norm_and_all(training):
    torch.manual_seed(0)
    model = zoo.create_model("simple_cnn").train(training)
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
    turn = ["measure_infer", "measure_latency", "measure_batches", "measure_batches", "measure_train"]
    assert phases == ["measure_peak", *turn * 3, "measure_memory", "measure_memory"]
    for key in ("throughput_img_per_s", "train_throughput_img_per_s", "latency_p50_ms"):
        assert 0 < found.metrics[f"{key}_low"] <= found.metrics[key] <= found.metrics[f"{key}_high"]
    assert [row[0] for row in found.samples["throughput_by_batch"]] == [1, 8]
    rates = {row[0]: row[1] for row in found.samples["throughput_by_batch"]}
    assert found.metrics["best_batch_throughput_img_per_s"] == rates[found.metrics["best_batch_size"]]
    assert rates[found.metrics["best_batch_size"]] == max(rates.values())
    assert found.environment["peak_macs_per_s"] > 1e8
    assert found.environment["energy"].startswith("not measured: cpu")
    assert "energy_per_img_joules" not in found.metrics


def test_one_mode_alone():
    found, phases = measure(zoo.create_model("lenet5"), modes=("train",))
    assert phases == ["measure_peak", *["measure_train"] * 3, "measure_memory"]
    assert "throughput_img_per_s" not in found.metrics
    assert found.metrics["train_throughput_img_per_s"] > 0


def test_a_batch_that_does_not_fit_ends_the_sweep_and_is_reported():
    config = QUICK.model_copy(update={"batch_sizes": (1, 2**34)})
    found, phases = measure(zoo.create_model("lenet5"), config)
    assert phases.count("measure_batches") == 4  # once for the one that does not fit
    assert [row[0] for row in found.samples["throughput_by_batch"]] == [1]
    assert found.metrics["best_batch_size"] == 1
    (flag,) = (flag for flag in found.flags if flag.kind == "out_of_memory")
    assert "17179869184" in flag.message


def test_a_batch_size_that_does_not_fit_is_reported_and_the_rest_is_measured():
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
    announced = []
    found = look_at_speed("lenet5", setting(dtype="float32"), QUICK, ("infer",), 10, announced.append)
    assert list(dict.fromkeys(announced)) == ["measure_peak", "measure_infer", "measure_latency", "measure_memory"]
    assert found.metrics["macs"] == 651_720
    assert found.metrics["macs_per_s"] == found.metrics["macs"] * found.metrics["throughput_img_per_s"]
    assert found.metrics["macs_utilisation"] == found.metrics["macs_per_s"] / found.environment["peak_macs_per_s"]
    assert found.environment["machine"]["cores"] >= 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_layout_is_chosen_in_the_precision_that_is_named(dtype):
    wanted = setting(dtype=dtype, autocast=dtype == "float32")  # a GPU's default is the other
    found = look_at_speed("lenet5", wanted, QUICK, ("infer",), 10, lambda phase: None, {"channels_last"})
    tried = found.environment["tuning"]["images_per_s"]
    assert set(tried) == {f"{dtype}, channels_last", f"{dtype}, contiguous"}
    assert found.environment["setting"]["precision"] == dtype


def test_float16_training_is_refused():
    with pytest.raises(ConfigError, match="--dtype bfloat16"):
        look_at_speed("lenet5", setting(dtype="float16"), QUICK, ("infer", "train"), 10, print)


def test_a_network_that_exceeds_the_peak_is_flagged_and_has_no_share_of_it(monkeypatch):
    """A share above 100% would be a fault: the peak is then not the machine's."""
    monkeypatch.setattr("bench.timing.speed.measure_peak", lambda setting, clock, seconds: Peak({"a slow form": 1.0}))
    found = look_at_speed("lenet5", setting(), QUICK, ("infer",), 10, lambda phase: None)
    (flag,) = (flag for flag in found.flags if flag.kind == "peak_exceeded")
    assert "the fastest form that was timed (a slow form)" in flag.message
    assert "macs_utilisation" not in found.metrics


def test_the_record_names_the_setting_and_the_form_of_the_peak():
    found = look_at_speed("lenet5", setting(autocast=True), QUICK, ("infer",), 10, lambda phase: None)
    rates = found.environment["peak_macs_per_s_by_form"]
    assert found.environment["peak_macs_per_s"] == max(rates.values()) == rates[found.environment["peak_form"]]
    assert found.environment["setting"] == {
        "precision": "bfloat16 autocast",
        "memory_format": "channels_last",
        "runtime": "eager",
        "cuda_graph": False,
    }


def test_memory_is_that_of_a_step_of_each_mode():
    small, large = (
        measure(zoo.create_model("simple_cnn"), QUICK.model_copy(update={"batch_size": n}))[0] for n in (1, 4)
    )
    weights = 4 * sum(parameter.numel() for parameter in zoo.create_model("simple_cnn").parameters())
    assert weights < small.metrics["infer_peak_memory_bytes"] < large.metrics["infer_peak_memory_bytes"]
    assert large.metrics["train_peak_memory_bytes"] > 3 * weights  # gradients and momentum


def test_raw_times_are_kept_by_repeat():
    found, _ = measure(zoo.create_model("lenet5"))
    for name in ("infer_block_seconds", "latency_seconds", "train_block_seconds"):
        assert len(found.samples[name]) == QUICK.repeats
        assert all(isinstance(seconds, float) for repeat in found.samples[name] for seconds in repeat)


def test_compiled_networks_are_measured_with_one_compilation_a_quantity(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda network, dynamic: compiled.append(network) or network)
    found, phases = measure(zoo.create_model("lenet5"), runtime="compile")
    assert len(compiled) == 3  # inference, latency, training
    for name in ("compile_seconds", "latency_compile_seconds", "train_compile_seconds"):
        assert found.metrics[name] > 0
    assert "measure_memory" not in phases
