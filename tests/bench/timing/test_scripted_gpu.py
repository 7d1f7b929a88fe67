"""What is timed on a GPU is right, and wrong at once where a synchronise or an event is taken away."""

import pytest
import torch
from torch import nn

from bench.config import MeasureConfig
from bench.gate.timing.worker import WARM_UP_SECONDS_GPU as GATE_WARM_UP_SECONDS_GPU
from bench.gate.timing.worker import Commands
from bench.timing.clock import CudaClock, create_latency_clock
from bench.timing.probes import measure_probes
from bench.timing.setting import Setting
from bench.timing.throughput import Meter, Throughput
from bench.timing.warm_up import WARM_UP_SECONDS_GPU

CUDA = torch.device("cuda", 1)
"""Not the current device, which is the first one."""
STEPS = 4
EVENTS = [("synchronize", 1), ("synchronize", 2), ("record", 1), ("record", 2), ("device", 1)]


def time_by_clock(step):
    return CudaClock(CUDA).time_block(step, STEPS)


def time_in_gate(step):
    worker = Commands()
    worker._device = CUDA
    return worker._time(step, STEPS)["seconds"]


def time_by_host(step):
    return create_latency_clock(CUDA).time_block(step, STEPS)


TIMED = [(time_by_clock, EVENTS), (time_in_gate, EVENTS), (time_by_host, EVENTS[:2])]


def outcome(measure, *args):
    """What is measured, or the error that it ends in."""
    try:
        return measure(*args)
    except RuntimeError as error:
        return str(error)


@pytest.mark.parametrize("measure", [measure for measure, _ in TIMED])
@pytest.mark.parametrize(
    ("kernel", "launch", "seconds"),
    [(0.003, 0.001, 0.013), (0.001, 0.003, 0.013)],  # bound by the kernels, and by launching them
)
def test_a_block_is_the_time_of_its_own_kernels(gpu, measure, kernel, launch, seconds):
    gpu.launch(0.5)  # what was enqueued before is none of the block's business
    assert measure(lambda: gpu.launch(kernel, launch)) == pytest.approx(seconds)


@pytest.mark.parametrize(("measure", "call"), [(measure, call) for measure, calls in TIMED for call in calls])
def test_every_synchronise_and_every_event_is_needed(gpu, measure, call):
    gpu.ignored = {call}
    gpu.launch(0.5)
    assert outcome(measure, lambda: gpu.launch(0.003, 0.001)) != pytest.approx(0.013, rel=0.01)
    assert gpu.calls.count(call[0]) >= call[1]


def test_latency_includes_waking_the_host_and_throughput_does_not(gpu):
    gpu.wake_seconds = 0.0005
    assert create_latency_clock(CUDA).time_block(lambda: gpu.launch(0.002), 1) == pytest.approx(0.0025)
    assert CudaClock(CUDA).time_block(lambda: gpu.launch(0.002), 1) == pytest.approx(0.002)


def test_a_step_that_is_bound_by_launching_is_known_by_it(gpu):
    fast, slow, full = CudaClock(CUDA), CudaClock(CUDA), CudaClock(CUDA)
    assert fast.launch_share == 0.0
    fast.time_block(lambda: gpu.launch(0.003, 0.001), STEPS)
    assert fast.launch_share == pytest.approx(0.001 / (0.013 / STEPS))
    slow.time_block(lambda: gpu.launch(0.001, 0.003), STEPS)
    assert slow.launch_share == pytest.approx(0.003 / (0.013 / STEPS))

    def waits_for_room():  # in a queue that holds two steps
        gpu.now = max(gpu.now, gpu.busy_until[1] - 2 * 0.003)
        gpu.launch(0.003, 0.0001)

    full.time_block(waits_for_room, 100)
    assert full.launch_share == pytest.approx(0.0001 / 0.003, rel=0.01)


def test_the_first_step_s_loading_of_libraries_is_no_launching(gpu):
    clock, launching = CudaClock(CUDA), iter([2.0])
    for _ in range(5):
        clock.time_block(lambda: gpu.launch(0.003, next(launching, 0.001)), 1)
    assert clock.launch_share == pytest.approx(0.25)  # of a millisecond to launch and three to compute


def test_throughput_on_a_gpu_is_exact_after_the_least_warm_up(gpu):
    ends = []

    def step():
        gpu.launch(0.002)
        ends.append(gpu.busy_until[1])

    config = MeasureConfig(seconds=5.0)
    meter = Meter(lambda: step, config, 5.0, CudaClock(CUDA), least_warm_up=WARM_UP_SECONDS_GPU)
    meter.repeat()
    warm = meter.warm_ups[0].steps
    assert meter.warm_ups[0].stable
    assert ends[warm - 1] - ends[0] >= WARM_UP_SECONDS_GPU
    meter.repeat()
    measured = Throughput.of(meter, 16, config.precision)
    assert measured.img_per_s == pytest.approx(16 / 0.002)
    assert measured.interval == pytest.approx((16 / 0.002, 16 / 0.002))


def test_the_gate_has_the_same_least_warm_up():
    assert WARM_UP_SECONDS_GPU == GATE_WARM_UP_SECONDS_GPU


class Launching(nn.Module):
    """A layer whose kernel takes so long on the scripted GPU."""

    def __init__(self, gpu, kernel, launch):
        super().__init__()
        self.launch = lambda: gpu.launch(kernel, launch)  # a function is not copied

    def forward(self, x):
        self.launch()
        return x


def layer_seconds(gpu):
    network = nn.Sequential(Launching(gpu, 0.004, 0.001), Launching(gpu, 0.001, 0.001), nn.Flatten())
    images = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    setting = Setting(CUDA, 1)
    found = measure_probes(network, images, torch.zeros(1).long(), torch.Tensor.float, setting, repeats=3)
    assert found["layer_names"].tolist() == ["0", "1", "2"]
    return found["layer_seconds"].tolist()


def test_layers_are_timed_by_events_and_no_wait_between_them(gpu):
    first, second, third = layer_seconds(gpu)
    assert first == pytest.approx(0.004, abs=0.0011)  # with the launch, where the queue had run empty
    assert (second, third) == pytest.approx((0.001, 0.0))
    assert gpu.calls.count("synchronize") == 1


@pytest.mark.parametrize("call", [("synchronize", 1), ("record", 7), ("record", 8), ("record", None), ("device", None)])
def test_layers_need_every_event_and_the_wait_at_the_end(gpu, call):
    right = layer_seconds(gpu)
    gpu.calls.clear()
    gpu.ignored = {call}
    wrong = outcome(layer_seconds, gpu)
    assert wrong != pytest.approx(right, rel=0.01)
