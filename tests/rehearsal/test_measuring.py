"""Measuring speed on a GPU that is not there: where the host waits.

Looking into a network is not rehearsed: torch 2.14 corrupts its memory when fake tensors go through the probes.
"""

import contextlib
import functools
import time
from types import SimpleNamespace

import pytest
import torch
from fake_cuda import DEVICE, READ, WAIT, fake_cuda, train
from scripted_nvml import ScriptedNvml

import zoo
from bench.config import MeasureConfig, Recipe
from bench.timing import peak, speed
from bench.timing.setting import Setting
from bench.training.step import create_timed_step

A_BLOCK = {
    (WAIT, "bench/timing/clock.py:CudaClock.time_block"): "both ends of a block",
    (WAIT, "bench/device.py:synchronize"): "both ends of a latency, and of a look at memory",
}
CONFIG = MeasureConfig(seconds=0.001, batch_size=4, block_seconds=1e-6, repeats=3, batch_sizes=(2,))


class Event:
    """Of the host's clock: nothing here runs on a GPU."""

    def __init__(self, device="cuda", enable_timing=False):
        assert enable_timing

    def record(self):
        self.seconds = time.perf_counter()

    def elapsed_time(self, end):
        return 1000 * (end.seconds - self.seconds)


class Graph:
    """Replays nothing, and says what was captured."""

    captured = 0

    def replay(self):
        pass


@contextlib.contextmanager
def capturing(graph):
    Graph.captured += 1
    yield


@pytest.fixture
def gpu(monkeypatch):
    """What measuring asks of a GPU besides operators."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    functions = {
        "device": lambda device: contextlib.nullcontext(),
        "memory_allocated": lambda device: 1000,
        "max_memory_allocated": lambda device: 5000,
        "reset_peak_memory_stats": lambda device: None,
        "get_device_properties": lambda device: SimpleNamespace(uuid="aaaa"),
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "CUDAGraph": Graph,
        "graph": capturing,
    }
    for name, function in functions.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(torch, "Event", Event)
    monkeypatch.setattr(Graph, "captured", 0)
    monkeypatch.setattr(speed, "WARM_UP_SECONDS_GPU", 0.0)
    monkeypatch.setattr(speed, "MIN_LATENCIES", 3)
    monkeypatch.setattr(peak, "FORM_SECONDS", 0.0)
    with ScriptedNvml().installed():
        yield


def measure(setting, watch, recipe=Recipe()):  # noqa: B008 - frozen
    with DEVICE:
        model = train(zoo.create_model("lenet5", 10, 32))
    found = speed.Speed()
    create_step = functools.partial(create_timed_step, recipe=recipe)

    def create(trained, compiled, images, autocast):
        return create_step(train(trained), compiled, images, autocast)

    watch.seen.clear()
    speed.measure_speed(model, setting, CONFIG, found, lambda phase: None, ("infer", "train"), create)
    return found


@pytest.mark.parametrize("options", [{"autocast": True}, {"dtype": "float16", "channels_last": False}], ids=str)
def test_measuring_waits_at_the_ends_of_blocks_alone(gpu, options):
    with fake_cuda() as watch:
        found = measure(Setting(DEVICE, 32, **options), watch)
    assert watch.seen.keys() == A_BLOCK.keys()
    for key in ("throughput_img_per_s", "train_throughput_img_per_s", "latency_p50_ms", "best_batch_size"):
        assert found.metrics[key] > 0
    assert {found.metrics[f"{mode}_peak_memory_bytes"] for mode in ("infer", "train")} == {4000}
    assert found.environment["energy"] == "NVML's counter of the whole GPU"
    assert "energy" in {flag.kind for flag in found.flags}  # for less than the five seconds that the counter needs
    assert not {flag.kind for flag in found.flags} & {"gpu_unknown", "gpu_load", "gpu_throttling"}


def test_every_repeat_captures_a_graph_of_its_own(gpu):
    with fake_cuda() as watch:
        found = measure(Setting(DEVICE, 32, cuda_graph=True), watch)
    assert Graph.captured == 4 * CONFIG.repeats
    assert found.environment["setting"]["cuda_graph"] is True
    assert watch.seen.keys() == A_BLOCK.keys()


def test_a_step_that_reads_a_value_is_found(gpu, monkeypatch):
    whole = torch.optim.SGD.step

    def reads(optimizer):
        float(optimizer.param_groups[0]["params"][0].detach().sum())
        whole(optimizer)

    monkeypatch.setattr(torch.optim.SGD, "step", reads)
    with fake_cuda() as watch:
        measure(Setting(DEVICE, 32), watch)
    assert watch.seen.keys() - A_BLOCK.keys() == {(READ, "bench/training/step.py:_update")}
