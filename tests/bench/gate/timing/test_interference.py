"""What counts as a disturbance: by hand, from counters as the system has them."""

import dataclasses
import itertools

import pytest

from bench.disturbance import CpuUse, read_cpu_counters
from bench.gate.timing.interference import Interference, Notice

CORES = 4
START = CpuUse(seconds=100.0, busy=50.0, own=5.0, steal=1.0, throttled=3, frequency_ghz=3.0, cores=CORES, quota=CORES)
FOUR_BLOCKS_SECONDS = 0.1


def later(**more):
    """The counters four blocks later, in which one core worked for us and nothing else happened, but for ``more``."""
    quiet = {"seconds": FOUR_BLOCKS_SECONDS, "busy": FOUR_BLOCKS_SECONDS}
    return dataclasses.replace(START, **{key: getattr(START, key) + value for key, value in (quiet | more).items()})


@pytest.mark.parametrize(
    ("more", "flags"),
    [
        ({}, set()),
        ({"frequency_ghz": -0.2}, set()),  # a turbo's usual hunting
        ({"frequency_ghz": -0.4}, {"frequency"}),
        ({"frequency_ghz": +0.4}, {"frequency"}),
        ({"busy": FOUR_BLOCKS_SECONDS * (1 + 0.5 * CORES)}, {"load"}),
        (
            {"busy": FOUR_BLOCKS_SECONDS * (1 + 0.5 * CORES), "own": 0.5 * FOUR_BLOCKS_SECONDS * CORES},
            set(),
        ),  # by ourselves
        ({"steal": 0.5 * FOUR_BLOCKS_SECONDS * CORES}, {"steal"}),
        ({"throttled": 1}, {"throttled"}),
    ],
)
def test_what_marks_four_blocks(more, flags):
    assert Interference().add(START, later(**more), FOUR_BLOCKS_SECONDS) == flags


def test_a_system_without_a_known_frequency_has_none_that_moved():
    unknown = dataclasses.replace(later(), frequency_ghz=None)
    interference = Interference()
    assert interference.add(START, unknown, FOUR_BLOCKS_SECONDS) == set()
    assert interference.add(unknown, unknown, 0.0) == set()
    assert interference.notices() == []


def test_a_slow_drift_is_noticed_over_the_pair_where_no_four_blocks_show_it():
    interference = Interference()
    clocks = [3.0, 2.9, 2.8, 2.7, 2.6]
    for before, after in itertools.pairwise(clocks):
        moments = [dataclasses.replace(START, frequency_ghz=each) for each in (before, after)]
        moments[1] = dataclasses.replace(moments[1], seconds=START.seconds + FOUR_BLOCKS_SECONDS)
        assert interference.add(*moments, 0.0) == set()
    assert interference.notices() == [Notice("frequency", "the processor's clock moved between 2.60 and 3.00 GHz")]


def test_a_little_load_all_the_time_is_noticed_over_the_pair():
    interference = Interference()
    for _ in range(20):
        interference.add(START, later(busy=FOUR_BLOCKS_SECONDS * (1 + 0.2 * CORES)), FOUR_BLOCKS_SECONDS)
    (notice,) = interference.notices()
    assert notice == Notice("load", "other processes used 20% of the CPU time of our cores")


def test_counters_of_cores_are_read_where_they_are_numbers(tmp_path):
    for core, content in enumerate(("2600000\n", "<unknown>\n", "3100000\n")):
        (tmp_path / f"cpu{core}" / "cpufreq").mkdir(parents=True)
        (tmp_path / f"cpu{core}" / "cpufreq" / "scaling_cur_freq").write_text(content)
    (tmp_path / "cpu3").mkdir()
    assert sorted(read_cpu_counters("cpufreq/scaling_cur_freq", tmp_path)) == [2600000, 3100000]
    assert read_cpu_counters("thermal_throttle/core_throttle_count", tmp_path) == []
