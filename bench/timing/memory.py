"""The most memory that a step's tensors hold: weights, gradients, optimizer state, images and activations."""

from __future__ import annotations

import os

import torch
from torch.profiler import ProfilerActivity, profile

from bench.device import synchronize
from bench.timing.throughput import CreateStep

STEPS = 2
"""An optimizer's state is made in the first step: only in the second is it there beside the activations."""


def measure_peak_bytes(create_step: CreateStep, device: torch.device) -> int | None:
    """Create a step, do it twice, and return the peak of torch's allocator less what it held before.

    So other tensors, such as a data set on the GPU, do not count. On CUDA cuDNN's workspaces are included; on a CPU
    libraries allocate theirs by themselves, and they are not. None on devices whose allocator keeps no peak.
    """
    if device.type == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        _do(create_step, device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    if device.type == "cpu":
        return _profiled_peak_bytes(create_step, device)
    return None


def _profiled_peak_bytes(create_step: CreateStep, device: torch.device) -> int:
    """By the profiler's log of the CPU's allocations, which starts at zero."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints when it starts and stops
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        _do(create_step, device)
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def _do(create_step: CreateStep, device: torch.device) -> None:
    step = create_step()
    for _ in range(STEPS):
        step()
    synchronize(device)
