"""The rule by which records support a claim, on values whose answers are known."""

import json
import math

import pytest
from scipy import stats

from bench.errors import RecordError
from bench.records import save_record, study_path
from reports.data.loading import load_results
from reports.data.statistics import student_interval
from reports.data.study import NOT_SUPPORTED, SUPPORTED, UNDECIDED, Comparison, judge, load_study, overall, values_of


def comparison(metric="test_top1", margin=0.0, ratio=False):
    return Comparison(claim="a is better", better="a", than="b", metric=metric, ratio=ratio, margin=margin)


def verdict(a, b, metric="test_top1", **settings):
    return judge(comparison(metric, **settings), {"a": {metric: a}, "b": {metric: b}})


@pytest.mark.parametrize(
    ("a", "b", "margin", "expected"),
    [
        ([0.90, 0.91, 0.92], [0.80, 0.81, 0.82], 0.0, SUPPORTED),
        ([0.80, 0.81, 0.82], [0.90, 0.91, 0.92], 0.0, NOT_SUPPORTED),
        ([0.90, 0.91, 0.92], [0.89, 0.90, 0.92], 0.0, UNDECIDED),
        ([0.90, 0.91, 0.92], [0.80, 0.81, 0.82], 0.2, NOT_SUPPORTED),  # better, but by less than is claimed
        ([0.90, 0.91, 0.92], [0.80, 0.81, 0.82], 0.1, UNDECIDED),
        ([0.799, 0.800, 0.801], [0.804, 0.805, 0.806], -0.02, SUPPORTED),  # worse, but by less than is allowed
        ([0.90], [0.10], 0.0, UNDECIDED),  # one seed
        ([0.90], [0.10, 0.11, 0.12], 0.0, UNDECIDED),
        ([], [0.10, 0.11], 0.0, UNDECIDED),
    ],
)
def test_the_whole_interval_decides(a, b, margin, expected):
    assert verdict(a, b, margin=margin).verdict == expected


def test_the_interval_is_that_of_scipy():
    a, b = [0.90, 0.91, 0.93], [0.80, 0.81, 0.86]
    found = verdict(a, b)
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert (found.effect, found.low, found.high) == pytest.approx((0.09, interval.low, interval.high))
    swapped = judge(comparison(), {"b": {"test_top1": a}, "a": {"test_top1": b}})
    assert (swapped.effect, swapped.low, swapped.high) == pytest.approx((-0.09, -interval.high, -interval.low))


def test_less_of_what_is_bad_is_better():
    found = verdict([1.0, 1.1], [2.0, 2.1], "test_loss")
    assert found.effect == pytest.approx(1.0)
    assert verdict([5.0, 5.0], [40.0, 40.0], "macs", ratio=True, margin=7.9).verdict == SUPPORTED
    assert verdict([40.0, 40.0], [5.0, 5.0], "macs", ratio=True, margin=1.0).verdict == NOT_SUPPORTED


def test_counts_need_no_second_seed_and_a_ratio_is_of_geometric_means():
    found = verdict([5.0], [40.0], "macs", ratio=True, margin=8.0)
    assert (found.effect, found.low, found.high) == pytest.approx((8.0, 8.0, 8.0))
    assert found.verdict == NOT_SUPPORTED  # at the margin is not above it
    speeds = verdict([200.0, 800.0], [100.0, 400.0], "throughput_img_per_s", ratio=True, margin=1.0)
    assert speeds.effect == pytest.approx(2.0)
    assert speeds.verdict == UNDECIDED
    assert verdict([0.0, 1.0], [1.0, 2.0], "throughput_img_per_s", ratio=True, margin=1.0).verdict == UNDECIDED


def test_a_study_is_what_all_its_comparisons_are():
    yes, no, open_ = (
        verdict([0.9, 0.91], [0.1, 0.11]),
        verdict([0.1, 0.11], [0.9, 0.91]),
        verdict([0.9], [0.1]),
    )
    assert overall([yes, yes]) == SUPPORTED
    assert overall([yes, open_]) == UNDECIDED
    assert overall([yes, open_, no]) == NOT_SUPPORTED


def test_students_interval_is_that_of_scipy():
    values = [0.71, 0.74, 0.78, 0.70]
    ends = stats.t.interval(0.95, 3, loc=sum(values) / 4, scale=stats.sem(values))
    assert student_interval(values) == pytest.approx((sum(values) / 4, *ends))
    assert student_interval([0.5])[0] == 0.5
    assert all(map(math.isnan, [*student_interval([0.5])[1:], *student_interval([])]))


CONTENT = {
    "schema_version": 1, "name": "mirrors", "title": "Mirrors", "claim": "c", "source": "s", "cost": "c", "part": {},
    "variants": [
        {"name": "a", "changes": {}, "runs": ["a-s0", "a-s1", "a-s2"]},
        {"name": "b", "changes": {}, "runs": ["b-s0", "b-s1", "b-s2"]},
    ],
    "comparisons": [comparison().model_dump()],
}  # fmt: skip


def test_a_run_that_diverged_counts_as_guessing_and_one_that_failed_as_missing(make_record, tmp_path):
    save = [
        make_record(run_id="a-s0", metrics={"test_top1": 0.9}),
        make_record(run_id="a-s1", seed=1, metrics={"test_top1": 0.8}, status="diverged"),
        make_record(run_id="a-s2", seed=2, metrics={}, status="failed"),
        make_record(run_id="b-s1", seed=1, metrics={"test_top1": 0.5}),
        make_record(run_id="other", metrics={"test_top1": 0.1}),
    ]
    for record in save:
        save_record(record, tmp_path)
    (tmp_path / "study.json").write_text(json.dumps(CONTENT))
    found = values_of(load_study(tmp_path), load_results(tmp_path))
    assert found == {"a": {"test_top1": [0.9, 1 / 4]}, "b": {"test_top1": [0.5]}}  # four classes


def test_a_damaged_study_is_named_and_a_folder_without_one_has_none(tmp_path):
    assert load_study(tmp_path) is None
    for content in (
        "",
        "[]",
        "{",
        json.dumps(CONTENT | {"variants": 3}),
        json.dumps(CONTENT | {"schema_version": 2}),
        "[" * 100_000,
    ):
        (tmp_path / "study.json").write_text(content)
        with pytest.raises(RecordError, match="writes it again") as caught:
            load_study(tmp_path)
        assert study_path(tmp_path) in str(caught.value)
