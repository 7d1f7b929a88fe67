"""The interval of a quantity that was measured in several repeats, each of several timed blocks.

Blocks that follow one another are not independent: an interval from all of them together is far too narrow. Repeats
that lie apart, with other work in between and memory of their own, are close to it. So the interval is Student's t over
the repeats (Georges et al. 2007, "Statistically rigorous Java performance evaluation", section 3.2; Kalibera and Jones
2013, "Rigorous benchmarking in reasonable time"), of the logarithms of their medians.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

MIN_REPEATS = 3
"""The t quantile at two repeats is 12.7: an interval that says nothing."""


def repeats_interval(repeats: Sequence[Sequence[float]], confidence: float = 0.95) -> tuple[float, float]:
    """The ends of the interval for the median time of a block.

    ``repeats`` hold positive block times, in any unit. The interval contains the median of the repeats' medians.
    Raises `ValueError` for fewer than two repeats, which have no interval.
    """
    if len(repeats) < 2:
        raise ValueError(f"an interval needs at least two repeats; given: {len(repeats)}")
    medians = [math.log(statistics.median(blocks)) for blocks in repeats]
    centre = statistics.mean(medians)
    quantile = float(stdtrit(len(medians) - 1, (1 + confidence) / 2))
    half = quantile * statistics.stdev(medians) / math.sqrt(len(medians))
    middle = median_of_repeats(repeats)
    return min(math.exp(centre - half), middle), max(math.exp(centre + half), middle)


def median_of_repeats(repeats: Sequence[Sequence[float]]) -> float:
    """The median of the repeats' medians: a repeat counts once, however many blocks it has."""
    return statistics.median(statistics.median(blocks) for blocks in repeats)


def half_width(low: float, high: float) -> float:
    """Half an interval as a share of its centre, on the logarithmic scale: 0.02 for ±2%."""
    return math.log(high / low) / 2


def spread(repeats: Sequence[Sequence[float]]) -> float:
    """The interquartile range of all blocks as a share of their median, as `torch.utils.benchmark` reports it."""
    low, middle, high = np.percentile([block for blocks in repeats for block in blocks], (25, 50, 75))
    return float((high - low) / middle)


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """An interval for the median of independent values, from order statistics (Conover 1999, section 3.2).

    Its coverage is at least ``confidence`` from six values on; with fewer it is their range.
    """
    ordered = sorted(values)
    count = len(ordered)
    # The largest rank k such that P(Binomial(count, 1/2) < k) is at most the error allowed on one side.
    rank, below = 0, 0.0
    while rank < count // 2:
        below += math.comb(count, rank) / 2**count
        if below > (1 - confidence) / 2:
            break
        rank += 1
    rank = max(rank, 1)
    return ordered[rank - 1], ordered[count - rank]
