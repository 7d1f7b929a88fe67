import numpy as np
import pytest

from reports.data.change_points import MIN_SEGMENT, MIN_SERIES, find_change_points

NOISE = 0.02


def series(seed, *levels):
    """Normal noise around each (level, length) in turn."""
    random = np.random.default_rng(seed)
    return np.concatenate([random.normal(level, NOISE, length) for level, length in levels])


def test_one_step_is_found_where_it_is():
    (change,) = find_change_points(series(0, (0.0, 20), (-0.1, 20)))
    assert change.index == 20
    assert change.p <= 0.01


def test_a_step_and_its_way_back_are_both_found():
    found = find_change_points(series(1, (0.0, 15), (0.1, 12), (0.0, 15)))
    assert [change.index for change in found] == [15, 27]


def test_two_steps_down_are_both_found():
    assert [change.index for change in find_change_points(series(2, (0.0, 14), (-0.15, 14), (-0.3, 14)))] == [14, 28]


@pytest.mark.parametrize("length", [8, 25])
@pytest.mark.parametrize("noise", ["normal", "heavy-tailed"])
def test_noise_alone_shows_a_step_no_more_often_than_it_may(noise, length):
    random = np.random.default_rng(length)
    draw = random.standard_normal if noise == "normal" else lambda size: random.standard_t(2, size)
    trials = 120
    false = sum(bool(find_change_points(draw(length), 0.1, permutations=99, seed=k)) for k in range(trials))
    # At a true rate of 10% more than 20 of 120 have a chance of 0.7%.
    assert false <= 20


def test_one_outlier_is_no_step():
    values = series(3, (0.0, 30))
    values[12] = 5.0
    assert find_change_points(values) == []


def test_a_scale_does_not_matter_and_a_constant_has_no_step():
    values = series(4, (1.0, 12), (1.2, 12))
    assert find_change_points(values) == find_change_points(1000 * values)
    assert find_change_points([5.0] * 40) == []


def test_exact_values_step_exactly():
    (change,) = find_change_points([7.0] * 6 + [9.0] * 6)
    assert change.index == 6


def test_a_series_too_short_to_tell_is_not_searched():
    assert find_change_points([1.0] * MIN_SEGMENT + [9.0] * (MIN_SERIES - MIN_SEGMENT - 1)) == []
    assert find_change_points([]) == []
    assert [change.index for change in find_change_points([1.0, 1.1, 1.2, 1.1, 9.0, 9.1, 9.2, 9.1])] == [4]


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        find_change_points([1.0, float("nan")])


def test_steps_of_five_sigma_are_placed_exactly_nearly_always():
    trials = 30
    found = [find_change_points(series(100 + k, (0.0, 10), (-0.1, 14), (-0.2, 9))) for k in range(trials)]
    exact = sum({10, 24} <= {change.index for change in changes} for changes in found)
    assert exact >= 0.9 * trials
