"""The statistics of paired timing: level and coverage by simulation, Holm by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bench.gate.statistics.paired import estimate_log_ratio, holm_levels


def luck(random, kind, shape):
    """What a process adds to a log time, in several distributions."""
    if kind == "none":
        return np.zeros(shape)
    if kind == "normal":
        return random.normal(0, 0.01, shape)
    if kind == "skewed":
        return 0.01 * random.lognormal(0, 1, shape)
    if kind == "heavy tails":
        return 0.01 * random.standard_t(2, shape)
    return 0.03 * (random.random(shape) < 0.2)  # now and then a bad layout in memory


def simulate(random, kind, pairs, change=0.0, within=0.02, blocks=12):
    """Log-ratios: each side has the luck of its process, each sequence of four blocks its noise."""
    of_pairs = luck(random, kind, (pairs, 1)) - luck(random, kind, (pairs, 1))
    return list(change + of_pairs + random.normal(0, within, (pairs, blocks)))


@pytest.mark.parametrize("kind", ["none", "normal", "skewed", "heavy tails", "bad layout"])
@pytest.mark.parametrize("pairs", [3, 5, 8, 16])
def test_interval_covers_the_truth_as_often_as_it_says(pairs, kind):
    random = np.random.default_rng(pairs)
    trials, covered = 300, 0
    for _ in range(trials):
        low, high = estimate_log_ratio(simulate(random, kind, pairs, change=0.1)).interval(0.05)
        covered += low <= 0.1 <= high
    assert covered / trials >= 0.95 - 2.5 * math.sqrt(0.05 * 0.95 / trials)


@pytest.mark.parametrize("pairs", [4, 8])
def test_the_interval_is_no_wider_than_it_need_be(pairs):
    """The noise within pairs counts once: coverage is not above what the interval says, either."""
    random = np.random.default_rng(pairs)
    trials = 1000
    covered = sum(abs(estimate_log_ratio(simulate(random, "none", pairs)).p_value) > 0.05 for _ in range(trials))
    assert abs(covered / trials - 0.95) <= 3 * math.sqrt(0.05 * 0.95 / trials)


def test_it_is_the_one_sample_t_test_over_pairs():
    data = simulate(np.random.default_rng(3), "normal", 6, change=0.01)
    estimate = estimate_log_ratio(data)
    expected = stats.ttest_1samp([stats.trim_mean(pair, 0.2) for pair in data], 0)
    assert estimate.p_value == pytest.approx(expected.pvalue)
    assert estimate.interval(0.01) == pytest.approx(tuple(expected.confidence_interval(0.99)))
    mirrored = estimate_log_ratio([-pair for pair in data])
    assert (mirrored.log_ratio, mirrored.standard_error) == pytest.approx(
        (-estimate.log_ratio, estimate.standard_error)
    )


def test_the_detectable_change_is_found_in_four_of_five_cases():
    random = np.random.default_rng(1)
    estimates = [estimate_log_ratio(simulate(random, "normal", 8)) for _ in range(40)]
    change = float(np.median([each.detectable(0.01) for each in estimates]))
    trials = [estimate_log_ratio(simulate(random, "normal", 8, change=change)) for _ in range(300)]
    found = sum(each.p_value <= 0.01 for each in trials) / len(trials)
    assert 0.65 <= found <= 0.9


def test_one_pair_does_not_show_how_pairs_differ():
    estimate = estimate_log_ratio([[0.5, 0.5, 0.5]])
    assert estimate.p_value == 1.0
    assert estimate.interval(0.05) == (-math.inf, math.inf)
    assert estimate.detectable(0.05) == math.inf


def test_pairs_without_any_spread():
    assert estimate_log_ratio([[0.0, 0.0], [0.0, 0.0]]).p_value == 1.0
    assert estimate_log_ratio([[0.1, 0.1], [0.1, 0.1]]).p_value == 0.0


@pytest.mark.parametrize("pairs", [[], [[0.1], []]])
def test_without_data_there_is_no_estimate(pairs):
    with pytest.raises(ValueError, match="at least one"):
        estimate_log_ratio(pairs)


def test_one_log_ratio_that_something_else_hit_does_not_move_the_estimate():
    calm = [[0.01, 0.0, -0.01, 0.005, -0.005]] * 4
    hit = [*calm[:3], [3.0, 0.0, -0.01, 0.005, -0.005]]
    assert abs(estimate_log_ratio(hit).log_ratio - estimate_log_ratio(calm).log_ratio) < 0.005


def test_the_trimmed_mean_by_hand():
    # A fifth of ten is two on either side: the mean of 3 … 8.
    assert estimate_log_ratio([[9.0, 1, 2, 3, 4, 5, 6, 7, 8, 1000]]).log_ratio == pytest.approx(5.5)
    assert estimate_log_ratio([[1.0, 2, 4, 100]]).log_ratio == pytest.approx(26.75)  # nothing to cut


def test_holm_by_hand():
    """Four hypotheses at 0.05: 0.0125, 0.0167, 0.025, 0.05. The third fails, so the fourth fails though 0.04 < 0.05."""
    levels = holm_levels({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.015}, 0.05)
    assert levels == pytest.approx({"b": 0.0125, "d": 0.05 / 3, "c": 0.025, "a": 0.025})
    assert holm_levels({}, 0.05) == {}


@settings(max_examples=60)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.2))
def test_holm_agrees_with_its_adjusted_p_values_and_is_never_weaker_than_bonferroni(p_values, alpha):
    named = {str(index): p for index, p in enumerate(p_values)}
    levels = holm_levels(named, alpha)
    assert all(level >= alpha / len(p_values) for level in levels.values())
    # Adjusted p-values, the other form of the procedure.
    largest = 0.0
    for rank, name in enumerate(sorted(named, key=named.__getitem__)):
        largest = max(largest, (len(named) - rank) * named[name])
        if abs(largest - alpha) > 1e-12:
            assert (named[name] <= levels[name]) == (largest <= alpha)
