"""The gate's worker on a GPU that is not there."""

import contextlib
import gc
import time
from types import SimpleNamespace

import pytest
import torch
from fake_cuda import WAIT, fake_cuda

from bench.device import synchronize
from bench.gate.timing import worker as module
from bench.gate.timing.subject import Setting, Subject
from bench.gate.timing.worker import Commands


class Event:
    """Of the host's clock."""

    def __init__(self, enable_timing=False):
        assert enable_timing

    def record(self):
        self.seconds = time.perf_counter()

    def elapsed_time(self, end):
        return 1000 * (end.seconds - self.seconds)


@pytest.fixture
def worker(monkeypatch):
    """A worker whose process is ours: what it sets is put back."""
    before, flushing = torch.get_num_threads(), float(torch.tensor(1e-40) * 1.0) == 0.0
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    properties = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30, uuid="aaaa")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    for name in ("WARM_UP_SECONDS_GPU", "MAX_WARM_UP_SECONDS"):
        monkeypatch.setattr(module, name, 0.0)
    yield Commands()
    torch.set_num_threads(before)
    torch.set_flush_denormal(flushing)
    gc.enable()


def build(worker, **options):
    setting = Setting(device="cuda", input_size=32, **options)
    subject = Subject("lenet5").to_worker(setting, batch_size=2)
    worker.build([subject], [0], [100])
    return subject


@pytest.mark.parametrize("options", [{"mode": "train", "dtype": "bfloat16"}, {"channels_last": True}], ids=str)
def test_a_block_waits_at_its_ends_alone_and_says_how_long_launching_took(worker, options):
    with fake_cuda() as watch:
        described = worker.start("cuda", 1)
        build(worker, **options)
        watch.seen.clear()
        block = worker.run(0, 3)
    assert dict(watch.seen) == {(WAIT, "bench/gate/timing/block.py:time_block"): 2}
    assert block["seconds"] > 0
    assert 0 < block["launch_seconds"] <= block["seconds"]
    assert described["precision"]["cudnn_benchmark"] is True  # as a run measures
    assert described["precision"]["deterministic"] is False
    assert described["machine"]["gpu"] == "NVIDIA H100"


def test_a_step_that_waits_is_found(worker, monkeypatch):
    first = module._first_tensor

    def waits(output):
        synchronize(worker._device)
        return first(output)

    monkeypatch.setattr(module, "_first_tensor", waits)
    with fake_cuda() as watch:
        worker.start("cuda", 1)
        build(worker)
        watch.seen.clear()
        worker.run(0, 3)
    assert watch.seen[WAIT, "bench/device.py:synchronize"] == 3
