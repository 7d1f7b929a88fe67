"""What counts as a disturbance: by hand, from counters as the system tells them."""

import dataclasses
import itertools
import os

import pytest

from bench.environment import CpuUse, read_cpu_counters
from bench.measure.interference import Interference, Notice, momentary_flags

CORES = os.cpu_count() or 1
START = CpuUse(seconds=100.0, busy=50.0, own=5.0, steal=1.0, throttled=3, frequency_ghz=3.0)
QUAD_SECONDS = 0.1


def later(**more):
    """The counters a quad later, in which one core worked for us and nothing else happened, but for ``more``."""
    quiet = {"seconds": QUAD_SECONDS, "busy": QUAD_SECONDS}
    return dataclasses.replace(START, **{key: getattr(START, key) + value for key, value in (quiet | more).items()})


@pytest.mark.parametrize(
    ("more", "flags"),
    [
        ({}, set()),
        ({"frequency_ghz": -0.2}, set()),  # a turbo's usual hunting
        ({"frequency_ghz": -0.4}, {"frequency"}),
        ({"frequency_ghz": +0.4}, {"frequency"}),
        ({"busy": QUAD_SECONDS * (1 + 0.5 * CORES)}, {"load"}),
        ({"busy": QUAD_SECONDS * (1 + 0.5 * CORES), "own": 0.5 * QUAD_SECONDS * CORES}, set()),  # by ourselves
        ({"steal": 0.5 * QUAD_SECONDS * CORES}, {"steal"}),
        ({"throttled": 1}, {"throttled"}),
    ],
)
def test_what_marks_a_quad(more, flags):
    assert momentary_flags(START, later(**more), QUAD_SECONDS) == flags


def test_a_system_that_tells_no_frequency_has_none_that_moved():
    untold = dataclasses.replace(later(), frequency_ghz=None)
    assert momentary_flags(START, untold, QUAD_SECONDS) == set()
    interference = Interference()
    interference.add(untold, untold, 0.0)
    assert interference.notices() == []


def test_a_slow_drift_is_told_of_the_pair_where_no_quad_shows_it():
    interference = Interference()
    clocks = [3.0, 2.9, 2.8, 2.7, 2.6]
    for before, after in itertools.pairwise(clocks):
        moments = [dataclasses.replace(START, frequency_ghz=each) for each in (before, after)]
        moments[1] = dataclasses.replace(moments[1], seconds=START.seconds + QUAD_SECONDS)
        assert momentary_flags(*moments, 0.0) == set()
        interference.add(*moments, 0.0)
    assert interference.notices() == [Notice("frequency", "the processor's clock moved between 2.60 and 3.00 GHz")]


def test_a_little_load_in_every_quad_is_told_of_the_pair():
    interference = Interference()
    for _ in range(20):
        interference.add(START, later(busy=QUAD_SECONDS * (1 + 0.2 * CORES)), QUAD_SECONDS)
    (notice,) = interference.notices()
    assert notice == Notice("load", "other processes used 20% of the machine's CPU time")


def test_counters_of_cores_are_read_as_far_as_they_tell_numbers(tmp_path):
    for core, told in enumerate(("2600000\n", "<unknown>\n", "3100000\n")):
        (tmp_path / f"cpu{core}" / "cpufreq").mkdir(parents=True)
        (tmp_path / f"cpu{core}" / "cpufreq" / "scaling_cur_freq").write_text(told)
    (tmp_path / "cpu3").mkdir()
    assert sorted(read_cpu_counters("cpufreq/scaling_cur_freq", tmp_path)) == [2600000, 3100000]
    assert read_cpu_counters("thermal_throttle/core_throttle_count", tmp_path) == []
