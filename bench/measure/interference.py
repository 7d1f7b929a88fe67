"""What disturbed the blocks of a paired measurement: looked for around every quad, and over a pair as a whole."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from bench.environment import FOREIGN_SHARE, STEAL_SHARE, CpuUse

CPU_SHARE = 0.9
"""A block of one thread that had the processor for less of its time was held up by something."""
QUAD_FOREIGN_SHARE = 0.25
"""In so short a time the system's counters, which tick in hundredths of a second, tell no smaller share."""
FREQUENCY_SHARE = 0.1
"""A clock that moves by more than this share of its highest value runs the two sides at different speeds."""


def preemption_flags(blocks: Sequence[tuple[float, float]]) -> set[str]:
    """``preempted`` where a block of one thread, ``(seconds, cpu_seconds)``, had to wait for the processor.

    The kernel's count of involuntary switches is kept with each block, but does not decide: one of a few microseconds
    does no harm.
    """
    waited = any(cpu_seconds < CPU_SHARE * seconds for seconds, cpu_seconds in blocks)
    return {"preempted"} if waited else set()


def momentary_flags(before: CpuUse, after: CpuUse, own_seconds: float) -> set[str]:
    """What the system's counters say of a quad in which the workers used ``own_seconds`` of processor time."""
    available = (after.seconds - before.seconds) * (os.cpu_count() or 1)
    flags = set()
    if _foreign(before, after, own_seconds) > QUAD_FOREIGN_SHARE * available:
        flags.add("load")
    if after.steal - before.steal > STEAL_SHARE * available:
        flags.add("steal")
    if after.throttled > before.throttled:
        flags.add("throttled")
    if _moved(_frequencies(before, after)):
        flags.add("frequency")
    return flags


@dataclass(frozen=True)
class Notice:
    """What disturbed a pair as a whole: its kind, and how much of it in words."""

    kind: str
    message: str


@dataclass
class Interference:
    """Sums over the quads of a pair what others took of the machine, for what a single quad is too short to tell.

    ``frequencies_ghz`` are the lowest and the highest of the clock so far, empty where they are not told.
    """

    available: float = 0.0
    foreign: float = 0.0
    steal: float = 0.0
    throttled: int = 0
    frequencies_ghz: tuple[float, ...] = ()

    def add(self, before: CpuUse, after: CpuUse, own_seconds: float) -> None:
        """Count a quad in."""
        self.available += (after.seconds - before.seconds) * (os.cpu_count() or 1)
        self.foreign += _foreign(before, after, own_seconds)
        self.steal += after.steal - before.steal
        self.throttled += after.throttled - before.throttled
        seen = (*self.frequencies_ghz, *_frequencies(before, after))
        self.frequencies_ghz = (min(seen), max(seen)) if seen else ()

    def notices(self) -> list[Notice]:
        """What disturbed the pair as a whole."""
        told = []
        if self.foreign > FOREIGN_SHARE * self.available:
            share = self.foreign / self.available
            told.append(Notice("load", f"other processes used {share:.0%} of the machine's CPU time"))
        if self.steal > STEAL_SHARE * self.available:
            share = self.steal / self.available
            told.append(Notice("steal", f"the hypervisor gave {share:.0%} of the CPU time to others"))
        if self.throttled:
            told.append(Notice("throttled", f"the processor was throttled {self.throttled} times for heat"))
        if _moved(self.frequencies_ghz):
            low, high = self.frequencies_ghz
            told.append(Notice("frequency", f"the processor's clock moved between {low:.2f} and {high:.2f} GHz"))
        return told


def gpu_notices(own_processes: int) -> list[Notice]:
    """Foreign processes on NVIDIA GPUs, and a GPU held back by heat, as ``nvidia-smi`` tells them.

    ``own_processes`` are at most as many of those as it lists: their ids differ inside containers, their number not.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return [Notice("gpu unknown", "without nvidia-smi other processes on the GPU cannot be told")]
    told = []
    listed = _query(program, "--query-compute-apps=pid")
    if len(listed) > own_processes:
        told.append(Notice("gpu load", f"{len(listed) - own_processes} other processes used a GPU"))
    slowdowns = "clocks_throttle_reasons.hw_thermal_slowdown,clocks_throttle_reasons.sw_thermal_slowdown"
    if any("Active" in line.replace("Not Active", "") for line in _query(program, f"--query-gpu={slowdowns}")):
        told.append(Notice("gpu throttled", "a GPU was throttled for heat"))
    return told


def _query(program: str, query: str) -> list[str]:
    told = subprocess.run([program, query, "--format=csv,noheader"], capture_output=True, text=True, timeout=20)
    return [line for line in told.stdout.splitlines() if line.strip()] if told.returncode == 0 else []


def _frequencies(*moments: CpuUse) -> tuple[float, ...]:
    """In GHz, as far as they are told."""
    return tuple(each.frequency_ghz for each in moments if each.frequency_ghz is not None)


def _moved(frequencies_ghz: Sequence[float]) -> bool:
    return bool(frequencies_ghz) and min(frequencies_ghz) < (1 - FREQUENCY_SHARE) * max(frequencies_ghz)


def _foreign(before: CpuUse, after: CpuUse, own_seconds: float) -> float:
    """Seconds of processor time that neither we nor the workers used."""
    return max(0.0, (after.busy - before.busy) - (after.own - before.own) - own_seconds)
