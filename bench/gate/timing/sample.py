"""What was timed: blocks, four of them in turn, and a pair of subjects with all of theirs.

Baselines store these types as they are; the constraints of their fields hold for what is read from a file.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from bench.gate.timing.interference import Notice

MIN_ABBA = 2
"""The fewest sequences of four blocks that each build of a pair is timed for."""

Clock = Literal["seconds", "cpu_seconds"]
Seconds = Annotated[float, Field(gt=0)]
Steps = Annotated[int, Field(gt=0)]


class Block(NamedTuple):
    """Some steps of ``subject`` 0 (base) or 1 (head).

    Seconds by the wall clock (on CUDA: by the GPU's), and of process CPU time.
    """

    subject: Literal[0, 1]
    seconds: Seconds
    cpu_seconds: float
    involuntary_switches: int


@dataclass(frozen=True)
class Abba:
    """Four blocks in the order ABBA or BAAB; ``flags`` name what disturbed them."""

    blocks: tuple[Block, Block, Block, Block]
    flags: tuple[str, ...] = ()

    def log_ratio(self, clock: Clock = "seconds") -> float:
        """Of head's time to base's: the difference of the mean logarithms."""
        sums = [0.0, 0.0]
        for block in self.blocks:
            sums[block.subject] += math.log(max(getattr(block, clock), 1e-9)) / 2
        return sums[1] - sums[0]


@dataclass(frozen=True)
class PairSample:
    """All that was timed of one pair of freshly built subjects.

    ``steps`` are those of a block of each, ``step_seconds`` a step of each at the end of its warm-up, ``seconds`` what
    all of it took without starting processes; ``notices`` say what disturbed the pair as a whole. ``launch_share`` is
    that of a step's time on a GPU in which the host launched its kernels, of the subject with the larger one.
    """

    abba: Annotated[tuple[Abba, ...], Field(min_length=1, alias="quads")]  # the name in the first files
    steps: tuple[Steps, Steps]
    step_seconds: tuple[float, ...]
    seconds: float
    notices: tuple[Notice, ...] = ()
    launch_share: float = 0.0

    @property
    def disturbed(self) -> int:
        """How many of `abba` carry a flag."""
        return sum(bool(abba.flags) for abba in self.abba)

    def counted(self) -> tuple[Abba, ...]:
        """What the statistics use: the undisturbed ones where they are at least half, else all."""
        clean = tuple(abba for abba in self.abba if not abba.flags)
        return clean if 2 * len(clean) >= len(self.abba) and len(clean) >= MIN_ABBA else self.abba

    def log_ratios(self, clock: Clock = "seconds") -> list[float]:
        """Of the time of a step, one for each of `counted`."""
        more_steps = math.log(self.steps[1] / self.steps[0])
        return [abba.log_ratio(clock) - more_steps for abba in self.counted()]


def count_blocks(pairs: Sequence[PairSample]) -> tuple[int, int]:
    """All blocks, and those in an `Abba` that was disturbed."""
    return 4 * sum(len(pair.abba) for pair in pairs), 4 * sum(pair.disturbed for pair in pairs)


def step_ms(pairs: Sequence[PairSample]) -> tuple[float, float] | None:
    """The median milliseconds of a step of either subject, over everything timed; None without pairs."""
    if not pairs:
        return None
    base, head = (
        1000
        * statistics.median(
            statistics.mean(block.seconds for block in abba.blocks if block.subject == subject) / pair.steps[subject]
            for pair in pairs
            for abba in pair.abba
        )
        for subject in (0, 1)
    )
    return base, head


def launch_share(pairs: Sequence[PairSample]) -> float:
    """The median over pairs of `PairSample.launch_share`; 0 without pairs."""
    return statistics.median(pair.launch_share for pair in pairs) if pairs else 0.0
