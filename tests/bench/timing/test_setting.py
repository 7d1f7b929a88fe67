"""One definition of how a network is timed, and what is switched while it is."""

import contextlib

import pytest
import torch

from bench.config import MeasureConfig, load_plan
from bench.machine import describe_precision
from bench.runs.resolve import resolve_plan, training_defaults
from bench.runs.speed_check import default_setting
from bench.runs.tuning import start_form
from bench.timing.setting import Setting, fastest_kernels
from bench.timing.speed import Speed, measure_speed

QUICK = MeasureConfig(seconds=0.01, batch_size=2, block_seconds=0.001, repeats=3)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def deterministic():
    """The switches that training on a GPU sets, put back afterwards."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    cudnn.benchmark, cudnn.deterministic = before
    torch.use_deterministic_algorithms(False)


def switches():
    cudnn = torch.backends.cudnn
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    return cudnn.benchmark, cudnn.deterministic, *algorithms


def test_measuring_is_not_deterministic_and_training_is_again_afterwards(deterministic):
    before = switches()
    with contextlib.suppress(KeyError), fastest_kernels():
        assert switches()[:3] == (True, False, False)
        raise KeyError
    assert switches() == before == (False, True, True, True)


@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.parametrize("device", [CPU, CUDA, torch.device("mps")])
def test_throughput_times_a_network_as_a_run_trains_it(monkeypatch, device, bfloat16):
    monkeypatch.setattr("bench.runs.resolve.multiplies_bfloat16", lambda device: bfloat16)
    defaults = training_defaults(str(device))
    setting = default_setting(device, 32)
    assert (setting.autocast, setting.channels_last) == (defaults.autocast, defaults.channels_last)
    assert setting.autocast == (device == CUDA and bfloat16)
    assert setting.dtype is None
    assert default_setting(device, 32, "float32").precision == "float32"


def test_a_plan_without_options_resolves_to_the_same_setting():
    (run,) = resolve_plan(load_plan("quick", {"models": ["lenet5"], "device": "cpu"}), data_dir=None)
    form = start_form(run)
    own = Setting(CPU, run.input_size, form.channels_last, form.autocast, run.measure.dtype)
    assert own == default_setting(CPU, run.input_size)


@pytest.mark.parametrize(
    ("options", "precision", "multiplied", "training"),
    [
        ({}, "float32", torch.float32, False),
        ({"autocast": True}, "bfloat16 autocast", torch.bfloat16, True),
        ({"autocast": True, "dtype": "float32"}, "float32", torch.float32, False),
        ({"dtype": "bfloat16"}, "bfloat16", torch.bfloat16, True),
        ({"dtype": "float16"}, "float16", torch.float16, False),
    ],
)
def test_the_precision_has_one_name_and_one_type(options, precision, multiplied, training):
    setting = Setting(CPU, 32, **options)
    assert (setting.precision, setting.multiplied_dtype, setting.training_autocast) == (precision, multiplied, training)


def test_a_record_says_which_float32_it_was(monkeypatch, deterministic):
    """The flags while measuring, not those of training."""
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.setattr("bench.timing.peak.FORM_SECONDS", 0.0)
    found = Speed(environment={"precision": describe_precision()})
    assert found.environment["precision"]["deterministic"] is True
    measure_speed(torch.nn.Flatten(), Setting(CPU, 8), QUICK, found, lambda phase: None, ("infer",))
    described = found.environment["precision"]
    assert described["deterministic"] is False
    assert described["cudnn_benchmark"] is True
    assert described["tf32_override"] == "0"
    for product in ("cuda_matmul", "cudnn_conv"):
        assert described[product] in ("tf32", "ieee", "none")
