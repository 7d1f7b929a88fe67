"""What disturbed a paired measurement: looked for around every four blocks, and over a pair as a whole."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bench.disturbance import FOREIGN_SHARE, STEAL_SHARE, CpuUse, available_seconds, foreign_seconds
from bench.flags import StoredKind

CPU_SHARE = 0.9
"""A block of one thread that had the processor for a smaller share of its time was held up by something."""
ABBA_FOREIGN_SHARE = 0.25
"""Four blocks are so short that the system's counters, which tick in hundredths of a second, show no smaller share."""
FREQUENCY_SHARE = 0.1
"""A clock that moves by more than this share of its highest value runs the two sides at different speeds."""


def preemption_flags(blocks: Sequence[tuple[float, float]]) -> set[str]:
    """``preempted`` where a block of one thread, ``(seconds, cpu_seconds)``, had to wait for the processor.

    The kernel's count of involuntary switches does not decide: one of a few microseconds does no harm.
    """
    return {"preempted"} if any(cpu_seconds < CPU_SHARE * seconds for seconds, cpu_seconds in blocks) else set()


class Notice(NamedTuple):
    """What disturbed a measurement: its kind, and how much of it in words."""

    kind: StoredKind
    message: str


@dataclass
class Interference:
    """Sums over a pair what others took of the machine, for what four blocks are too short to show.

    Times are seconds of processor time; ``frequencies_ghz`` are those of the clock so far, as far as they are known;
    ``launch_shares`` are, of either subject's blocks on a GPU, the shares of a step in which the host launched it.
    """

    available: float = 0.0
    foreign: float = 0.0
    steal: float = 0.0
    throttled: int = 0
    frequencies_ghz: tuple[float, ...] = ()
    launch_shares: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))

    @property
    def launch_share(self) -> float:
        """The median share of the subject that has the larger one; 0 off CUDA."""
        return max((statistics.median(each) for each in self.launch_shares if each), default=0.0)

    def add(self, before: CpuUse, after: CpuUse, own_seconds: float) -> set[str]:
        """Add four blocks, in which the workers used ``own_seconds``; the kinds of what disturbed these four."""
        four = Interference(
            available=available_seconds(before, after),
            foreign=foreign_seconds(before, after, own_seconds),
            steal=after.steal - before.steal,
            throttled=after.throttled - before.throttled,
            frequencies_ghz=tuple(each.frequency_ghz for each in (before, after) if each.frequency_ghz is not None),
        )
        self.available += four.available
        self.foreign += four.foreign
        self.steal += four.steal
        self.throttled += four.throttled
        self.frequencies_ghz += four.frequencies_ghz
        return {notice.kind for notice in four.notices(ABBA_FOREIGN_SHARE)}

    def notices(self, foreign_share: float = FOREIGN_SHARE) -> list[Notice]:
        """What disturbed all that was added; other processes from that share of the machine on."""
        found: list[Notice] = []
        if self.foreign > foreign_share * self.available:
            share = self.foreign / self.available
            found.append(Notice("load", f"other processes used {share:.0%} of the CPU time of our cores"))
        if self.steal > STEAL_SHARE * self.available:
            share = self.steal / self.available
            found.append(Notice("steal", f"the hypervisor gave {share:.0%} of the CPU time to others"))
        if self.throttled:
            found.append(Notice("throttled", f"the processor was throttled {self.throttled} times for heat"))
        low, high = min(self.frequencies_ghz, default=0.0), max(self.frequencies_ghz, default=0.0)
        if low < (1 - FREQUENCY_SHARE) * high:
            found.append(Notice("frequency", f"the processor's clock moved between {low:.2f} and {high:.2f} GHz"))
        return found
