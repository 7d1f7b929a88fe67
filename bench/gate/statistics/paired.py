"""Statistics of paired timing: from the log-ratios of blocks measured in turn to an interval, and Holm's correction.

The unit of timing is four blocks in the order ABBA or BAAB: the log-ratio of head's time to base's is then free of any
drift that is linear over them. All that one pair of processes measures depends on that pair (memory layout,
placement), so the pairs are the independent observations, and they are few.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

TRIMMED_SHARE = 0.2
"""This share of a pair's log-ratios is left out at either end before the mean: blocks hit by something else."""
POWER = 0.8
"""The detectable change is the one that the measurement would have found with this probability."""


@dataclass(frozen=True)
class Estimate:
    """The log-ratio of head's time to base's, its standard error and the degrees of freedom of that error.

    ``standard_error`` is infinite with fewer than two pairs: one pair does not show how pairs differ.
    """

    log_ratio: float
    standard_error: float
    degrees: float
    pairs: int

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

    def detectable(self, alpha: float) -> float:
        """The log-ratio that a test at ``alpha`` would have found with a probability of about `POWER`."""
        return (self._quantile(1 - alpha / 2) + self._quantile(POWER)) * self.standard_error

    def _quantile(self, probability: float) -> float:
        # An infinite error has no degrees of freedom; any quantile times it is infinite.
        return float(stats.t.ppf(probability, self.degrees)) if self.degrees > 0 else 1.0


def estimate_log_ratio(pairs: Sequence[Sequence[float]]) -> Estimate:
    """The mean over pairs of each pair's trimmed mean, with the error of a one-sample t-test over the pairs.

    The variance between the pairs' means holds the noise within pairs already. If both sides take the same time, they
    can be swapped, so the log-ratios are symmetric about zero whatever the distribution of times; under heavy tails
    the t-test then errs on the safe side.

    Args:
        pairs: for each pair of processes its log-ratios, at least one each.

    Raises:
        ValueError: no pair, or a pair without log-ratios.
    """
    if not pairs or not all(len(pair) for pair in pairs):
        raise ValueError("paired log-ratios need at least one pair, and each pair at least one log-ratio")
    cuts = [int(TRIMMED_SHARE * len(pair)) for pair in pairs]
    means = [float(np.sort(pair)[cut : len(pair) - cut].mean()) for pair, cut in zip(pairs, cuts, strict=True)]
    count = len(means)
    error = float(np.std(means, ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    return Estimate(float(np.mean(means)), error, float(count - 1), count)


def holm_levels(p_values: Mapping[str, float], alpha: float) -> dict[str, float]:
    """The level at which Holm's step-down procedure (1979) tests each hypothesis: it rejects those with p at most that.

    The chance of any false rejection is at most ``alpha``, however dependent the tests are. An interval at confidence
    ``1 - level`` excludes zero exactly where the hypothesis is rejected; those after the first that is not rejected
    have that one's level. statsmodels has the procedure too, but gives no levels, which the intervals need.
    """
    levels: dict[str, float] = {}
    level, failed = alpha, False
    for rank, name in enumerate(sorted(p_values, key=lambda name: (p_values[name], name))):
        if not failed:
            level = alpha / (len(p_values) - rank)
            failed = p_values[name] > level
        levels[name] = level
    return levels
