import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from reports.data.statistics import (
    compare_image_by_image,
    compare_pairs,
    holm,
    seeds_to_separate,
    shared_ranks,
    welch_interval,
    wilson_interval,
)

accuracies = st.floats(0, 1).map(lambda x: round(x, 4))
groups = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3), st.lists(accuracies, min_size=1, max_size=5), min_size=1, max_size=7
)


@pytest.mark.parametrize(("right", "images"), [(0, 10), (10, 10), (297, 310), (9123, 10_000)])
def test_the_wilson_interval_is_scipys(right: int, images: int) -> None:
    expected = stats.binomtest(right, images).proportion_ci(method="wilson")
    low, high = wilson_interval([right / images, math.nan, 1.5, 0.5], [images, images, images, math.nan])
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high))
    assert np.isnan(low[1:]).all()
    assert np.isnan(high[1:]).all()


def test_welchs_interval_by_hand_and_at_its_edges() -> None:
    """Means 2 and 16/3, variances 1 and 7/3 over 3: standard error 1.0541, 3.45 degrees of freedom, t = 2.9599."""
    assert welch_interval([1, 2, 3], [4, 5, 7]) == pytest.approx((10 / 3, 0.21245, 6.45422), abs=1e-4)
    assert np.isnan(welch_interval([1], [2, 3])[1:]).all()
    assert welch_interval([1, 1], [3, 3]) == (2, 2, 2)


@pytest.mark.filterwarnings("error")
def test_welch_s_interval_is_scipys_and_equal_seeds_are_no_warning() -> None:
    random = np.random.default_rng(0)
    for count in (2, 3, 7):
        a, b = random.normal(size=count), random.normal(1, 3, size=count + 1)
        expected = stats.ttest_ind(b, a, equal_var=False).confidence_interval()
        assert welch_interval(a, b)[1:] == pytest.approx((expected.low, expected.high))
    found = welch_interval([0.1, 0.1, 0.1], [0.2, 0.3, 0.4])
    half = stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    assert found == pytest.approx((0.2, 0.2 - half, 0.2 + half))


def test_holm_on_the_textbook_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_the_plain_p_and_bonferronis(p: list[float]) -> None:
    adjusted = holm(p)
    assert (adjusted >= np.array(p)).all()
    assert (adjusted <= np.minimum(np.array(p) * len(p), 1) + 1e-12).all()


def test_holm_leaves_out_what_was_not_tested() -> None:
    assert holm([0.02, math.nan, 0.03]).tolist() == pytest.approx([0.04, math.nan, 0.04], nan_ok=True)


def test_two_models_are_compared_by_welchs_test() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(0.9, 0.01, 5), rng.normal(0.88, 0.03, 4)
    (row,) = compare_pairs({"a": a, "b": b}).to_dict("records")
    assert row["p"] == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue)
    assert row["difference"] == pytest.approx(a.mean() - b.mean())


def test_more_pairs_need_stronger_evidence() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.9, 0.01, 4), rng.normal(0.87, 0.01, 4)
    others = {f"x{k}": rng.normal(0.9, 0.01, 4) for k in range(8)}
    alone, among = compare_pairs({"a": a, "b": b}), compare_pairs({"a": a, "b": b} | others)
    pair = among[(among.a == "a") & (among.b == "b")].iloc[0]
    assert pair.p == pytest.approx(alone.p[0])
    assert pair.p_holm > alone.p_holm[0]


def test_single_seeds_alone_are_not_tested() -> None:
    pairs = compare_pairs({"a": [0.9], "b": [0.5]})
    ranks = shared_ranks(pairs, {"a": 0.9, "b": 0.5})
    assert pairs.p.isna().all()
    assert not pairs.separated.any()
    assert list(ranks["rank"]) == [1, 2]
    assert not ranks.tested.any()


