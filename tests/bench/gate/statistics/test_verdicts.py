"""Verdicts: what the intervals mean, over models, clocks and looks."""

import math

import numpy as np
import pytest

from bench.gate.statistics.paired import Estimate
from bench.gate.statistics.verdicts import (
    ALPHA,
    CHANGED,
    LOOKS,
    MISSED,
    Clocks,
    SequentialTest,
    Verdict,
    format_level,
    judge,
)

ONE_PAIR = Estimate(0.3, math.inf, 0.0, 1)


def estimate(log_ratio, error=0.005, degrees=7.0):
    return Estimate(log_ratio, error, degrees, pairs=8)


def judged(wall, cpu=None, tolerance=0.05, **options):
    return judge({"net": Clocks(wall, cpu)}, {}, tolerance=tolerance, **options)["net"]


@pytest.mark.parametrize(
    ("wall", "cpu", "expected"),
    [
        (estimate(0.0), None, Verdict.UNCHANGED),
        (estimate(0.10), None, Verdict.REGRESSED),
        (estimate(-0.10), None, Verdict.IMPROVED),
        (estimate(0.03, 0.002), None, Verdict.SLOWER),  # certainly slower, and certainly by less than 5%
        (estimate(-0.03, 0.002), None, Verdict.FASTER),
        (estimate(0.049, 0.002), None, Verdict.REGRESSED),  # certainly slower, perhaps by more than 5%
        (estimate(-0.049, 0.002), None, Verdict.IMPROVED),
        (estimate(0.03, 0.03), None, Verdict.INCONCLUSIVE),
        (estimate(0.02, 0.01), None, Verdict.UNCHANGED),  # smaller than 5%, but not certainly a change
        (estimate(0.10), estimate(0.10), Verdict.REGRESSED),
        (estimate(0.10), estimate(0.0), Verdict.INCONCLUSIVE),  # others took the processor
        (estimate(0.10), estimate(-0.10), Verdict.INCONCLUSIVE),
        (estimate(0.10, 0.1), estimate(0.10), Verdict.INCONCLUSIVE),
        (estimate(0.0), estimate(0.0, 0.1), Verdict.INCONCLUSIVE),
        (estimate(0.02, 0.001), estimate(0.045, 0.004), Verdict.SLOWER),  # the wall time's interval is what is shown
        (estimate(-0.10), estimate(-0.10), Verdict.IMPROVED),
        (ONE_PAIR, None, Verdict.INCONCLUSIVE),
    ],
)
def test_verdict(wall, cpu, expected):
    judgement = judged(wall, cpu)
    assert judgement.verdict is expected
    assert judgement.reason


@pytest.mark.parametrize("change", [-0.2, -0.06, -0.05, -0.03, 0.0, 0.01, 0.03, 0.05, 0.07, 0.3])
@pytest.mark.parametrize("error", [0.0005, 0.002, 0.005, 0.01, 0.03])
def test_the_verdict_agrees_with_the_interval_that_is_shown(change, error):
    """Whoever reads the table finds in the interval what the verdict says."""
    judgement = judged(estimate(math.log1p(change), error))
    zero_inside, reaches_up, reaches_down = (
        judgement.low <= 0 <= judgement.high,
        judgement.high >= 0.05,
        judgement.low <= math.expm1(-math.log1p(0.05)),
    )
    expected = {
        Verdict.REGRESSED: not zero_inside and judgement.low > 0 and reaches_up,
        Verdict.IMPROVED: not zero_inside and judgement.high < 0 and reaches_down,
        Verdict.SLOWER: judgement.low > 0 and not reaches_up,
        Verdict.FASTER: judgement.high < 0 and not reaches_down,
        Verdict.UNCHANGED: not reaches_up and not reaches_down,
        Verdict.INCONCLUSIVE: zero_inside and (reaches_up or reaches_down),
    }
    assert expected[judgement.verdict]


@pytest.mark.parametrize("change", [0.03, -0.03])
def test_a_change_within_the_tolerance_is_called_by_one_word_however_well_it_is_measured(change):
    """Once the measurement is good enough to exclude the tolerance, more of it does not change the verdict."""
    verdicts = {judged(estimate(change, error)).verdict for error in (0.004, 0.003, 0.002, 0.001, 0.0001)}
    assert verdicts == {Verdict.SLOWER if change > 0 else Verdict.FASTER}
    reason = judged(estimate(change, 0.001)).reason
    assert reason.endswith("by 3.0%, within the tolerance of 5%")


def test_a_judgement_has_its_interval_as_shares_with_its_level():
    judgement = judged(estimate(np.log(1.1), 0.005))
    assert judgement.change == pytest.approx(0.1)
    assert judgement.low < 0.1 < judgement.high
    assert judgement.level == ALPHA
    assert f"the {format_level(ALPHA)} interval lies above zero" in judgement.reason
    assert 0 < judgement.detectable < 0.05
    assert judgement.cpu_change is None
    lone = judged(ONE_PAIR)
    assert lone.low is lone.high is lone.detectable is None


@pytest.mark.parametrize(("level", "text"), [(0.01, "99%"), (0.1, "90%"), (0.002, "99.8%"), (0.002 / 3, "99.93%")])
def test_the_confidence_of_a_level(level, text):
    assert format_level(level) == text


def test_an_interval_off_the_centre_is_not_called_wide():
    reason = judged(estimate(0.048, 0.0195)).reason
    assert "holds zero and does not lie within ±5%" in reason


