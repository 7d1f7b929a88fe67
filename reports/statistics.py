"""What seeds can tell: intervals of means, tests on differences, ranks that are earned, seeds that are missing."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95
POWER = 0.8
MAX_TESTED = 200
"""Pairs grow with the square of the models: only so many of the best are tested against one another."""
MAX_SEEDS = 1000

PAIR_COLUMNS = ["a", "b", "difference", "p", "p_holm", "separated", "more_seeds"]


def t_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Mean, low and high end of Student's t-interval; the ends are NaN for fewer than two finite values."""
    x = np.asarray(values, dtype=float)
    x = x[np.isfinite(x)]
    if len(x) == 0:
        return math.nan, math.nan, math.nan
    mean = float(x.mean())
    if len(x) == 1:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf((1 + confidence) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return mean, mean - half, mean + half


def welch_interval(a: ArrayLike, b: ArrayLike, confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Mean of b − mean of a, and the ends of Welch's t-interval; the ends are NaN with fewer than two values a side."""
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    difference = float(y.mean() - x.mean())
    if min(len(x), len(y)) < 2:
        return difference, math.nan, math.nan
    errors = np.array([x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)])
    if errors.sum() == 0:
        return difference, difference, difference
    degrees = errors.sum() ** 2 / (errors[0] ** 2 / (len(x) - 1) + errors[1] ** 2 / (len(y) - 1))
    half = float(stats.t.ppf((1 + confidence) / 2, degrees) * math.sqrt(errors.sum()))
    return difference, difference - half, difference + half


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """P-values adjusted for their number by Holm's step-down method (Holm 1979), in the order given."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def compare_pairs(groups: Mapping[str, ArrayLike], confidence: float = CONFIDENCE) -> pd.DataFrame:
    """Test every pair of models on the difference of their means, over seeds.

    Welch's t-test, Holm-corrected for the number of pairs. A model with a single seed, or whose seeds agree to the
    last digit, borrows the variance pooled over the others; where nothing has a variance, no pair is tested and ``p``
    is NaN. ``separated`` also holds where it follows: a above c and c above b put a above b. ``more_seeds`` are those
    that each of the two would need to be separated at the observed difference with a power of 80%; infinite where
    that is above a thousand, 0 where they are separated.

    Columns: `PAIR_COLUMNS`; ``a`` is the better one (higher mean), ``difference`` = mean of a − mean of b.
    """
    values = {name: np.asarray(v, dtype=float) for name, v in groups.items()}
    values = {name: v[np.isfinite(v)] for name, v in values.items()}
    names = sorted((n for n, v in values.items() if len(v)), key=lambda n: (-values[n].mean(), n))
    if len(names) < 2:
        return pd.DataFrame(columns=PAIR_COLUMNS)
    mean = np.array([values[n].mean() for n in names])
    count = np.array([len(values[n]) for n in names])
    variance = np.array([values[n].var(ddof=1) if len(values[n]) > 1 else math.nan for n in names])
    own = np.isfinite(variance) & (variance > 0)
    freedom = (count - 1).astype(float)
    if own.any():
        pooled = float((variance[own] * freedom[own]).sum() / freedom[own].sum())
        variance, freedom = np.where(own, variance, pooled), np.where(own, freedom, freedom[own].sum())
    i, j = np.triu_indices(len(names), 1)
    difference = mean[i] - mean[j]
    if own.any():
        error_i, error_j = variance[i] / count[i], variance[j] / count[j]
        degrees = (error_i + error_j) ** 2 / (error_i**2 / freedom[i] + error_j**2 / freedom[j])
        p = 2 * stats.t.sf(difference / np.sqrt(error_i + error_j), degrees)
        p_holm = holm(p)
    else:
        p = p_holm = np.full(len(i), math.nan)
    above = np.zeros((len(names), len(names)), dtype=bool)
    above[i, j] = p_holm < 1 - confidence
    for middle in range(len(names)):  # the transitive closure: what follows from the tests is not in doubt either
        above |= above[:, middle, None] & above[None, middle, :]
    separated = above[i, j]
    needed = seeds_to_separate(difference, variance[i], variance[j], (1 - confidence) / len(i))
    more = np.where(separated, 0, np.maximum(needed - np.minimum(count[i], count[j]), 1))
    label = np.array(names, dtype=object)
    columns = (label[i], label[j], difference, p, p_holm, separated, more)
    return pd.DataFrame(dict(zip(PAIR_COLUMNS, columns, strict=True)))


def seeds_to_separate(
    difference: ArrayLike, variance_a: ArrayLike, variance_b: ArrayLike, alpha: float
) -> NDArray[np.float64]:
    """Seeds each of two models needs for a two-sided t-test at ``alpha`` to find the difference with 80% power.

    Infinite above a thousand, and where the difference or a variance is unknown or zero. Power is that of the shifted
    central t, which errs on the side of more seeds at very few of them.
    """
    spread = np.asarray(variance_a, dtype=float) + np.asarray(variance_b, dtype=float)
    effect = np.abs(np.asarray(difference, dtype=float)) / np.sqrt(np.where(spread > 0, spread, math.nan))

    def enough(seeds: NDArray[np.int_]) -> NDArray[np.bool_]:
        degrees = 2 * (seeds - 1)
        power = stats.t.cdf(effect * np.sqrt(seeds) - stats.t.isf(alpha / 2, degrees), degrees)
        return np.asarray(power >= POWER)

    low, high = np.full(effect.shape, 2), np.full(effect.shape, MAX_SEEDS)
    possible = enough(high)
    while (low < high).any():
        middle = (low + high) // 2
        found = enough(middle)
        low, high = np.where(found, low, np.minimum(middle + 1, high)), np.where(found, middle, high)
    return np.where(possible, low.astype(float), math.inf)


def shared_ranks(pairs: pd.DataFrame, means: Mapping[str, float]) -> pd.DataFrame:
    """Ranks from tests: ``rank`` = 1 + number of models that are separated from this one and above it.

    So models that the seeds cannot separate share a rank, unless a third one stands between them, and a model that
    is separated from another never does. ``rank_worst`` is
    the last place that the tests leave open. Where no pair could be tested the rank is the order of the means (equal
    means share one) and ``tested`` is False. Models with a NaN mean have no rank.

    Index: the models in order of their means, NaN last; columns: rank, rank_worst, tested.
    """
    known = {name: mean for name, mean in means.items() if math.isfinite(mean)}
    tested = len(pairs) > 0 and bool(pairs.p.notna().any())
    if tested:
        won = pairs[pairs.separated.astype(bool)]
        beaten, beats = won.b.value_counts(), won.a.value_counts()
        rows = {n: (1 + int(beaten.get(n, 0)), len(known) - int(beats.get(n, 0)), True) for n in known}
    else:
        order = pd.Series(known, dtype=float).rank(ascending=False, method="min").astype(int)
        ties = order.value_counts()
        rows = {n: (int(order[n]), int(order[n] + ties[order[n]] - 1), False) for n in known}
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["rank", "rank_worst", "tested"])
    frame = frame.loc[sorted(frame.index, key=lambda n: (-known[n], n))]
    lost = pd.DataFrame(index=[n for n in means if n not in known], columns=frame.columns, dtype=float)
    return pd.concat([frame.astype({"rank": float, "rank_worst": float}), lost]) if len(lost) else frame
