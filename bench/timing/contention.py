"""How much of its processor time a measurement lost to others, and whether that moves its number."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from bench.disturbance import CpuUse, foreign_seconds
from bench.flags import Flag, FlagKind
from bench.timing.repeats import half_width, spread

SPREAD = 0.1
"""Interquartile range over median above which `torch.utils.benchmark` warns."""
TRAINING_LIMIT = 0.1
"""Loss of processor time in training that is worth a flag. By reasoning: under a budget of seconds a tenth fewer steps
moves an accuracy by less than another seed does; ``train_seconds`` is not a measured speed and has no interval."""


class Contention:
    """Adds up what others took of a phase: ``with contention: …`` around it, or around each repeat of a measurement.

    ``waited`` is time in which this process's threads could have run and had no processor, by Linux's scheduler; where
    that is not known, the processor time of other processes beyond what was idle. ``stolen`` is the hypervisor's.
    Both are shares of the time of the threads that compute.
    """

    def __init__(self) -> None:
        self._available = 0.0
        self._waited = self._stolen = 0.0
        self.throttled = 0

    @property
    def waited(self) -> float:
        """Share of the time for which threads waited for a processor."""
        return self._waited / self._available if self._available else 0.0

    @property
    def stolen(self) -> float:
        """Share of the time that the hypervisor gave to others."""
        return self._stolen / self._available if self._available else 0.0

    def __enter__(self) -> Self:
        self._before, self._delay = CpuUse.now(), run_delay_seconds()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        after, delay = CpuUse.now(), run_delay_seconds()
        self.add(self._before, after, None if delay is None or self._delay is None else delay - self._delay)

    def add(self, before: CpuUse, after: CpuUse, run_delay: float | None) -> None:
        """Add what the counters say of one span; ``run_delay`` is None where the scheduler's is not known."""
        threads = min(torch.get_num_threads(), after.quota)
        seconds = after.seconds - before.seconds
        self._available += threads * seconds
        if run_delay is None:
            run_delay = foreign_seconds(before, after) - (after.quota - threads) * seconds
        self._waited += max(0.0, run_delay)
        self._stolen += after.steal - before.steal
        self.throttled += after.throttled - before.throttled

    def flags(self, phase: str, limit: float, reason: str) -> list[Flag]:
        """Losses above ``limit``, a share of the time; ``reason`` says in the message where the limit comes from."""
        found: list[tuple[FlagKind, str]] = []
        if self.waited > limit:
            message = f"threads waited for a processor for {self.waited:.1%} of the time: other programs were running"
            found.append(("load", f"{message} ({reason})"))
        if self.stolen > limit:
            message = f"the hypervisor gave {self.stolen:.1%} of the processor time to others"
            found.append(("steal", f"{message} ({reason})"))
        if self.throttled > 0:
            found.append(("throttling", f"the processor was throttled {self.throttled} times because of heat"))
        return [Flag(kind=kind, phase=phase, message=message) for kind, message in found]


def find_disturbances(
    contention: Contention, phase: str, interval: tuple[float, float], precision: float, repeats: list[list[float]]
) -> list[Flag]:
    """What moves a number by more than its 95% interval, or than the precision asked for where that is wider.

    A share of lost processor time moves a speed by about as much; less than the interval's half-width is covered by
    it. Blocks that spread widely are named only where the number is not as precise as asked.
    """
    half = half_width(*interval)
    flags = contention.flags(phase, max(half, precision), f"the interval is ±{half:.1%}")
    if half > precision and (share := spread(repeats)) > SPREAD:
        message = (
            f"the interquartile range of the timed blocks is {share:.0%} of their median, above {SPREAD:.0%}; the "
            f"interval is ±{half:.1%}: measure again on a quieter machine"
        )
        flags.append(Flag(kind="spread", phase=phase, message=message))
    return flags


def run_delay_seconds(tasks: Path = Path("/proc/self/task")) -> float | None:
    """Seconds that this process's threads have waited for a processor so far; None where the system does not say."""
    delays = []
    for file in tasks.glob("*/schedstat"):
        try:
            delays.append(int(file.read_text().split()[1]))
        except (OSError, IndexError, ValueError):  # a thread may end meanwhile
            continue
    return sum(delays) / 1e9 if delays else None
