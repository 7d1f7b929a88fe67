"""Where a series of measurements changes level: change points by E-divisive, each with a permutation test.

Method: Matteson and James 2014, *A nonparametric approach for multiple change point analysis of multivariate data*,
JASA 109(505):334–345. It assumes nothing about the distribution; in a series without a change it finds one with a
probability of at most ``alpha``. (MongoDB and Apache Otava use it on their benchmarks: Daly et al. 2020,
arXiv:2003.00584.)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

MIN_SEGMENT = 3
"""The fewest measurements of a level."""
PERMUTATIONS = 499
MIN_SERIES = 8
"""In a shorter series no arrangement is rare enough: eight measurements in two halves can be arranged in 70 ways."""


@dataclass(frozen=True)
class ChangePoint:
    """The series changes between ``index`` − 1 and ``index``; ``p`` is the permutation test's."""

    index: int
    p: float


def find_change_points(
    values: ArrayLike, alpha: float = 0.05, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> list[ChangePoint]:
    """The points, in order of time, where the distribution of ``values`` changes.

    They are found one after the other, the clearest first: each splits a segment, and is tested against the best split
    of the values shuffled within all segments. The first that is not significant at ``alpha`` ends the search.
    Equal arguments give equal results; a series shorter than `MIN_SERIES` gives none.
    """
    x = np.asarray(values, dtype=float)
    if not np.isfinite(x).all():
        raise ValueError("the values of a series must be finite")
    bounds, found = [0, len(x)], list[ChangePoint]()
    random = np.random.default_rng(seed)
    while len(x) >= MIN_SERIES:
        segments = [x[low:high] for low, high in itertools.pairwise(bounds)]
        splits = [_best_split(segment) for segment in segments]
        best = max(range(len(splits)), key=lambda k: splits[k][0])
        divergence, at = splits[best]
        if divergence <= 0:
            break
        p = _permutation_p(segments, divergence, alpha, permutations, random)
        if p > alpha:
            break
        found.append(ChangePoint(bounds[best] + at, p))
        bounds = sorted({*bounds, bounds[best] + at})
    return sorted(found, key=lambda change: change.index)


def _permutation_p(
    segments: Sequence[Floats], divergence: float, alpha: float, permutations: int, random: np.random.Generator
) -> float:
    """The share of shuffled series whose best split is at least as clear; stops once it must exceed ``alpha``."""
    exceeded = 0
    for _ in range(permutations):
        shuffled = max(_best_split(random.permutation(segment))[0] for segment in segments)
        # In a series of few distinct values, ties must not be decided by the last digit of a sum.
        exceeded += shuffled >= divergence * (1 - 1e-9)
        if (exceeded + 1) / (permutations + 1) > alpha:
            break
    return (exceeded + 1) / (permutations + 1)


def _best_split(x: Floats) -> tuple[float, int]:
    """The largest scaled energy distance between x[:t] and x[t:k], over all t and k, and its t; (0, 0) if too short.

    That the right part may end before the segment does lets a change and its way back be seen (section 3.1 there).
    """
    n = len(x)
    if n < 2 * MIN_SEGMENT:
        return 0.0, 0
    sums = np.zeros((n + 1, n + 1))
    np.cumsum(np.cumsum(np.abs(x[:, None] - x[None, :]), axis=0), axis=1, out=sums[1:, 1:])
    t, k = np.arange(n + 1)[:, None], np.arange(n + 1)[None, :]
    diagonal = np.diagonal(sums)
    left, right = t, k - t
    possible = (left >= MIN_SEGMENT) & (right >= MIN_SEGMENT)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (sums - diagonal[:, None]) / (left * right)
        within_left = diagonal[:, None] / (left * (left - 1))
        within_right = (diagonal[None, :] - 2 * sums + diagonal[:, None]) / (right * (right - 1))
        divergence = left * right / (left + right) * (2 * between - within_left - within_right)
    divergence = np.where(possible, divergence, -np.inf)
    best = int(divergence.argmax())
    return max(float(divergence.flat[best]), 0.0), best // (n + 1)
