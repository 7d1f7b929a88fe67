"""The statistics of a ratio of ratios, by simulation."""

import math

import numpy as np
import pytest

from bench.gate.statistics.paired import Estimate, estimate_log_ratio
from bench.gate.statistics.sessions import SESSION_SPREAD, session_ratio, subtract
from bench.gate.statistics.verdicts import CHANGED, LOOKS, Clocks, SequentialTest, Verdict, judge


def session(random, change=0.0, pairs=8, blocks=12, pair_spread=0.02, block_spread=0.04, spread=SESSION_SPREAD):
    """Log-ratios to the reference: what the session adds, each pair, each four blocks, and now and then an outlier."""
    base = 0.7 + change + random.normal(0, spread)
    pairs_at = base + random.normal(0, pair_spread, (pairs, 1))
    noise = random.normal(0, block_spread, (pairs, blocks))
    return pairs_at + noise + 0.5 * (random.random((pairs, blocks)) < 0.03)


def clocks(log_ratios):
    return Clocks(estimate_log_ratio(list(log_ratios)))


@pytest.mark.parametrize("pair_spread", [0.0, 0.02])
@pytest.mark.parametrize("pairs", [4, 8])
def test_the_interval_of_the_change_holds_it_as_often_as_it_says(pair_spread, pairs):
    random, held, runs = np.random.default_rng(5), 0, 400
    for _ in range(runs):
        base, head = (session(random, change, pair_spread=pair_spread, pairs=pairs) for change in (0.0, 0.08))
        low, high = session_ratio(clocks(base), clocks(head)).wall.interval(0.05)
        held += low <= 0.08 <= high
    assert held / runs >= 0.93


def test_skewed_pairs_do_not_narrow_the_interval():
    """A network cannot be swapped with the reference, so its pairs may be skewed; sessions of unlike length differ."""
    random, held, runs = np.random.default_rng(9), 0, 600
    for _ in range(runs):
        base, head = (random.normal(0, SESSION_SPREAD) + 0.01 * random.lognormal(0, 1, (pairs, 1)) for pairs in (16, 5))
        low, high = session_ratio(clocks(base), clocks(head)).wall.interval(0.05)
        held += low <= 0 <= high
    assert held / runs >= 0.95 - 2.5 * math.sqrt(0.05 * 0.95 / runs)


def test_without_the_spread_of_sessions_the_interval_would_promise_too_much():
    random, held, runs = np.random.default_rng(6), 0, 300
    for _ in range(runs):
        base, head = (session(random, pairs=8, blocks=40, pair_spread=0.0, block_spread=0.01) for _ in range(2))
        low, high = subtract(estimate_log_ratio(list(head)), estimate_log_ratio(list(base)), 0.0).interval(0.05)
        held += low <= 0 <= high
    assert held / runs < 0.7


def judge_head(past, pairs, tolerance):
    """As a call that measures ``pairs`` against a baseline, look by look."""
    test = SequentialTest(len(past), tolerance, settles_small=False)
    for count in LOOKS:
        test.look(count, {name: session_ratio(past[name], clocks(each[:count])) for name, each in pairs.items()})
    test.look_last({name: session_ratio(past[name], clocks(each)) for name, each in pairs.items()})
    return [test.settled[name].verdict for name in past]


def test_false_alarms_are_rare_and_a_fifth_is_found():
    random, runs = np.random.default_rng(7), 200

    def verdict(change):
        past = {"net": clocks(session(random, pairs=16))}
        return judge_head(past, {"net": session(random, change, pairs=16)}, 0.05)[0]

    same = [verdict(0.0) for _ in range(runs)]
    slower = [verdict(math.log(1.2)) for _ in range(runs // 4)]
    assert sum(each in CHANGED for each in same) <= 2  # of 200 at 0.2%: more than 2 has a chance of 0.8%
    assert slower.count(Verdict.REGRESSED) >= 0.95 * len(slower)


def test_a_whole_zoo_that_did_not_change_is_called_unchanged():
    """What two sessions add must not make every verdict of a long list inconclusive."""
    random, names = np.random.default_rng(8), [f"net{number}" for number in range(10)]
    quiet = {"pairs": 16, "pair_spread": 0.005, "block_spread": 0.02, "spread": SESSION_SPREAD / 2}
    past, now = ({name: session(random, **quiet) for name in names} for _ in range(2))
    verdicts = judge_head({name: clocks(pairs) for name, pairs in past.items()}, now, 0.05)
    assert verdicts.count(Verdict.UNCHANGED) >= 9


def test_five_percent_can_be_told_from_nothing():
    """The tolerance is within reach of what sessions differ by; of twice that it would not be."""
    past, now = (Clocks(Estimate(log_ratio, 0.003, 15.0, 16)) for log_ratio in (0.7, 0.71))
    for spread, verdict in ((SESSION_SPREAD, Verdict.UNCHANGED), (2 * SESSION_SPREAD, Verdict.INCONCLUSIVE)):
        assert judge({"net": session_ratio(past, now, spread)}, {}, tolerance=0.05)["net"].verdict is verdict


def test_the_difference_of_two_estimates():
    base, head = Estimate(0.5, 0.03, 7.0, 8), Estimate(0.6, 0.04, 5.0, 6)
    change = subtract(head, base, 0.0)
    assert change.log_ratio == pytest.approx(0.1)
    assert change.standard_error == pytest.approx(0.05)
    assert change.degrees == pytest.approx(0.05**4 / (0.04**4 / 5 + 0.03**4 / 7))  # Welch
    assert change.pairs == 6
    assert subtract(head, base, 0.01).standard_error == pytest.approx(math.hypot(0.05, 0.01, 0.01))
    assert subtract(head, base, 0.01).degrees > change.degrees  # what is known needs no estimating


def test_one_pair_on_either_side_settles_nothing():
    lone, many = Estimate(0.5, math.inf, 0.0, 1), Estimate(0.9, 0.01, 7.0, 8)
    for base, head in ((lone, many), (many, lone)):
        judgement = judge({"net": session_ratio(Clocks(base), Clocks(head))}, {}, tolerance=0.05)["net"]
        assert judgement.verdict is Verdict.INCONCLUSIVE
        assert judgement.low is None
        assert "single pair" in judgement.reason


def test_a_second_clock_needs_both_sessions():
    sure = Estimate(0.5, 0.01, 7.0, 8)
    assert session_ratio(Clocks(sure), Clocks(sure, sure)).cpu is None
    assert session_ratio(Clocks(sure, sure), Clocks(sure, sure)).cpu.log_ratio == 0
