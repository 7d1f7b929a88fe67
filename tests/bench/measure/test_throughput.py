import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.config import MeasureConfig
from bench.measure.throughput import measure_throughput, median_interval


def spin(size=64):
    """Real work for some tens of microseconds."""
    a = torch.randn(size, size)
    return lambda: a @ a


def test_the_figure_is_the_median_of_its_raw_blocks():
    measured = measure_throughput(spin(), 10, MeasureConfig(seconds=0.5, precision=1e-6, block_seconds=0.01))
    assert not measured.reached_precision
    assert measured.img_per_s == 10 * measured.steps_per_block / statistics.median(measured.block_seconds)
    assert measured.low <= measured.img_per_s <= measured.high
    assert measured.has_interval
    assert sum(measured.block_seconds) <= 2.0


def test_it_stops_when_the_interval_is_narrow():
    measured = measure_throughput(spin(), 1, MeasureConfig(seconds=60.0, precision=0.9, block_seconds=0.001))
    assert measured.reached_precision
    assert sum(measured.block_seconds) < 30
    assert (measured.high - measured.low) / 2 <= 2 * measured.img_per_s


def test_blocks_are_long_enough_for_the_clock():
    measured = measure_throughput(spin(8), 1, MeasureConfig(seconds=0.5, precision=1e-6, block_seconds=0.02))
    assert measured.steps_per_block > 100


def test_a_step_slower_than_the_time_allowed_is_still_measured():
    big = torch.randn(600, 600)
    calls = []
    measured = measure_throughput(
        lambda: calls.append(big @ big), 1, MeasureConfig(seconds=1e-6, precision=1e-6, block_seconds=1e-9)
    )
    assert len(measured.block_seconds) == 3
    assert not measured.has_interval
    assert len(calls) == measured.warm_up_steps + 3 * measured.steps_per_block


def test_the_device_is_waited_for_at_both_ends_of_every_block():
    log = []
    measured = measure_throughput(
        lambda: log.append("step"), 1, MeasureConfig(seconds=1e-6, block_seconds=1e-9), lambda: log.append("wait")
    )
    blocks = "".join(word[0] for word in log).split("ww")
    assert log[0] == log[-1] == "wait"
    assert len(blocks) == measured.warm_up_steps + len(measured.block_seconds)
    assert all("w" not in block.strip("w") for block in blocks)


def test_interval_is_by_ranks():
    # Conover's table: for n = 6 the range covers 96.9%, for n = 10 ranks 2 and 9 cover 97.9%, for 20 ranks 6 and 15.
    assert median_interval([float(i) for i in range(1, 7)]) == (1, 6)
    assert median_interval([float(i) for i in range(1, 11)]) == (2, 9)
    assert median_interval([float(i) for i in range(1, 21)]) == (6, 15)
    assert median_interval([5.0]) == (5, 5)


@settings(max_examples=50)
@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=60))
def test_interval_holds_the_median(values):
    low, high = median_interval(values)
    assert low <= statistics.median(values) <= high


@pytest.mark.parametrize("count", [6, 15, 40])
def test_interval_covers_the_true_median_as_often_as_it_says(count):
    random = np.random.default_rng(count)
    trials = random.lognormal(0, 1, (4000, count))  # true median 1
    covered = sum(low <= 1 <= high for low, high in map(median_interval, trials.tolist()))
    assert covered / 4000 >= 0.94