def test_a_model_with_one_seed_is_not_tested_and_borrows_no_spread() -> None:
    """However far it is: its own seeds may spread more than those of the others do."""
    pairs = compare_pairs({"a": [0.90, 0.901, 0.902], "b": [0.5, 0.501, 0.502], "single": [0.7]})
    assert pairs.p.isna().tolist() == [True, False, True]
    assert pairs.separated.tolist() == [False, True, False]
    assert math.isinf(pairs.more_seeds[0])
    ranks = shared_ranks(pairs, {"a": 0.901, "b": 0.501, "single": 0.7})
    assert ranks.tested.to_dict() == {"a": True, "single": False, "b": True}
    assert ranks["rank"].to_dict() == {"a": 1, "single": 2, "b": 2}
    assert ranks.rank_worst.to_dict() == {"a": 2, "single": 2, "b": 3}


def test_equal_models_of_unlike_spread_are_rarely_separated() -> None:
    """Four models of one mean, the spread of one three times that of the others, one with a single seed."""
    rng = np.random.default_rng(5)
    alarms = sum(
        compare_pairs({"a": rng.normal(0, 1, 3), "b": rng.normal(0, 1, 3), "wide": rng.normal(0, 3, 3),
                       "single": rng.normal(0, 3, 1)}).separated.any()
        for _ in range(400)
    )  # fmt: skip
    assert alarms <= 28  # 5% of 400, and two standard errors


def _counts(right: np.ndarray) -> np.ndarray:
    return right.astype(int) @ (~right).astype(int).T


def test_images_are_compared_by_mcnemars_exact_test() -> None:
    """a alone is right on 8 images, b alone on 1: two-sided sign test of 1 in 9, (1 + 9) / 2⁸ = 0.0390625."""
    right = np.ones((2, 100), dtype=bool)
    right[1, :8], right[0, 8] = False, False
    (row,) = compare_image_by_image(["b's name sorts first", "a"], _counts(right), 100).to_dict("records")
    assert (row["a"], row["only_a"], row["only_b"]) == ("b's name sorts first", 8, 1)
    assert row["p"] == pytest.approx(0.0390625)
    assert row["p"] == pytest.approx(stats.binomtest(1, 9).pvalue)
    assert row["difference"] == pytest.approx(0.07)
    assert row["separated"]


def test_networks_that_err_alike_are_not_told_apart_by_images() -> None:
    """Five networks of equal skill on images of unlike difficulty: at most 5% of the comparisons find any pair."""
    rng = np.random.default_rng(6)
    names = list("abcde")
    alarms = sum(
        compare_image_by_image(names, _counts(rng.random((5, 500)) < rng.random(500)), 500).separated.any()
        for _ in range(300)
    )
    assert alarms <= 22
    better = rng.random((2, 2000)) < np.array([[0.93], [0.89]])
    assert compare_image_by_image(["x", "y"], _counts(better), 2000).separated.all()


def test_seeds_that_agree_to_the_last_digit_prove_nothing_by_themselves() -> None:
    """Two seeds with the same accuracy have no spread of their own, and must not look infinitely sure."""
    pairs = compare_pairs({"same": [0.95, 0.95], "other": [0.94, 0.952]})
    assert not pairs.separated.any()
    # The mean of three times 0.1 is not 0.1, so that their variance is not 0.
    assert np.array([0.1] * 3).var() > 0
    assert compare_pairs({"dead": [0.1] * 3, "other": [0.7] * 3}).p.isna().all()
    pairs = compare_pairs({"dead": [0.1] * 3, "other": [0.09, 0.102, 0.11]})
    pooled = stats.ttest_ind_from_stats(0.1, 0.01007, 3, 0.30200 / 3, 0.01007, 3, equal_var=False).pvalue
    assert pairs.p.iloc[0] == pytest.approx(pooled, rel=0.01)


