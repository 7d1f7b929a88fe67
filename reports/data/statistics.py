"""Intervals, tests on differences between models, ranks that rest on those tests, and how many seeds are missing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95
POWER = 0.8
MAX_TESTED = 200
"""Pairs grow with the square of the models: only this many of the best are tested against one another."""
MAX_SEEDS = 1000

PAIR_COLUMNS = ["a", "b", "difference", "p", "p_holm", "separated", "more_seeds"]
IMAGE_PAIR_COLUMNS = ["a", "b", "difference", "p", "p_holm", "separated", "only_a", "only_b"]


def welch_interval(a: ArrayLike, b: ArrayLike, confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Mean of b − mean of a, and the ends of Welch's t-interval; the ends are NaN with fewer than two values a side."""
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    difference = float(y.mean() - x.mean())
    if min(len(x), len(y)) < 2:
        return difference, math.nan, math.nan
    a_part, b_part = _variance(x) / len(x), _variance(y) / len(y)
    if a_part == b_part == 0:
        return difference, difference, difference
    freedom = (a_part + b_part) ** 2 / (a_part**2 / (len(x) - 1) + b_part**2 / (len(y) - 1))
    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * math.sqrt(a_part + b_part)
    return difference, difference - half, difference + half


def student_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """The mean and the ends of Student's t-interval; all NaN without a value, the ends with one alone."""
    x = np.asarray(values, dtype=float)
    if len(x) < 2:
        return (float(x.mean()) if len(x) else math.nan), math.nan, math.nan
    mean, half = float(x.mean()), float(stats.t.ppf((1 + confidence) / 2, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5)
    return mean, mean - half, mean + half


def wilson_interval(share: ArrayLike, count: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ends of Wilson's 95% interval (1927) for shares of ``count`` independent trials; NaN where one is not known.

    Vectorised; equal to ``scipy.stats.binomtest(k, n).proportion_ci(method="wilson")``.
    """
    p, n = np.asarray(share, dtype=float), np.asarray(count, dtype=float)
    p, n = np.where((p >= 0) & (p <= 1), p, math.nan), np.where(n > 0, n, math.nan)
    z2 = stats.chi2.ppf(CONFIDENCE, 1)
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """P-values adjusted for their number by Holm's step-down method (Holm 1979), in the order given; NaN stays NaN."""
    p = np.asarray(p, dtype=float)
    adjusted = np.full(len(p), math.nan)
    order = np.argsort(p, kind="stable")[: np.isfinite(p).sum()]
    stepped = np.maximum.accumulate(p[order] * (len(order) - np.arange(len(order))))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def _variance(values: NDArray[np.float64]) -> float:
    """0 for equal values, whose mean need not be just that value; NaN for a single one."""
    if len(values) < 2:
        return math.nan
    return float(values.var(ddof=1)) if np.ptp(values) > 0 else 0.0


def compare_pairs(groups: Mapping[str, ArrayLike], confidence: float = CONFIDENCE) -> pd.DataFrame:
    """Test every pair of models on the difference of their means, over seeds.

    Welch's t-test, Holm-corrected for the number of pairs tested. A model with a single seed has no spread, so its
    pairs are not tested: their ``p`` is NaN. Nor has a model whose seeds agree to the last digit; it gets the spread
    pooled over the models that have one. ``separated`` also holds where it follows: a above c and c above b put a
    above b. ``more_seeds`` is how many more seeds each of the two would need to be separated at the observed
    difference with a power of 80%: infinite above a thousand and where the spread is unknown, 0 where they are
    separated.

    Columns: `PAIR_COLUMNS`; ``a`` is the better one (higher mean), ``difference`` = mean of a − mean of b.
    """
    values = {name: np.asarray(v, dtype=float) for name, v in groups.items()}
    values = {name: v[np.isfinite(v)] for name, v in values.items()}
    names = sorted((n for n, v in values.items() if len(v)), key=lambda n: (-values[n].mean(), n))
    if len(names) < 2:
        return pd.DataFrame(columns=PAIR_COLUMNS)
    mean = np.array([values[n].mean() for n in names])
    count = np.array([len(values[n]) for n in names])
    variance = np.array([_variance(values[n]) for n in names])
    spread = variance > 0
    pooled = np.average(variance[spread], weights=count[spread] - 1) if spread.any() else math.nan
    variance = np.where(variance == 0, pooled, variance)
    i, j = np.triu_indices(len(names), 1)
    deviation = np.sqrt(variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = stats.ttest_ind_from_stats(
            mean[i], deviation[i], count[i], mean[j], deviation[j], count[j], equal_var=False
        ).pvalue
    p_holm = holm(p)
    separated = _closure(p_holm < 1 - confidence, i, j, len(names))
    needed = seeds_to_separate(mean[i] - mean[j], variance[i], variance[j], (1 - confidence) / len(i))
    more = np.where(separated, 0, np.maximum(needed - np.minimum(count[i], count[j]), 1))
    label = np.array(names, dtype=object)
    columns = (label[i], label[j], mean[i] - mean[j], p, p_holm, separated, more)
    return pd.DataFrame(dict(zip(PAIR_COLUMNS, columns, strict=True)))


def compare_image_by_image(
    models: Sequence[str], right_wrong: ArrayLike, images: int, confidence: float = CONFIDENCE
) -> pd.DataFrame:
    """Test every pair of trained networks on the same test images: McNemar's exact test, Holm-corrected.

    ``right_wrong[i][j]`` counts the images that model i classifies rightly and model j wrongly. A difference found
    here is one between these weights on this test set: another seed may turn it.

    Columns: `IMAGE_PAIR_COLUMNS`; ``a`` is the more accurate one, ``difference`` = accuracy of a − that of b,
    ``only_a`` counts the images that a alone gets right. ``separated`` also holds where it follows, as in
    `compare_pairs`.
    """
    counts = np.asarray(right_wrong, dtype=np.int64).reshape(len(models), len(models))
    if len(models) < 2:
        return pd.DataFrame(columns=IMAGE_PAIR_COLUMNS)
    lead = counts[:, 0] - counts[0, :]  # images more than the first model gets right
    order = sorted(range(len(models)), key=lambda k: (-lead[k], models[k]))
    i, j = np.triu_indices(len(models), 1)
    a, b = np.array(order)[i], np.array(order)[j]
    only_a, only_b = counts[a, b], counts[b, a]
    p = np.minimum(2 * stats.binom.cdf(np.minimum(only_a, only_b), only_a + only_b, 0.5), 1.0)
    p_holm = holm(p)
    separated = _closure(p_holm < 1 - confidence, i, j, len(models))
    label = np.array(models, dtype=object)
    columns = (label[a], label[b], (only_a - only_b) / images, p, p_holm, separated, only_a, only_b)
    return pd.DataFrame(dict(zip(IMAGE_PAIR_COLUMNS, columns, strict=True)))


def _closure(above: NDArray[np.bool_], i: NDArray[np.intp], j: NDArray[np.intp], count: int) -> NDArray[np.bool_]:
    """The pairs (i above j) that a test separates, and those that follow from them by transitivity."""
    table = np.zeros((count, count), dtype=bool)
    table[i, j] = above
    for middle in range(count):
        table |= table[:, middle, None] & table[None, middle, :]
    return np.asarray(table[i, j])


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

    So models that cannot be separated share a rank, unless a third one stands between them, and a model that is
    separated from another never does. ``rank_worst`` is the last place that the tests leave open. A model that no
    test was possible for is not ``tested``: its rank is its place in the order of the means (equal means share one).
    Models with a NaN mean have no rank.

    Index: the models in order of their means, NaN last; columns: rank, rank_worst, tested.
    """
    known = {name: mean for name, mean in means.items() if math.isfinite(mean)}
    tested = {name for end in ("a", "b") for name in pairs[end][pairs.p.notna()]}
    won = pairs[pairs.separated.astype(bool)]
    beaten, beats = won.b.value_counts(), won.a.value_counts()
    order = pd.Series(known, dtype=float).rank(ascending=False, method="min").astype(int)
    ties = order.value_counts()
    rows = {
        n: (1 + int(beaten.get(n, 0)), len(known) - int(beats.get(n, 0)), True)
        if n in tested
        else (int(order[n]), int(order[n] + ties[order[n]] - 1), False)
        for n in known
    }
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["rank", "rank_worst", "tested"])
    frame = frame.loc[sorted(frame.index, key=lambda n: (-known[n], n))]
    lost = pd.DataFrame(index=[n for n in means if n not in known], columns=frame.columns, dtype=float)
    return pd.concat([frame.astype({"rank": float, "rank_worst": float}), lost]) if len(lost) else frame
