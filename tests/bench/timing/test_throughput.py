import itertools
import statistics

import pytest
import torch

from bench.config import MeasureConfig
from bench.timing.clock import HostClock
from bench.timing.throughput import (
    MAX_LATENCIES,
    MIN_BLOCKS_FOR_INTERVAL,
    MIN_LATENCIES,
    Latency,
    Meter,
    Throughput,
    is_precise,
    measure_throughput,
)
from bench.timing.warm_up import has_settled


def spin(size=64):
    """Real work for some tens of microseconds."""
    a = torch.randn(size, size)
    return lambda: a @ a


def config(**options):
    return MeasureConfig(**{"seconds": 0.5, "block_seconds": 0.005} | options)


class ScriptedClock:
    """Gives the block times of a script, one repeat after the other; warm-up steps take a second each."""

    def __init__(self, seconds):
        self.seconds = iter(seconds)
        self.blocks = []

    def time_block(self, step, steps):
        if steps == 1:
            return 1.0
        self.blocks.append(next(self.seconds))
        return self.blocks[-1]


def meter(create_step=spin, options=None, **arguments):
    measuring = config(**options or {})
    made = Meter(create_step, measuring, measuring.seconds, **arguments)
    while not made.done:
        made.repeat()
    return made


def latency(create_step=spin, **options):
    found = meter(create_step, options, steps_per_block=1, samples=(MIN_LATENCIES, MAX_LATENCIES))
    return Latency(found.repeats, config(**options).precision)


def test_the_figure_is_the_median_over_repeats_of_raw_blocks():
    measured = measure_throughput(spin(), 10, config(precision=1e-9))
    assert len(measured.block_seconds) in (3, 4, 5)  # fewer than five where the time was over
    medians = [statistics.median(blocks) for blocks in measured.block_seconds]
    assert measured.img_per_s == 10 * measured.steps_per_block / statistics.median(medians)
    assert measured.interval[0] <= measured.img_per_s <= measured.interval[1]
    assert not measured.reached_precision


def test_every_repeat_has_a_step_of_its_own():
    made = []

    def create_step():
        made.append(spin())
        return made[-1]

    assert len(meter(create_step, {"seconds": 60.0, "precision": 0.9, "repeats": 7}).repeats) == len(made) == 7


def test_the_number_of_repeats_does_not_depend_on_whether_they_agree():
    """Stopping as soon as repeats agree would select those that agree by luck."""
    for precision in (0.9, 0.001):
        clock = ScriptedClock(itertools.cycle([0.1]))
        assert (
            len(meter(options={"seconds": 60.0, "precision": precision}, clock=clock, steps_per_block=9).repeats) == 5
        )


def test_a_repeat_ends_when_its_own_median_is_known():
    blocks = [1.0, 1.5, 0.5] * 2 + [1.0] * 20
    found = Meter(spin, config(seconds=60.0), 60.0, ScriptedClock(blocks), steps_per_block=9)
    found.repeat()
    (own,) = found.repeats
    assert MIN_BLOCKS_FOR_INTERVAL < len(own) < len(blocks)
    assert is_precise(own, 0.01)
    assert not is_precise(own[:-1], 0.01)


def test_blocks_are_long_enough_for_the_clock():
    assert meter(lambda: spin(8), {"block_seconds": 0.02}).steps_per_block > 100


def test_a_step_slower_than_the_time_allowed_is_still_measured_three_times():
    calls = []
    found = meter(lambda: lambda: calls.append(spin(300)()), {"seconds": 1e-6, "block_seconds": 1e-9})
    assert [len(blocks) for blocks in found.repeats] == [1, 1, 1]
    warm = sum(each.steps for each in found.warm_ups)
    assert len(calls) == warm + 3 * found.steps_per_block
    assert Throughput.of(found, 1, 0.01).interval


def test_the_device_is_waited_for_at_both_ends_of_every_block():
    log = []
    found = meter(
        lambda: lambda: log.append("step"),
        {"seconds": 1e-6, "block_seconds": 1e-9},
        clock=HostClock(lambda: log.append("wait")),
    )
    blocks = "".join(word[0] for word in log).split("ww")
    assert log[0] == log[-1] == "wait"
    assert all("w" not in block.strip("w") for block in blocks)
    assert len(blocks) >= sum(map(len, found.repeats))


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


def test_the_first_step_counts_nowhere():
    class FirstIsSlow:
        calls = 0

        def time_block(self, step, steps):
            self.calls += 1
            return 50.0 if self.calls == 1 else 0.01 * steps

    found = Meter(spin, config(seconds=60.0), 60.0, FirstIsSlow())
    found.repeat()
    assert found.warm_ups[0].first_step_seconds == 50.0
    assert found.warm_ups[0].step_seconds == 0.01
    assert found.repeats[0] == [0.01] * MIN_BLOCKS_FOR_INTERVAL


def test_latency_has_percentiles_of_all_its_samples():
    samples = [[k / 1000 for k in range(start, 1001, 5)] for start in range(1, 6)]  # 1 to 1000 ms, five repeats
    measured = Latency(samples, 0.01)
    assert measured.p50_ms == pytest.approx(500.5)  # of 498.5 to 502.5
    assert measured.percentile_ms(95) == pytest.approx(950.05)
    assert measured.percentile_ms(99) == pytest.approx(990.01)
    assert measured.interval[0] <= measured.p50_ms <= measured.interval[1]


def test_latency_stops_when_it_is_precise_but_not_before_the_tail_is_known():
    measured = latency(seconds=60.0, precision=0.9)
    assert sum(map(len, measured.seconds)) == MIN_LATENCIES
    assert measured.percentile_ms(99) is not None


def test_latency_has_no_more_samples_than_a_record_should_hold():
    assert sum(map(len, latency(seconds=60.0, precision=1e-9).seconds)) == MAX_LATENCIES


def test_too_few_samples_have_no_tail():
    measured = latency(seconds=1e-6)
    assert sum(map(len, measured.seconds)) == 3
    assert measured.p50_ms > 0
    assert measured.percentile_ms(95) is None
    assert Latency([[0.1] * 9, [0.1] * 11], 0.01).percentile_ms(95) == pytest.approx(100.0)
    assert Latency([[0.1] * 50, [0.1] * 49], 0.01).percentile_ms(99) is None


@pytest.mark.parametrize(("block", "per_image"), [(1.0, True), (0.1, False)])
def test_energy_is_per_image_and_absent_where_the_time_is_too_short_for_the_counter(monkeypatch, block, per_image):
    now = itertools.count(step=block).__next__
    monkeypatch.setattr("time.perf_counter", now)
    joules = itertools.count(100.0).__next__
    found = meter(
        options={"seconds": 20 * block},
        clock=ScriptedClock(itertools.cycle([1.0])),
        steps_per_block=2,
        read_joules=joules,
    )
    measured = Throughput.of(found, 4, 0.01)
    images = 4 * 2 * sum(map(len, found.repeats))
    assert measured.joules_per_img == (len(found.repeats) / images if per_image else None)
