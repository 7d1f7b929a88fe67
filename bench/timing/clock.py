"""Clocks for steps that a device may still be working on when the call returns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from bench.device import synchronize

Step = Callable[[], object]
"""One step of work; what it returns is ignored."""


class Clock(Protocol):
    """Something that can time a block of steps."""

    def time_block(self, step: Step, steps: int) -> float:
        """Call ``step`` ``steps`` times and return the seconds that took, the device's work included."""


class HostClock:
    """The host's clock; ``synchronize`` waits for the device and is called at both ends of a block."""

    def __init__(self, synchronize: Callable[[], None] = lambda: None) -> None:
        self._synchronize = synchronize

    def time_block(self, step: Step, steps: int) -> float:
        """Call ``step`` ``steps`` times and return the seconds until the device had done them."""
        self._synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        self._synchronize()
        return time.perf_counter() - start


class CudaClock:
    """The GPU's clock: events in the stream at both ends of a block, so that waking the host up is not counted."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._launch_shares: list[float] = []

    @property
    def launch_share(self) -> float:
        """The host's time for launching a step's kernels, as a share of the step's on the GPU; 0 before any block.

        Of each block's first step alone: later ones may wait for room in a full queue. The median over blocks, since in
        the first of all the host also loads libraries and chooses kernels.
        """
        return statistics.median(self._launch_shares) if self._launch_shares else 0.0

    def time_block(self, step: Step, steps: int) -> float:
        """Call ``step`` ``steps`` times and return their seconds on the GPU, gaps between kernels included."""
        with torch.cuda.device(self._device):
            start, end = torch.Event("cuda", enable_timing=True), torch.Event("cuda", enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            began = time.perf_counter()
            step()
            launching = time.perf_counter() - began
            for _ in range(steps - 1):
                step()
            end.record()
            torch.cuda.synchronize()
        seconds = float(start.elapsed_time(end)) / 1000
        self._launch_shares.append(launching * steps / seconds if seconds else 0.0)
        return seconds


def create_clock(device: torch.device) -> Clock:
    """The clock for a device's throughput."""
    return CudaClock(device) if device.type == "cuda" else create_latency_clock(device)


def create_latency_clock(device: torch.device) -> HostClock:
    """The clock for latency, which includes the time until the host knows that the result is there."""
    return HostClock(lambda: synchronize(device))


class Marks(Protocol):
    """Points in time between which work lies, for many short spans inside one pass."""

    def mark(self) -> Any:
        """Now, or when the device has come this far."""

    def seconds(self, start: Any, end: Any) -> float:
        """Between two marks; only after the device has been waited for."""


class HostMarks:
    """The host's clock, the device waited for at each mark."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> float:
        """Now, when the device has done all that it was given."""
        synchronize(self._device)
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        """Between two marks."""
        return end - start


class CudaMarks:
    """Events in the stream: the host does not wait, which between layers would take longer than many a layer."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> torch.Event:
        """An event after all that the GPU was given."""
        with torch.cuda.device(self._device):
            event = torch.Event("cuda", enable_timing=True)
            event.record()
        return event

    def seconds(self, start: torch.Event, end: torch.Event) -> float:
        """Between two events that have happened."""
        return float(start.elapsed_time(end)) / 1000


def create_marks(device: torch.device) -> Marks:
    """The marks that belong to a device."""
    return CudaMarks(device) if device.type == "cuda" else HostMarks(device)