def test_more_models_need_stronger_evidence():
    weak = estimate(0.12, 0.0195)
    alpha = 1.5 * Clocks(weak).p_value  # enough for one model, not for the weakest of many
    assert judged(weak, alpha=alpha).verdict is Verdict.REGRESSED
    others = {f"other{number}": Clocks(estimate(0.0)) for number in range(9)}
    among = judge({"net": Clocks(weak)} | others, {}, tolerance=0.05, alpha=alpha)
    assert among["net"].verdict is Verdict.INCONCLUSIVE
    assert among["net"].level == pytest.approx(alpha / 10)
    assert judged(weak, alpha=alpha, models=10).level == pytest.approx(alpha / 10)


def test_more_models_make_it_no_harder_to_call_one_unchanged():
    evidence = estimate(0.0, 0.02)  # certain enough for one
    assert judged(evidence).verdict is Verdict.UNCHANGED
    assert judged(evidence).level == pytest.approx(2 * MISSED)
    many = {f"net{number}": Clocks(evidence) for number in range(20)}
    assert {each.verdict for each in judge(many, {}, tolerance=0.05).values()} == {Verdict.UNCHANGED}


def test_a_change_found_earlier_hands_its_share_on_and_no_change_does_not():
    evidence = {name: Clocks(estimate(0.0, 0.05)) for name in "ab"}
    for settled, level in (
        (Verdict.REGRESSED, ALPHA),
        (Verdict.SLOWER, ALPHA),
        (Verdict.UNCHANGED, ALPHA / 2),
    ):
        after = judge(evidence, {"b": settled}, tolerance=0.05)
        assert after.keys() == {"a"}
        assert after["a"].level == pytest.approx(level)


@pytest.mark.parametrize("looks", [0, 1, 2, 3])
def test_the_last_look_takes_all_of_the_error_that_is_left(looks):
    undecided = {"net": Clocks(estimate(0.03, 0.03))}
    test = SequentialTest(1, 0.05)
    for pairs in range(1, 1 + sorted([*LOOKS, 0])[looks]):
        test.look(pairs, undecided)
    test.look_last(undecided)
    spent = sum(list(LOOKS.values())[:looks])
    assert test.settled["net"].level == pytest.approx((1 - spent) * ALPHA)
    assert 0 < spent < 1 or not looks


def test_what_is_not_clear_yet_is_not_settled_early():
    first = min(LOOKS)
    cases = {
        "clearly regressed": (estimate(0.1, 0.001), Verdict.REGRESSED),
        "regressed, perhaps only slower": (estimate(0.045, 0.002), None),
        "slower": (estimate(0.02, 0.0005), Verdict.SLOWER),
        "unchanged": (estimate(0.0002, 0.001), Verdict.UNCHANGED),
        "unchanged, perhaps slower": (estimate(0.004, 0.001), None),
        "open": (estimate(0.03, 0.03), None),
    }
    for name, (wall, expected) in cases.items():
        for settles_small in (True, False):
            test = SequentialTest(1, 0.05, settles_small=settles_small)
            test.look(first - 1, {name: Clocks(wall)})
            assert not test.settled  # that is no look
            test.look(first, {name: Clocks(wall)})
            found = test.settled[name].verdict if test.settled else None
            assert found == (expected if settles_small or expected is Verdict.REGRESSED else None), name


def run_calls(calls, of_pairs, change=0.0, models=1, seed=0, pairs=16):
    """Verdicts of simulated calls with all their looks, and the pairs that each took."""
    random = np.random.default_rng(seed)
    verdicts, lengths = [], []
    for _ in range(calls):
        means = change + random.normal(0, math.hypot(of_pairs, 0.02 / math.sqrt(20)), (models, pairs))
        test = SequentialTest(models, tolerance=0.05)
        for count in [*LOOKS, pairs]:
            errors = means[:, :count].std(axis=1, ddof=1) / math.sqrt(count)
            seen = zip(means[:, :count].mean(axis=1), errors, strict=True)
            clocks = {str(m): Clocks(Estimate(*each, count - 1.0, count)) for m, each in enumerate(seen)}
            test.look(count, clocks)
            if len(test.settled) == models:
                break
        test.look_last(clocks)
        verdicts.append({each.verdict for each in test.settled.values()})
        lengths.append(count)
    return verdicts, lengths


def test_identical_code_is_called_changed_as_rarely_as_promised(monkeypatch):
    """At a level of 5%, where a simulation of seconds can show it; three looks and two models do not raise it."""
    monkeypatch.setattr("bench.gate.statistics.verdicts.ALPHA", 0.05)
    verdicts, _ = run_calls(400, 0.03, models=2)
    assert sum(bool(each & CHANGED) for each in verdicts) <= 31  # of 400 at 5%: more than 31 has a chance of 1%


@pytest.mark.parametrize("of_pairs", [0.01, 0.03])
def test_a_change_of_the_tolerance_is_hardly_ever_called_small_in_spite_of_the_looks(of_pairs):
    verdicts, _ = run_calls(200, of_pairs, change=np.log(1.05))
    missed = sum(bool(each & {Verdict.UNCHANGED, Verdict.SLOWER}) for each in verdicts)
    assert missed <= 16  # of 200 at 5%: more than 16 has a chance of 2%


@pytest.mark.parametrize(("change", "least"), [(0.02, 0.8), (0.03, 0.8), (0.05, 0.95)])
def test_small_changes_are_found_on_a_quiet_machine(change, least):
    verdicts, _ = run_calls(100, 0.006, change=np.log1p(change))
    assert sum(each <= {Verdict.REGRESSED, Verdict.SLOWER} for each in verdicts) >= 100 * least


def test_clear_cases_end_early():
    verdicts, lengths = run_calls(60, 0.003, change=np.log(1.1))
    assert all(each == {Verdict.REGRESSED} for each in verdicts)
    assert np.mean(lengths) < 6
    verdicts, lengths = run_calls(60, 0.003)
    assert all(each == {Verdict.UNCHANGED} for each in verdicts)
    assert np.mean(lengths) < 7
