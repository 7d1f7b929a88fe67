"""Counters of what disturbs a measurement: other processes, the hypervisor, heat."""

from __future__ import annotations

import contextlib
import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

FOREIGN_SHARE = 0.05
"""Other processes' share of the CPU time that we may use, from which on a measurement counts as disturbed."""


STEAL_SHARE = 0.02


@dataclass(frozen=True)
class CpuUse:
    """Counters in seconds since boot: wall clock, all processes, this process, stolen; and throttling events.

    ``busy`` and ``steal`` are sums over the ``cores`` that this process may run on; it may use ``quota`` of them at a
    time, which is fewer where a container is limited.

    ``frequency_ghz`` is the fastest core's clock at this moment, None where the system does not tell it, as in most
    virtual machines.
    """

    seconds: float
    busy: float
    own: float
    steal: float
    throttled: int
    frequency_ghz: float | None = None
    cores: int = 1
    quota: float = 1.0

    @classmethod
    def now(cls) -> CpuUse:
        """The counters as they stand."""
        cores = usable_cores()
        each = psutil.cpu_times(percpu=True)
        positions = _positions(cores, len(each))
        own = psutil.Process().cpu_times()
        busy = sum(_busy(each[k]) for k in positions)
        steal = sum(getattr(each[k], "steal", 0.0) for k in positions)
        quota = min(cgroup_quota(), float(len(cores)))
        throttled = sum(read_cpu_counters("thermal_throttle/core_throttle_count"))
        khz = max(read_cpu_counters("cpufreq/scaling_cur_freq"), default=None)
        ghz = None if khz is None else khz / 1e6
        return cls(time.monotonic(), busy, own.user + own.system, steal, throttled, ghz, len(cores), quota)


def available_seconds(before: CpuUse, after: CpuUse) -> float:
    """The processor time that this process could have used between two moments."""
    return (after.seconds - before.seconds) * min(before.quota, after.quota)


def foreign_seconds(before: CpuUse, after: CpuUse, own_seconds: float = 0.0) -> float:
    """The processor time that others took of it: neither this process nor its workers, which used ``own_seconds``.

    Where a container may use fewer cores than it may run on, others have the rest of them at no cost to us.
    """
    foreign = (after.busy - before.busy) - (after.own - before.own) - own_seconds
    spare = (after.seconds - before.seconds) * max(after.cores - after.quota, 0.0)
    return max(0.0, foreign - spare)


def usable_cores() -> tuple[int, ...]:
    """The numbers of the cores that this process may run on: all, unless it is pinned."""
    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):  # not on macOS
        return tuple(process.cpu_affinity())
    return tuple(range(psutil.cpu_count() or 1))


def count_oom_kills() -> int | None:
    """Processes that the kernel has ended for want of memory since boot; None where the system does not tell."""
    counters = dict(line.split() for line in _lines(Path("/proc/vmstat")))
    return int(counters["oom_kill"]) if "oom_kill" in counters else None


def foreign_share_of_cores(seconds: float) -> float:
    """Watch our cores for so long, while this process does nothing: the share of their time that others use."""
    each = psutil.cpu_percent(interval=seconds, percpu=True)
    positions = _positions(usable_cores(), len(each))
    return sum(each[k] for k in positions) / len(positions) / 100


@functools.cache
def cgroup_quota(root: Path = Path("/")) -> float:
    """How many cores' time this process's control group may use, under version 1 or 2; infinite without a limit."""
    limits = [float("inf")]
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = Path(path.lstrip("/"))
        for folder in (base / group, *(base / parent for parent in group.parents)):
            pair = " ".join(_lines(folder / "cpu.max")).split()
            if controllers:
                pair = [*_lines(folder / "cpu.cfs_quota_us"), *_lines(folder / "cpu.cfs_period_us")]
            if len(pair) == 2 and pair[0] not in ("max", "-1"):
                limits.append(int(pair[0]) / int(pair[1]))
    return min(limits)


def _lines(file: Path) -> list[str]:
    """Of a file of the kernel; a version of it, or a system, may lack it."""
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


def _positions(cores: tuple[int, ...], listed: int) -> list[int]:
    """Where the cores are among the system's counters, which leave out those that are offline."""
    online = _online() or range(listed)
    return [k for k, core in enumerate(online) if core in cores and k < listed]


def _online() -> list[int]:
    """``0-3,8`` to 0, 1, 2, 3, 8; empty where the system does not say."""
    found: list[int] = []
    for part in ",".join(_lines(Path("/sys/devices/system/cpu/online"))).split(","):
        first, _, last = part.partition("-")
        if first:
            found += range(int(first), int(last or first) + 1)
    return found


def _busy(times: Any) -> float:
    """Seconds that a core has computed; guest time is counted in user time already."""
    idle = times.idle + getattr(times, "iowait", 0.0) + getattr(times, "steal", 0.0)
    return float(sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0) - idle)


def read_cpu_counters(name: str, root: Path = Path("/sys/devices/system/cpu")) -> list[int]:
    """A file of each core that has it and tells a number there; a core may be taken offline meanwhile."""
    numbers = []
    for file in root.glob(f"cpu[0-9]*/{name}"):
        with contextlib.suppress(OSError, ValueError):
            numbers.append(int(file.read_text()))
    return numbers
