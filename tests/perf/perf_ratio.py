"""The ratio of two speeds, measured in turn."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from bench.timing.repeats import median_interval


@dataclass(frozen=True)
class Ratio:
    """How many times as fast the first is as the second: the median over pairs and its 95% interval."""

    median: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}] over {self.pairs} pairs"


def paired_ratio(first: Callable[[], float], second: Callable[[], float], pairs: int) -> Ratio:
    """Run the two in turn (ABBA, so that a drift of the machine hits both); each returns its images per second."""
    logs = []
    for index in range(pairs):
        if index % 2 == 0:
            a, b = first(), second()
        else:
            b, a = second(), first()
        logs.append(math.log(a / b))
    low, high = median_interval(logs)
    return Ratio(math.exp(statistics.median(logs)), math.exp(low), math.exp(high), pairs)
