import itertools
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.config import MeasureConfig
from bench.measure.clock import HostClock
from bench.measure.throughput import (
    MAX_LATENCIES,
    MIN_LATENCIES,
    has_settled,
    measure_latency,
    measure_throughput,
    median_interval,
    sweep_batch_sizes,
)
from bench.training.step import is_out_of_memory


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
    assert len(calls) == measured.warm_up.steps + 3 * measured.steps_per_block


def test_the_device_is_waited_for_at_both_ends_of_every_block():
    log = []
    measured = measure_throughput(
        lambda: log.append("step"),
        1,
        MeasureConfig(seconds=1e-6, block_seconds=1e-9),
        HostClock(lambda: log.append("wait")),
    )
    blocks = "".join(word[0] for word in log).split("ww")
    assert log[0] == log[-1] == "wait"
    assert len(blocks) == measured.warm_up.steps + len(measured.block_seconds)
    assert all("w" not in block.strip("w") for block in blocks)


@pytest.mark.parametrize(
    ("times", "settled"),
    [
        ([1.0] * 9, False),  # too few to tell
        ([1.0] * 10, True),
        ([4.0, 2.0, 2.0, 1.5, 1.5, 1.1, 1.1, 0.9, 0.9, 0.8], False),  # neighbours are equal, but it still gets faster
        ([9.0] + [1.0] * 4 + [1.0, 1.0, 7.0, 1.0, 1.0], True),  # one slow step is an accident
        ([1.0] * 5 + [1.2] * 5, False),
        ([5.0] * 20 + [1.0] * 10, True),
    ],
)
def test_settled_is_judged_over_windows_not_neighbours(times, settled):
    assert has_settled(times) is settled


def test_the_first_step_is_on_nobodys_clock():
    calls = []

    def step():
        calls.append(1)
        return spin(1500)() if len(calls) == 1 else spin(64)()

    measured = measure_throughput(step, 1, MeasureConfig(seconds=0.5, block_seconds=0.01))
    assert measured.warm_up.first_step_seconds > 10 * measured.warm_up.step_seconds
    assert max(measured.block_seconds) / measured.steps_per_block < measured.warm_up.first_step_seconds


def test_a_step_that_never_settles_is_measured_and_told():
    measured = measure_throughput(spin(), 1, MeasureConfig(seconds=1e-6, precision=1e-6))
    assert not measured.warm_up.stable
    assert measured.warm_up.steps == 2


def test_latency_has_percentiles_of_its_raw_samples():
    measured = measure_latency(spin(), MeasureConfig(seconds=5.0, precision=1e-9))
    assert len(measured.seconds) == MAX_LATENCIES
    assert not measured.reached_precision
    assert measured.has_tail
    ordered = sorted(measured.seconds)
    assert measured.p50_ms == pytest.approx(1000 * statistics.median(ordered))
    assert 1000 * ordered[949] <= measured.p95_ms <= 1000 * ordered[950]
    assert 1000 * ordered[989] <= measured.p99_ms <= 1000 * ordered[990]
    assert measured.p50_low_ms <= measured.p50_ms <= measured.p50_high_ms <= measured.p95_ms


def test_latency_stops_when_it_is_precise_but_not_before_the_tail_is_known():
    measured = measure_latency(spin(), MeasureConfig(seconds=60.0, precision=0.9))
    assert measured.reached_precision
    assert len(measured.seconds) == MIN_LATENCIES


def test_few_latencies_have_no_tail():
    measured = measure_latency(spin(), MeasureConfig(seconds=1e-6))
    assert len(measured.seconds) == 3
    assert not measured.has_tail


def test_the_sweep_names_the_best_batch_and_out_of_memory_ends_it():
    def create_step(batch_size):
        images = torch.zeros(batch_size, 3, 8, 8)
        return lambda: images.sum()

    config = MeasureConfig(seconds=0.05, block_seconds=0.001)
    sweep = sweep_batch_sizes(create_step, [2**36, 8, 1, 8], config, is_out_of_memory)
    assert [each.batch_size for each in sweep.measured] == [1, 8]
    assert sweep.best is max(sweep.measured, key=lambda each: each.img_per_s)
    assert "batch size 68719476736 does not fit" in sweep.out_of_memory
    assert sweep_batch_sizes(create_step, [2**36], config, is_out_of_memory).best is None


def test_any_other_error_in_the_sweep_is_an_error():
    def create_step(batch_size):
        return lambda: torch.zeros(batch_size, 3) @ torch.zeros(4, 3)

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        sweep_batch_sizes(create_step, [1], MeasureConfig(seconds=0.05), is_out_of_memory)


def test_energy_is_per_image_and_absent_where_the_time_is_too_short_for_the_counter():
    config = MeasureConfig(seconds=1.2, precision=1e-9, block_seconds=0.01)
    measured = measure_throughput(spin(), 4, config, read_joules=itertools.count(100.0).__next__)
    images = 4 * measured.steps_per_block * len(measured.block_seconds)
    assert measured.joules_per_img == 1 / images
    short = config.model_copy(update={"seconds": 0.05})
    assert measure_throughput(spin(), 4, short, read_joules=itertools.count().__next__).joules_per_img is None


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
