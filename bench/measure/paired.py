"""Statistics of paired timing: from the log-ratios of blocks measured in turn to an interval, and Holm's correction.

The unit is a quad: four blocks in the order ABBA or BAAB, whose log-ratio of head's time over base's is free of any
drift that is linear over the quad. Quads of one pair of processes share that pair's luck (memory layout, placement),
so the pairs, not the quads, are the independent observations, and they are few. Pure numpy and scipy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

TRIMMED_SHARE = 0.2
"""Of a pair's quads this share is left out at either end before the mean: blocks hit by something else are outliers."""
REPLICATES = 400
DEGREES_CAP = 1.25
POWER = 0.8
"""The smallest change that a measurement could have seen is the one it would have found with this probability."""


@dataclass(frozen=True)
class Estimate:
    """The log-ratio of head's time over base's, its standard error and the degrees of freedom of that error.

    ``standard_error`` is infinite with fewer than two pairs: one pair says nothing on how pairs differ.
    """

    log_ratio: float
    standard_error: float
    degrees: float
    pairs: int
    quads: int

    def interval(self, alpha: float) -> tuple[float, float]:
        """The two-sided interval of the log-ratio at confidence ``1 - alpha``."""
        margin = self._quantile(1 - alpha / 2) * self.standard_error
        return self.log_ratio - margin, self.log_ratio + margin

    @property
    def p_value(self) -> float:
        """Two-sided, for the hypothesis that both sides take the same time."""
        if math.isinf(self.standard_error):
            return 1.0
        if self.standard_error == 0:
            return 1.0 if self.log_ratio == 0 else 0.0
        return float(2 * stats.t.sf(abs(self.log_ratio) / self.standard_error, self.degrees))

    def smallest_change(self, alpha: float) -> float:
        """The log-ratio that a test at ``alpha`` would have found with probability `POWER`."""
        return (self._quantile(1 - alpha / 2) + self._quantile(POWER)) * self.standard_error

    def _quantile(self, probability: float) -> float:
        # An infinite error has no degrees of freedom; any quantile times it is infinite.
        return float(stats.t.ppf(probability, self.degrees)) if self.degrees > 0 else 1.0


def estimate_log_ratio(pairs: Sequence[Sequence[float]], seed: int = 0) -> Estimate:
    """The location of paired log-ratios, by a hierarchical bootstrap over pairs and their quads.

    Inside a pair the location is a trimmed mean; over pairs it is the mean. The variance is that of a bootstrap which
    draws pairs and, inside each, quads. Drawing P means with replacement has a variance in closed form,
    ``(P-1)/P · s²/P``, so only the quads are drawn here; the factor ``(P-1)/P`` is taken out, since with few pairs it
    makes percentile intervals too narrow (Davison and Hinkley 1997, section 3.8; Hesterberg 2015, section 4.3). The
    second part of the variance, of quads inside a pair, is in the first one's expectation already, so the sum is
    conservative; because it rests on many quads, Satterthwaite's degrees of freedom for the sum are more than P - 1
    where pairs differ no more than their quads explain. With few pairs that formula promises too much, so the degrees
    are held to `DEGREES_CAP` times P - 1: simulations then keep the coverage for any mixture of the two noises.

    Args:
        pairs: for each pair of processes the log-ratios of its quads, at least one each.
        seed: of the bootstrap; the same data give the same interval.

    Raises:
        ValueError: no pair, or a pair without quads.
    """
    samples = [np.asarray(pair, dtype=np.float64) for pair in pairs]
    if not samples or any(sample.size == 0 for sample in samples):
        raise ValueError("paired log-ratios need at least one pair, and each pair at least one quad")
    locations = np.array([float(trimmed_mean(sample[None, :])[0]) for sample in samples])
    count, quads = len(samples), sum(sample.size for sample in samples)
    location = float(locations.mean())
    if count < 2:
        return Estimate(location, math.inf, 0.0, count, quads)
    random = np.random.default_rng(seed)
    between = float(locations.var(ddof=1)) / count
    within = float(np.mean([_location_variance(sample, random) for sample in samples])) / count
    degrees = float(count - 1)
    if between + within > 0:
        within_degrees = max(1, quads - count)
        satterthwaite = (between + within) ** 2 / (between**2 / (count - 1) + within**2 / within_degrees)
        degrees = min(satterthwaite, DEGREES_CAP * (count - 1))
    return Estimate(location, math.sqrt(between + within), degrees, count, quads)


def trimmed_mean(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of each row without its `TRIMMED_SHARE` smallest and largest values, rounded down."""
    cut = int(TRIMMED_SHARE * samples.shape[1])
    ordered = np.sort(samples, axis=1)
    kept: NDArray[np.float64] = ordered[:, cut : samples.shape[1] - cut].mean(axis=1)
    return kept


def _location_variance(sample: NDArray[np.float64], random: np.random.Generator) -> float:
    """The bootstrap variance of a pair's location; corrected for the size of the sample, as its variance is."""
    if sample.size < 2:
        return 0.0
    drawn = sample[random.integers(sample.size, size=(REPLICATES, sample.size))]
    return float(trimmed_mean(drawn).var(ddof=1)) * sample.size / (sample.size - 1)


@dataclass(frozen=True)
class HolmStep:
    """What Holm's procedure says of one hypothesis: whether it is rejected, and the level at which it was tested.

    An interval at confidence ``1 - level`` excludes zero just where the hypothesis is rejected: those behind the first
    that is not rejected are shown at that one's level.
    """

    rejected: bool
    level: float


def holm(p_values: Mapping[str, float], alpha: float) -> dict[str, HolmStep]:
    """Holm's step-down procedure (1979): the chance of any false rejection is at most ``alpha``, however dependent."""
    ordered = sorted(p_values, key=lambda name: (p_values[name], name))
    steps: dict[str, HolmStep] = {}
    failed_level: float | None = None
    for rank, name in enumerate(ordered):
        level = failed_level if failed_level is not None else alpha / (len(ordered) - rank)
        rejected = failed_level is None and p_values[name] <= level
        if not rejected:
            failed_level = level
        steps[name] = HolmStep(rejected, level)
    return {name: steps[name] for name in p_values}
