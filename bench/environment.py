"""What machine, what versions, what disturbed the measurement; and the settings of the process that measures."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from bench.errors import DeviceError
from bench.records import Flag

FOREIGN_SHARE = 0.05
"""Other processes' share of the machine's CPU time from which on a measurement counts as disturbed."""
STEAL_SHARE = 0.02
PACKAGES = ("zoobench", "torch", "torchvision", "timm", "fvcore", "numpy", "pandas")


def describe_environment(device: str, threads: int) -> dict[str, Any]:
    """The machine, the library versions and the commit that a result depends on."""
    return {
        "machine": describe_machine(device),
        "threads": threads,
        "openmp_spin": os.environ.get("GOMP_SPINCOUNT") or os.environ.get("OMP_WAIT_POLICY") or "default",
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "git": describe_commit(Path(__file__).parent.parent, "zoo", "bench"),
    }


def describe_machine(device: str) -> dict[str, Any]:
    """Processor, cores, memory and, where the device is one, the GPU."""
    machine: dict[str, Any] = {
        "device": device,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": None,
    }
    if device.startswith("cuda"):
        import torch

        properties = torch.cuda.get_device_properties(device)
        machine |= {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return machine


def resolve_device(name: str) -> str:
    """``auto`` to the best device here; any other name to itself. Raises `DeviceError` if it is not here."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(name.partition(":")[2] or 0)
        if index >= count:
            found = f"torch {torch.__version__} sees {count} CUDA devices" if count else "torch sees no CUDA device"
            raise DeviceError(
                f"--device {name} is not possible: {found} on this machine. Use --device cpu or --device auto; "
                "`zoobench doctor` says what is missing."
            )
    if name == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("--device mps is not possible: torch sees no Apple GPU on this machine. Use --device cpu.")
    return name


def keep_allocator_pages() -> None:
    """Let glibc keep the memory that tensors give back, rather than return it and fault it in again.

    Worth 15 to 35% of training time on a CPU. Does nothing where the C library is not glibc; call it before torch is
    imported.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # from malloc.h
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 64 * 2**20)


@dataclass
class Disturbance:
    """Watches the machine while something is measured: ``with Disturbance("train", flags): …`` adds to ``flags``.

    What it looks for: CPU time of other processes, time stolen by the hypervisor, and thermal throttling.
    """

    phase: str
    flags: list[Flag] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._before = CpuUse.now()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        before, after = self._before, CpuUse.now()
        available = (after.seconds - before.seconds) * (os.cpu_count() or 1)
        if available < 0.1:  # the system's counters tick in hundredths of a second
            return
        foreign = ((after.busy - before.busy) - (after.own - before.own)) / available
        steal = (after.steal - before.steal) / available
        throttled = after.throttled - before.throttled
        if foreign > FOREIGN_SHARE:
            self._add("load", f"other processes used {foreign:.0%} of the machine's CPU time")
        if steal > STEAL_SHARE:
            self._add("steal", f"the hypervisor gave {steal:.0%} of the machine's CPU time to others")
        if throttled > 0:
            self._add("throttling", f"the processor was throttled {throttled} times for heat")

    def _add(self, kind: str, message: str) -> None:
        self.flags.append(Flag(kind=kind, phase=self.phase, message=message))


@dataclass(frozen=True)
class CpuUse:
    """Counters in seconds since boot: wall clock, all processes, this process, stolen; and throttling events.

    ``frequency_ghz`` is the fastest core's clock at this moment, None where the system does not tell it, as in most
    virtual machines.
    """

    seconds: float
    busy: float
    own: float
    steal: float
    throttled: int
    frequency_ghz: float | None = None

    @classmethod
    def now(cls) -> CpuUse:
        """The counters as they stand."""
        system, own = psutil.cpu_times(), psutil.Process().cpu_times()
        steal = getattr(system, "steal", 0.0)
        idle = system.idle + getattr(system, "iowait", 0.0)
        # guest time is counted in user time already
        counted = sum(system) - getattr(system, "guest", 0.0) - getattr(system, "guest_nice", 0.0)
        throttled = sum(read_cpu_counters("thermal_throttle/core_throttle_count"))
        khz = max(read_cpu_counters("cpufreq/scaling_cur_freq"), default=None)
        ghz = None if khz is None else khz / 1e6
        return cls(time.monotonic(), counted - idle - steal, own.user + own.system, steal, throttled, ghz)


def read_cpu_counters(name: str, root: Path = Path("/sys/devices/system/cpu")) -> list[int]:
    """A file of each core that has it and tells a number there; a core may be taken offline meanwhile."""
    numbers = []
    for file in root.glob(f"cpu[0-9]*/{name}"):
        with contextlib.suppress(OSError, ValueError):
            numbers.append(int(file.read_text()))
    return numbers


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe_commit(root: Path, *folders: str) -> dict[str, Any] | None:
    """Commit and cleanliness of the checkout at ``root``; None where that is none, as of an installed package.

    Only what lies in ``folders`` counts as changed.
    """
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain", "--", *folders))}
    except (OSError, subprocess.CalledProcessError):  # no git on this machine, or no commit yet
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
