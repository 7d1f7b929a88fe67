"""The statistics of paired timing: coverage by simulation, Holm by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.measure.paired import estimate_log_ratio, holm, trimmed_mean


def simulate(random, pairs, quads, of_pairs, of_quads, heavy=False, change=0.0):
    noise = random.standard_t(2.5, (pairs, quads)) if heavy else random.standard_normal((pairs, quads))
    return change + random.normal(0, of_pairs, (pairs, 1)) + of_quads * noise


@pytest.mark.parametrize("heavy", [False, True], ids=["normal", "heavy tails"])
@pytest.mark.parametrize(
    ("pairs", "of_pairs"),
    [(4, 0.0), (4, 0.005), (4, 0.02), (6, 0.01), (8, 0.0), (8, 0.02)],
)
def test_interval_covers_the_truth_as_often_as_it_says(pairs, of_pairs, heavy):
    """Noise of whole processes and of single quads, in every mixture; a percentile bootstrap would cover 80% at 4."""
    random = np.random.default_rng(pairs)
    trials, covered = 500, 0
    for _ in range(trials):
        estimate = estimate_log_ratio(list(simulate(random, pairs, 20, of_pairs, 0.02, heavy, change=0.1)))
        low, high = estimate.interval(0.05)
        covered += low <= 0.1 <= high
    assert covered / trials >= 0.95 - 2.5 * math.sqrt(0.05 * 0.95 / trials)


def test_smallest_change_is_found_in_four_of_five_cases():
    random = np.random.default_rng(1)
    first = estimate_log_ratio(list(simulate(random, 8, 20, 0.01, 0.02)))
    changes = [estimate_log_ratio(list(simulate(random, 8, 20, 0.01, 0.02))) for _ in range(40)]
    change = float(np.median([each.smallest_change(0.01) for each in [first, *changes]]))
    trials = [estimate_log_ratio(list(simulate(random, 8, 20, 0.01, 0.02, change=change))) for _ in range(300)]
    found = sum(each.p_value <= 0.01 for each in trials) / len(trials)
    assert 0.7 <= found <= 0.97


def test_same_data_same_estimate_and_the_interval_turns_with_the_sign():
    data = list(simulate(np.random.default_rng(2), 5, 12, 0.01, 0.02, change=0.03))
    estimate = estimate_log_ratio(data)
    assert estimate == estimate_log_ratio(data)
    mirrored = estimate_log_ratio([-pair for pair in data])
    assert mirrored.log_ratio == pytest.approx(-estimate.log_ratio)
    assert mirrored.standard_error == pytest.approx(estimate.standard_error, rel=0.2)


def test_one_pair_says_nothing_on_how_pairs_differ():
    estimate = estimate_log_ratio([[0.5, 0.5, 0.5]])
    assert estimate.p_value == 1.0
    assert estimate.interval(0.05) == (-math.inf, math.inf)
    assert estimate.smallest_change(0.05) == math.inf


def test_pairs_without_any_spread():
    assert estimate_log_ratio([[0.0, 0.0], [0.0, 0.0]]).p_value == 1.0
    assert estimate_log_ratio([[0.1, 0.1], [0.1, 0.1]]).p_value == 0.0


@pytest.mark.parametrize("pairs", [[], [[0.1], []]])
def test_without_data_there_is_no_estimate(pairs):
    with pytest.raises(ValueError, match="at least one"):
        estimate_log_ratio(pairs)


def test_one_quad_that_something_else_hit_does_not_move_the_estimate():
    calm = [[0.01, 0.0, -0.01, 0.005, -0.005]] * 4
    hit = [*calm[:3], [3.0, 0.0, -0.01, 0.005, -0.005]]
    assert abs(estimate_log_ratio(hit).log_ratio - estimate_log_ratio(calm).log_ratio) < 0.005


def test_trimmed_mean_by_hand():
    # A fifth of ten is two on either side: the mean of 3 … 8.
    assert trimmed_mean(np.array([[9.0, 1, 2, 3, 4, 5, 6, 7, 8, 1000]]))[0] == pytest.approx(5.5)
    assert trimmed_mean(np.array([[1.0, 2, 4, 100]]))[0] == pytest.approx(26.75)  # nothing to cut


def test_holm_by_hand():
    """Four hypotheses at 0.05: 0.0125, 0.0167, 0.025, 0.05. The third fails, so the fourth fails though 0.04 < 0.05."""
    steps = holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.015}, 0.05)
    assert {name: step.rejected for name, step in steps.items()} == {"a": False, "b": True, "c": False, "d": True}
    assert steps["b"].level == pytest.approx(0.0125)
    assert steps["d"].level == pytest.approx(0.05 / 3)
    assert steps["c"].level == steps["a"].level == pytest.approx(0.025)
    assert holm({}, 0.05) == {}


@settings(max_examples=60)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.2))
def test_holm_is_never_weaker_than_bonferroni_and_its_levels_agree_with_its_rejections(p_values, alpha):
    named = {str(index): p for index, p in enumerate(p_values)}
    for name, step in holm(named, alpha).items():
        assert step.rejected == (named[name] <= step.level)
        assert step.rejected or named[name] > alpha / len(p_values)
