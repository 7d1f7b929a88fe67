"""A flag marks what moves a number by more than its interval, and nothing else."""

import pytest
import torch

from bench.disturbance import CpuUse
from bench.timing.contention import TRAINING_LIMIT, Contention, find_disturbances, run_delay_seconds

QUIET = [[1.0, 1.001, 0.999]] * 5
NARROW, WIDE = (99.5, 100.5), (90.0, 110.0)


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def contention(run_delay=0.0, foreign=0.0, steal=0.0, throttled=0):
    """Over two repeats of five seconds each, so that two threads have 20 seconds; on four cores."""
    found = Contention()
    for k in range(2):
        before = CpuUse(10.0 * k, 0.0, 0.0, 0.0, 0, cores=4, quota=4)
        after = CpuUse(10.0 * k + 5, 10.0 + foreign / 2, 10.0, steal / 2, throttled, cores=4, quota=4)
        found.add(before, after, None if run_delay is None else run_delay / 2)
    return found


def kinds(found, interval=NARROW, precision=0.01, repeats=QUIET):
    return [flag.kind for flag in find_disturbances(found, "measure_infer", interval, precision, repeats)]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({}, []),
        ({"run_delay": 0.19}, []),  # 0.95%: less than the precision asked for
        ({"run_delay": 0.25}, ["load"]),
        ({"steal": 0.1}, []),
        ({"steal": 0.4}, ["steal"]),
        ({"throttled": 1}, ["throttling"]),
        ({"run_delay": 2.0, "steal": 2.0}, ["load", "steal"]),
        ({"foreign": 10.0}, []),  # on cores that were idle: nobody waited
    ],
)
def test_a_loss_counts_where_it_is_larger_than_the_interval(losses, expected):
    assert kinds(contention(**losses)) == expected


def test_what_an_interval_covers_already_is_no_flag():
    assert kinds(contention(run_delay=1.6), NARROW) == ["load"]  # 8%
    assert kinds(contention(run_delay=1.6), WIDE) == []  # within ±10%


@pytest.mark.parametrize(("foreign", "expected"), [(19.0, []), (21.0, ["load"])])
def test_without_the_scheduler_s_word_others_count_beyond_the_idle_cores(foreign, expected):
    assert kinds(contention(run_delay=None, foreign=foreign)) == expected


def test_a_flag_names_the_loss_and_the_interval():
    (flag,) = find_disturbances(contention(run_delay=1.0), "measure_infer", NARROW, 0.01, QUIET)
    assert flag.phase == "measure_infer"
    assert "5.0% of the time" in flag.message
    assert "±0.5%" in flag.message


def test_training_is_flagged_where_a_tenth_of_its_time_was_lost():
    lost = [contention(run_delay=each).flags("train", TRAINING_LIMIT, "above 10%") for each in (1.9, 2.1)]
    assert [[flag.kind for flag in flags] for flags in lost] == [[], ["load"]]


def test_blocks_that_spread_widely_are_named_where_the_number_is_not_precise():
    blocks = [[0.8, 1.0, 1.2, 1.4]] * 5
    assert kinds(contention(), WIDE, 0.01, blocks) == ["spread"]
    assert kinds(contention(), WIDE, 0.2, blocks) == []  # as precise as asked
    assert kinds(contention(), WIDE, 0.01, QUIET) == []


def test_real_counters_are_read_around_a_repeat():
    found = Contention()
    with found:
        torch.randn(300, 300) @ torch.randn(300, 300)
    assert found.waited >= 0
    assert found.stolen >= 0


def test_the_scheduler_s_delays_are_added_over_threads(tmp_path):
    for thread, text in (("1", "5 1500000000 3"), ("2", "7 500000000 1"), ("3", "gone")):
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "schedstat").write_text(text)
    assert run_delay_seconds(tmp_path) == 2.0
    assert run_delay_seconds(tmp_path / "nothing") is None
