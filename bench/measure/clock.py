"""Clocks for steps that a device may still be working on when the call returns."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

Step = Callable[[], object]
"""One step of work; what it returns is ignored."""


class Clock(Protocol):
    """Something that can time a block of steps."""

    def time_block(self, step: Step, steps: int) -> float:
        """Do so many steps and return the seconds that they took, the device's work included."""


class HostClock:
    """The process's own clock; ``synchronize`` waits for the device and is called at both ends of a block."""

    def __init__(self, synchronize: Callable[[], None] = lambda: None) -> None:
        self._synchronize = synchronize

    def time_block(self, step: Step, steps: int) -> float:
        """Do so many steps and return the seconds that they took."""
        self._synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        self._synchronize()
        return time.perf_counter() - start


class CudaClock:
    """The GPU's clock: events in the stream at both ends of a block, so that waking the host is not counted."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def time_block(self, step: Step, steps: int) -> float:
        """Do so many steps and return the seconds that they took on the GPU, gaps between its kernels included."""
        with torch.cuda.device(self._device):
            start, end = torch.Event("cuda", enable_timing=True), torch.Event("cuda", enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            for _ in range(steps):
                step()
            end.record()
            torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1000


def create_clock(device: torch.device) -> Clock:
    """The clock that belongs to a device."""
    if device.type == "cuda":
        return CudaClock(device)
    return HostClock(lambda: synchronize(device))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
