import time

import pytest
import torch

from bench.timing.clock import CudaClock, HostClock, create_clock, create_latency_clock


def test_a_block_is_so_many_steps_between_two_waits():
    log = []
    seconds = HostClock(lambda: log.append("wait")).time_block(lambda: log.append("step"), 3)
    assert log == ["wait", "step", "step", "step", "wait"]
    assert seconds > 0


def test_a_device_has_its_clock():
    assert isinstance(create_clock(torch.device("cpu")), HostClock)
    assert isinstance(create_clock(torch.device("cuda")), CudaClock)
    assert isinstance(create_latency_clock(torch.device("cuda")), HostClock)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_the_gpu_s_clock_agrees_with_the_host_s_on_long_blocks():
    a = torch.randn(4096, 4096, device="cuda")
    clock = create_clock(torch.device("cuda"))
    clock.time_block(lambda: a @ a, 10)
    begun = time.perf_counter()
    inside = clock.time_block(lambda: a @ a, 50)
    assert 0.5 * (time.perf_counter() - begun) < inside <= time.perf_counter() - begun
