"""The interval over repeats: what it covers, where one over all blocks does not."""

import math
import statistics
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.config import MeasureConfig
from bench.timing.repeats import half_width, median_interval, median_of_repeats, repeats_interval, spread
from bench.timing.throughput import Meter

TRIALS = 1500
TRUE_SECONDS = 0.05


def simulate(random, repeats, blocks, correlation, between, within=0.02, gap=60):
    """Block times of one measurement: an AR(1) series whose repeats lie ``gap`` blocks apart.

    ``between`` is the spread of the repeats' own levels, as processes and layouts in memory have it.
    """
    length = repeats * (blocks + gap)
    noise = random.normal(0, math.sqrt(1 - correlation**2), length)
    series = np.empty(length)
    series[0] = random.normal()
    for k in range(1, length):
        series[k] = correlation * series[k - 1] + noise[k]
    levels = random.normal(0, between, repeats)
    starts = range(0, length, blocks + gap)
    return [
        (TRUE_SECONDS * np.exp(level + within * series[start : start + blocks])).tolist()
        for level, start in zip(levels, starts, strict=True)
    ]


def coverage(interval, trials):
    return statistics.mean(low <= TRUE_SECONDS <= high for low, high in map(interval, trials))


@pytest.mark.parametrize("repeats", [3, 5, 10])
@pytest.mark.parametrize("between", [0.0, 0.02])
@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_the_interval_covers_the_true_time_as_often_as_it_says(correlation, between, repeats):
    random = np.random.default_rng(7)
    trials = [simulate(random, repeats, 6, correlation, between) for _ in range(TRIALS)]
    assert coverage(repeats_interval, trials) >= 0.93


def test_an_interval_over_all_blocks_would_not():
    """The same data under order statistics of the pooled blocks, as earlier records have it."""
    random = np.random.default_rng(7)
    for correlation, between, at_most in [(0.9, 0.0, 0.85), (0.0, 0.02, 0.75)]:
        trials = [simulate(random, 5, 12, correlation, between) for _ in range(500)]
        assert coverage(lambda repeats: median_interval(list(chain(*repeats))), trials) < at_most


def test_the_interval_is_student_s_over_logarithms():
    low, high = repeats_interval([[1.0], [math.e], [math.e**2, 9.0, 1.0]])  # log-medians 0, 1 and 2; t(2) is 4.3027
    assert (math.log(low), math.log(high)) == pytest.approx(
        (1 - 4.3027 / math.sqrt(3), 1 + 4.3027 / math.sqrt(3)), 1e-4
    )
    assert half_width(low, high) == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)


def test_one_repeat_has_no_interval():
    with pytest.raises(ValueError, match="at least two repeats; given: 1"):
        repeats_interval([[1.0, 2.0, 3.0]])


@settings(max_examples=100)
@given(st.lists(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=9), min_size=2, max_size=30))
def test_the_interval_contains_the_median_of_repeats(repeats):
    low, high = repeats_interval(repeats)
    assert low * (1 - 1e-12) <= median_of_repeats(repeats) <= high * (1 + 1e-12)


def test_a_repeat_counts_once_however_many_blocks_it_has():
    assert median_of_repeats([[1.0], [2.0], [3.0] * 100]) == 2.0


def test_the_spread_is_the_interquartile_range_over_the_median():
    assert spread([[1.0, 2.0], [3.0], [4.0, 5.0]]) == pytest.approx(2 / 3)
    assert spread([[2.0, 2.0], [2.0]]) == 0.0


def test_the_interval_of_independent_values_is_by_ranks():
    # Conover's table: for n = 6 the range covers 96.9%, for n = 10 ranks 2 and 9 cover 97.9%, for 20 ranks 6 and 15.
    assert median_interval([float(i) for i in range(1, 7)]) == (1, 6)
    assert median_interval([float(i) for i in range(1, 11)]) == (2, 9)
    assert median_interval([float(i) for i in range(1, 21)]) == (6, 15)
    assert median_interval([5.0]) == (5, 5)


@settings(max_examples=50)
@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=60))
def test_the_interval_of_independent_values_holds_their_median(values):
    low, high = median_interval(values)
    assert low <= statistics.median(values) <= high


@pytest.mark.parametrize("count", [6, 15, 40])
def test_the_interval_of_independent_values_covers_their_median(count):
    random = np.random.default_rng(count)
    trials = random.lognormal(0, 1, (4000, count))  # true median 1
    covered = sum(low <= 1 <= high for low, high in map(median_interval, trials.tolist()))
    assert covered / 4000 >= 0.94


class CorrelatedClock:
    """Block times of an AR(1) series on a level of their own in each repeat; the host's time goes with them."""

    def __init__(self, random, correlation, between):
        self.random, self.correlation, self.between = random, correlation, between
        self.now = 0.0
        self.begin()

    def begin(self):
        """A new repeat, so far from the one before that the series has forgotten it."""
        self.level, self.state = self.random.normal(0, self.between), self.random.normal()

    def time_block(self, step, steps):
        noise = math.sqrt(1 - self.correlation**2) * self.random.normal()
        self.state = self.correlation * self.state + noise
        seconds = steps * TRUE_SECONDS / 10 * math.exp(self.level + 0.02 * self.state)
        self.now += seconds
        return seconds


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_what_a_meter_measures_is_covered_though_a_repeat_ends_when_its_blocks_agree(monkeypatch, correlation):
    clock = CorrelatedClock(np.random.default_rng(11), correlation, between=0.01)
    monkeypatch.setattr("time.perf_counter", lambda: clock.now)
    config = MeasureConfig(seconds=10.0, block_seconds=TRUE_SECONDS)
    covered, lengths = 0, set()
    for _ in range(600):
        meter = Meter(lambda: None, config, config.seconds, clock, steps_per_block=10)
        while not meter.done:
            clock.begin()
            meter.repeat()
        low, high = repeats_interval(meter.repeats)
        covered += low <= TRUE_SECONDS <= high
        lengths |= set(map(len, meter.repeats))
    assert covered / 600 >= 0.93
    assert len(lengths) > 5  # repeats did end at different times
