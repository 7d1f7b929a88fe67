"""The time of a block of steps, as the gate's workers take it.

It imports nothing of ours: `bench.gate.timing.worker` loads it by its path, in whatever environment.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any

if sys.platform != "win32":
    import resource


def time_block(step: Callable[[], None], steps: int, device: Any) -> dict[str, Any]:
    """Seconds of ``steps`` steps on a `torch.device`, of CPU time, and how often the processor was taken away.

    On CUDA the seconds are the GPU's, gaps between kernels included, and ``launch_seconds`` are those in which the host
    launched the first step: later ones may wait for room in a full queue.
    """
    import torch

    on_cuda = device.type == "cuda"
    # Events belong to the current device, which is the first one unless somebody says so.
    with torch.cuda.device(device) if on_cuda else contextlib.nullcontext():
        if on_cuda:
            began = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            ended = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
        switches = _involuntary_switches()
        cpu, wall = time.process_time(), time.perf_counter()
        if on_cuda:
            began.record()
        step()
        launched = time.perf_counter()
        for _ in range(steps - 1):
            step()
        if on_cuda:
            ended.record()
            torch.cuda.synchronize()
        elif device.type == "mps":
            torch.mps.synchronize()
        seconds, cpu = time.perf_counter() - wall, time.process_time() - cpu
        switches = _involuntary_switches() - switches
    block = {"seconds": seconds, "cpu_seconds": cpu, "involuntary_switches": switches}
    if on_cuda:
        block |= {"seconds": began.elapsed_time(ended) / 1000, "launch_seconds": launched - wall}
    return block


def _involuntary_switches() -> int:
    """How often the kernel has taken the processor from this process; Windows does not count that."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if sys.platform != "win32" else 0