def test_far_models_are_separated_and_near_ones_share_a_rank() -> None:
    values = {"a": [0.90, 0.91, 0.905], "b": [0.902, 0.908, 0.904], "c": [0.50, 0.51, 0.49]}
    ranks = shared_ranks(compare_pairs(values), {n: float(np.mean(v)) for n, v in values.items()})
    assert ranks["rank"].to_dict() == {"a": 1, "b": 1, "c": 3}
    assert ranks.rank_worst.to_dict() == {"a": 2, "b": 2, "c": 3}


@settings(max_examples=60, deadline=None)
@given(groups)
def test_what_ranks_mean(values: dict[str, list[float]]) -> None:
    means = {name: float(np.mean(v)) for name, v in values.items()}
    pairs = compare_pairs(values)
    ranks = shared_ranks(pairs, means)
    assert set(ranks.index) == set(values)
    assert ranks["rank"].min() == 1
    assert ((ranks["rank"] >= 1) & (ranks["rank"] <= ranks.rank_worst) & (ranks.rank_worst <= len(values))).all()
    assert list(ranks.index) == sorted(means, key=lambda n: (-means[n], n))
    first, last = ranks["rank"].to_dict(), ranks.rank_worst.to_dict()
    above = {(row.a, row.b) for row in pairs.itertuples() if row.separated}
    assert all((a, d) in above for a, b in above for c, d in above if b == c)
    for row in pairs.itertuples():
        if row.separated:  # a model that is separated from another stands above it, at its best and at its worst
            assert first[row.a] < first[row.b]
            assert last[row.a] < last[row.b]
            assert row.more_seeds == 0
        elif not math.isnan(row.p):
            assert row.more_seeds >= 1
            apart = [pair for pair in above if {row.a, row.b} & set(pair)]
            assert apart or first[row.a] == first[row.b] == 1
    for name, seeds in values.items():
        assert len(seeds) > 1 or not ranks.tested[name]
        assert first[name] == 1 + sum(b == name for _, b in above) or not ranks.tested[name]


@settings(max_examples=25, deadline=None)
@given(groups, st.randoms())
def test_ranks_do_not_depend_on_the_order_of_the_models(values: dict[str, list[float]], random) -> None:
    names = list(values)
    random.shuffle(names)
    means = {name: float(np.mean(v)) for name, v in values.items()}
    first = shared_ranks(compare_pairs(values), means)
    second = shared_ranks(compare_pairs({n: values[n] for n in names}), {n: means[n] for n in names})
    pd.testing.assert_frame_equal(first, second)


def test_a_model_without_a_number_has_no_rank_and_stands_last() -> None:
    ranks = shared_ranks(compare_pairs({"a": [0.5], "b": [math.nan]}), {"b": math.nan, "a": 0.5})
    assert list(ranks.index) == ["a", "b"]
    assert math.isnan(ranks["rank"]["b"])


def test_seeds_to_separate_have_the_power_they_promise() -> None:
    """With the advised number of seeds, a test between simulated models has a power of about 80%, not 60% or 95%."""
    difference, variance = 0.02, 0.01**2
    seeds = int(seeds_to_separate(difference, variance, variance, alpha=0.05))
    rng = np.random.default_rng(4)
    a, b = rng.normal(difference, 0.01, (4000, seeds)), rng.normal(0, 0.01, (4000, seeds))
    found = (stats.ttest_ind(a, b, axis=1, equal_var=False).pvalue < 0.05).mean()
    assert 0.78 < found < 0.93
    fewer = (stats.ttest_ind(a[:, 1:], b[:, 1:], axis=1, equal_var=False).pvalue < 0.05).mean()
    assert fewer < 0.85


def test_no_number_of_seeds_separates_equal_means() -> None:
    assert math.isinf(seeds_to_separate(0.0, 1e-4, 1e-4, 0.05))
    assert math.isinf(seeds_to_separate(1e-9, 1e-4, 1e-4, 0.05))
    assert math.isinf(seeds_to_separate(0.1, math.nan, 1e-4, 0.05))
