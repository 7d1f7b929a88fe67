"""A GPU that is a script: a queue whose time advances by what is put into it, behind torch's functions for CUDA.

The host's clock stands still but for what a step says that launching takes, so that a measured time is exact. An event
can only be read once the host has waited for it, and is recorded in the queue of the device that is current.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch


class ScriptedGpu:
    """Two devices, of which the first is current.

    ``now`` is the host's time, ``busy_until`` that of each device's queue; ``wake_seconds`` is what the host needs to
    notice that a device is done. ``ignored`` holds calls that have no effect: ``("synchronize", 1)`` is the first one,
    ``("device", None)`` is every one.
    """

    def __init__(self) -> None:
        self.now = 100.0
        self.busy_until = {0: 0.0, 1: 0.0}
        self.current = 0
        self.wake_seconds = 0.0
        self.ignored: set[tuple[str, int | None]] = set()
        self.calls: list[str] = []
        self.capturing: ScriptedGraph | None = None
        self.on_side_stream = False

    def launch(self, kernel_seconds: float, launch_seconds: float = 0.0, device: int = 1) -> None:
        """Enqueue a kernel, or put it into the graph that is being captured."""
        self.now += launch_seconds
        self.calls.append("kernel captured" if self.capturing else "kernel aside" if self.on_side_stream else "kernel")
        if self.capturing is not None:
            self.capturing.kernels.append((kernel_seconds, device))
            return
        self.busy_until[device] = max(self.now, self.busy_until[device]) + kernel_seconds

    def synchronize(self, device: torch.device | int | None = None) -> None:
        if self.capturing is not None:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        if self._counts("synchronize"):
            index = self.current if device is None else torch.device(device).index
            self.now = max(self.now, self.busy_until[index]) + self.wake_seconds

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before = self.current
        if self._counts("device"):
            self.current = device.index
        yield
        self.current = before

    def event(self, *args: Any, **options: Any) -> ScriptedEvent:
        assert options["enable_timing"] is True
        return ScriptedEvent(self)

    def record(self, event: ScriptedEvent) -> None:
        if self._counts("record"):
            event.happens = max(self.now, self.busy_until[self.current])

    @contextlib.contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        self.on_side_stream = True
        yield
        self.on_side_stream = False

    @contextlib.contextmanager
    def graph(self, graph: ScriptedGraph) -> Iterator[None]:
        """As CUDA, it says only that the capture failed, whatever the reason."""
        self.capturing = graph
        try:
            yield
        except Exception as error:
            raise torch.AcceleratorError("CUDA error: operation failed due to a previous error in capture") from error
        finally:
            self.capturing = None

    def _counts(self, call: str) -> bool:
        self.calls.append(call)
        return not self.ignored & {(call, self.calls.count(call)), (call, None)}


class ScriptedEvent:
    def __init__(self, gpu: ScriptedGpu) -> None:
        self.gpu = gpu
        self.happens: float | None = None

    def record(self) -> None:
        self.gpu.record(self)

    def elapsed_time(self, end: ScriptedEvent) -> float:
        """In milliseconds; as in CUDA, an error for an event that was not recorded, or not waited for by the host."""
        for event in (self, end):
            if event.happens is None or event.happens > self.gpu.now:
                raise RuntimeError("device not ready")
        assert self.happens is not None
        assert end.happens is not None
        return 1000 * (end.happens - self.happens)


class ScriptedStream:
    def __init__(self, gpu: ScriptedGpu) -> None:
        self.gpu = gpu

    def wait_stream(self, other: ScriptedStream) -> None:
        self.gpu.calls.append("streams in order")


class ScriptedGraph:
    """Replaying all of its kernels takes the host ten microseconds."""

    LAUNCH_SECONDS = 1e-5

    def __init__(self, gpu: ScriptedGpu) -> None:
        self.gpu = gpu
        self.kernels: list[tuple[float, int]] = []

    def replay(self) -> None:
        self.gpu.now += self.LAUNCH_SECONDS
        for seconds, device in self.kernels:
            self.gpu.launch(seconds, device=device)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ScriptedGpu:
    """The scripted GPU in place of CUDA, and the host's clock with it."""
    scripted = ScriptedGpu()
    monkeypatch.setattr(torch.cuda, "synchronize", scripted.synchronize)
    monkeypatch.setattr(torch.cuda, "device", scripted.device)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: ScriptedStream(scripted))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: ScriptedStream(scripted))
    monkeypatch.setattr(torch.cuda, "stream", scripted.stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: ScriptedGraph(scripted))
    monkeypatch.setattr(torch.cuda, "graph", scripted.graph)
    monkeypatch.setattr(torch.cuda, "Event", scripted.event)
    monkeypatch.setattr(torch, "Event", scripted.event)
    monkeypatch.setattr(time, "perf_counter", lambda: scripted.now)
    return scripted
