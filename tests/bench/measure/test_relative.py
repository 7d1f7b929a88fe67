"""The statistics of a ratio of ratios, by simulation, and who judges it."""

import math

import numpy as np
import pytest

from bench.measure.paired import Estimate, estimate_log_ratio
from bench.measure.relative import (
    INSIDE_SPREAD,
    PAST_TOLERANCE,
    SESSION_SPREAD,
    PastJury,
    PatientJury,
    judge_sessions,
    relate,
    subtract,
)
from bench.measure.verdicts import LOOKS, Verdict, Witnesses


def session(random, change=0.0, pairs=8, quads=12, pair_spread=0.02, quad_spread=0.04, luck=SESSION_SPREAD):
    """Log-ratios to the reference: with the session's luck, each pair's, each quad's, and now and then an outlier."""
    base = 0.7 + change + random.normal(0, luck)
    pairs_at = base + random.normal(0, pair_spread, (pairs, 1))
    noise = random.normal(0, quad_spread, (pairs, quads))
    return pairs_at + noise + 0.5 * (random.random((pairs, quads)) < 0.03)


def witnesses(log_ratios):
    return Witnesses(estimate_log_ratio(list(log_ratios)))


@pytest.mark.parametrize("pair_spread", [0.0, 0.02])
def test_the_interval_of_the_change_holds_it_as_often_as_it_says(pair_spread):
    random, held, runs = np.random.default_rng(5), 0, 400
    for _ in range(runs):
        base, head = (session(random, change, pair_spread=pair_spread) for change in (0.0, 0.08))
        low, high = relate(witnesses(base), witnesses(head)).wall.interval(0.05)
        held += low <= 0.08 <= high
    assert held / runs >= 0.93


def test_without_the_sessions_luck_the_interval_would_promise_too_much():
    random, held, runs = np.random.default_rng(6), 0, 300
    for _ in range(runs):
        base, head = (session(random, pairs=8, quads=40, pair_spread=0.0, quad_spread=0.01) for _ in range(2))
        low, high = subtract(estimate_log_ratio(list(head)), estimate_log_ratio(list(base)), 0.0).interval(0.05)
        held += low <= 0 <= high
    assert held / runs < 0.7


def judged(random, change):
    past = {"net": witnesses(session(random, pairs=16))}
    jury, pairs = PastJury(past, tolerance=0.05), session(random, change, pairs=16)
    for count in LOOKS:
        jury.look(count, {"net": witnesses(pairs[:count])})
    if "net" not in jury.settled:
        jury.look_last({"net": witnesses(pairs)})
    return jury.settled["net"].verdict


def test_false_alarms_are_rare_and_a_fifth_is_found():
    random, runs = np.random.default_rng(7), 200
    same = [judged(random, 0.0) for _ in range(runs)]
    slower = [judged(random, math.log(1.2)) for _ in range(runs // 4)]
    assert sum(verdict in (Verdict.REGRESSED, Verdict.IMPROVED) for verdict in same) <= 6  # 1% of 200, and its chance
    assert slower.count(Verdict.REGRESSED) >= 0.95 * len(slower)


def test_a_whole_zoo_that_did_not_change_is_told_so():
    """The luck of two sessions must not make every verdict of a long list inconclusive."""
    random, names = np.random.default_rng(8), [f"net{number}" for number in range(10)]
    quiet = {"pairs": 16, "pair_spread": 0.005, "quad_spread": 0.02, "luck": SESSION_SPREAD / 2}
    past, now = ({name: session(random, **quiet) for name in names} for _ in range(2))
    jury = PastJury({name: witnesses(pairs) for name, pairs in past.items()}, PAST_TOLERANCE)
    for count in LOOKS:
        jury.look(count, {name: witnesses(pairs[:count]) for name, pairs in now.items()})
    jury.look_last({name: witnesses(pairs) for name, pairs in now.items()})
    assert [judgement.verdict for judgement in jury.settled.values()].count(Verdict.UNCHANGED) >= 9


def test_in_one_process_a_twentieth_can_be_told_from_nothing():
    """The tolerance that a test asks for is within reach of what sessions inside the tests' process differ by."""
    sure = {"net": Witnesses(Estimate(0.7, 0.003, 18.0, 16, 300))}
    inside, outside = (PastJury(sure, tolerance=0.05, session_spread=each) for each in (INSIDE_SPREAD, SESSION_SPREAD))
    for jury, verdict in ((inside, Verdict.UNCHANGED), (outside, Verdict.INCONCLUSIVE)):
        jury.look_last({"net": Witnesses(Estimate(0.71, 0.003, 18.0, 16, 300))})
        assert jury.settled["net"].verdict is verdict


def test_the_difference_of_two_estimates():
    base, head = Estimate(0.5, 0.03, 7.0, 8, 80), Estimate(0.6, 0.04, 5.0, 6, 70)
    change = subtract(head, base, 0.0)
    assert change.log_ratio == pytest.approx(0.1)
    assert change.standard_error == pytest.approx(0.05)
    assert change.degrees == pytest.approx(0.05**4 / (0.04**4 / 5 + 0.03**4 / 7))  # Welch
    assert (change.pairs, change.quads) == (6, 150)
    assert subtract(head, base, 0.01).standard_error == pytest.approx(math.hypot(0.05, 0.01, 0.01))
    assert subtract(head, base, 0.01).degrees > change.degrees  # what is known needs no estimating


def test_one_pair_on_either_side_settles_nothing():
    lone, many = Estimate(0.5, math.inf, 0.0, 1, 9), Estimate(0.9, 0.01, 7.0, 8, 90)
    for base, head in ((lone, many), (many, lone)):
        told = judge_sessions(
            {"net": Witnesses(base)}, {"net": Witnesses(head)}, tolerance=0.05, session_spread=SESSION_SPREAD
        )["net"]
        assert told.verdict is Verdict.INCONCLUSIVE
        assert told.low is None
        assert "one pair" in told.reason


def test_a_second_witness_needs_both_sessions():
    sure = Estimate(0.5, 0.01, 7.0, 8, 90)
    assert relate(Witnesses(sure), Witnesses(sure, sure)).cpu is None
    assert relate(Witnesses(sure, sure), Witnesses(sure, sure)).cpu.log_ratio == 0


def test_a_patient_jury_waits():
    jury, sure = PatientJury(), {"net": Witnesses(Estimate(2.0, 0.001, 7.0, 8, 90))}
    jury.look(next(iter(LOOKS)), sure)
    jury.look_last(sure)
    assert jury.settled == {}
