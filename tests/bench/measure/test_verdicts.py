"""Verdicts: what the intervals come to, over models, witnesses and looks."""

import numpy as np
import pytest

from bench.measure.paired import Estimate, estimate_log_ratio
from bench.measure.verdicts import ALPHA, LAST_SHARE, LOOKS, MISSED, Jury, Verdict, Witnesses, judge


def estimate(log_ratio, error=0.005, degrees=7.0):
    return Estimate(log_ratio, error, degrees, pairs=8, quads=160)


def verdict(wall, cpu=None, tolerance=0.05):
    return judge({"net": Witnesses(wall, cpu)}, {}, tolerance=tolerance)["net"]


@pytest.mark.parametrize(
    ("wall", "cpu", "expected"),
    [
        (estimate(0.0), None, Verdict.UNCHANGED),
        (estimate(0.10), None, Verdict.REGRESSED),
        (estimate(-0.10), None, Verdict.IMPROVED),
        (estimate(0.03, 0.002), None, Verdict.UNCHANGED),  # certainly slower, and certainly by less than 5%
        (estimate(0.049, 0.002), None, Verdict.REGRESSED),  # certainly slower, by perhaps more than 5%
        (estimate(0.03, 0.03), None, Verdict.INCONCLUSIVE),
        (estimate(0.10), estimate(0.10), Verdict.REGRESSED),
        (estimate(0.10), estimate(0.0), Verdict.INCONCLUSIVE),  # others took the processor
        (estimate(0.10), estimate(-0.10), Verdict.INCONCLUSIVE),
        (estimate(0.10, 0.1), estimate(0.10), Verdict.INCONCLUSIVE),
        (estimate(0.0), estimate(0.0, 0.1), Verdict.INCONCLUSIVE),
        (estimate(-0.10), estimate(-0.10), Verdict.IMPROVED),
        (Estimate(0.3, float("inf"), 0.0, 1, 9), None, Verdict.INCONCLUSIVE),
    ],
)
def test_verdict(wall, cpu, expected):
    judged = verdict(wall, cpu)
    assert judged.verdict is expected
    assert judged.reason


def test_a_judgement_tells_its_interval_as_shares():
    judged = verdict(estimate(np.log(1.1), 0.005))
    assert judged.change == pytest.approx(0.1)
    assert judged.low < 0.1 < judged.high
    assert 0 < judged.smallest_change < 0.05
    assert judged.cpu_change is None
    lone = verdict(Estimate(0.3, float("inf"), 0.0, 1, 9))
    assert lone.low is lone.high is lone.smallest_change is None


def test_more_models_need_stronger_evidence():
    weak = estimate(0.08, 0.0195)  # p = 0.0045: enough for one model at 0.01, not for the weakest of many
    assert verdict(weak).verdict is Verdict.REGRESSED
    others = {f"other{number}": Witnesses(estimate(0.0)) for number in range(9)}
    judged = judge({"net": Witnesses(weak)} | others, {}, tolerance=0.05)
    assert judged["net"].verdict is Verdict.INCONCLUSIVE
    assert judged["net"].level == pytest.approx(0.001)
    untimed = judge({"net": Witnesses(weak)}, {}, tolerance=0.05, family=10)
    assert untimed["net"].level == pytest.approx(0.001)


def test_more_models_make_it_no_harder_to_call_one_unchanged():
    evidence = estimate(0.0, 0.02)  # certain enough for one
    assert verdict(evidence).verdict is Verdict.UNCHANGED
    assert verdict(evidence).level == pytest.approx(2 * MISSED)
    many = {f"net{number}": Witnesses(evidence) for number in range(20)}
    assert {each.verdict for each in judge(many, {}, tolerance=0.05).values()} == {Verdict.UNCHANGED}


def test_a_change_found_earlier_hands_its_share_on_and_no_change_does_not():
    evidence = {name: Witnesses(estimate(0.0, 0.05)) for name in "ab"}
    after_change = judge(evidence, {"b": Verdict.REGRESSED}, tolerance=0.05)
    assert after_change.keys() == {"a"}
    assert after_change["a"].level == pytest.approx(0.01)
    after_none = judge(evidence, {"b": Verdict.UNCHANGED}, tolerance=0.05)
    assert after_none["a"].level == pytest.approx(0.005)


def test_looks_share_the_error_that_is_allowed():
    assert sum(LOOKS.values()) + LAST_SHARE == pytest.approx(1)
    assert ALPHA <= 0.01


def run_calls(calls, of_pairs, of_quads, change=0.0, models=1, seed=0):
    """Verdicts of simulated calls with all their looks, and the pairs that each took."""
    random = np.random.default_rng(seed)
    verdicts, lengths = [], []
    for _ in range(calls):
        data = change + random.normal(0, of_pairs, (models, 8, 1)) + random.normal(0, of_quads, (models, 8, 20))
        jury = Jury(models, tolerance=0.05)
        for pairs in range(1, 9):
            witnesses = {str(m): Witnesses(estimate_log_ratio(list(data[m, :pairs]))) for m in range(models)}
            jury.look(pairs, witnesses)
            if len(jury.settled) == models:
                break
        jury.look_last(witnesses)
        verdicts.append({each.verdict for each in jury.settled.values()})
        lengths.append(pairs)
    return verdicts, lengths


@pytest.mark.parametrize("of_pairs", [0.005, 0.05])
def test_identical_code_is_hardly_ever_called_changed_in_spite_of_the_looks(of_pairs):
    verdicts, _ = run_calls(150, of_pairs, 0.02, models=2)
    false_alarms = sum(bool(each & {Verdict.REGRESSED, Verdict.IMPROVED}) for each in verdicts)
    assert false_alarms <= 4  # of 150 at 1%: more than 4 has a chance of 2%


@pytest.mark.parametrize("of_pairs", [0.01, 0.03])
def test_a_change_of_the_tolerance_is_hardly_ever_called_unchanged_in_spite_of_the_looks(of_pairs):
    verdicts, _ = run_calls(200, of_pairs, 0.02, change=np.log(1.05))
    missed = sum(Verdict.UNCHANGED in each for each in verdicts)
    assert missed <= 16  # of 200 at 5%: more than 16 has a chance of 2%


def test_on_a_quiet_machine_five_percent_is_found_and_the_call_ends_early():
    verdicts, lengths = run_calls(100, 0.006, 0.02, change=np.log(1.05))
    assert sum(each == {Verdict.REGRESSED} for each in verdicts) >= 80
    assert np.mean(lengths) < 7
    same, lengths = run_calls(60, 0.003, 0.02)
    assert all(each == {Verdict.UNCHANGED} for each in same)
    assert np.mean(lengths) < 6
