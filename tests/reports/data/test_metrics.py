import math

import pytest

from reports.data.metrics import METRICS, counted, format_number, format_within, metric


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (1298.4, 3, "1,300"), (0.0620, 3, "0.0620"), (0.6517, 3, "0.652"), (89.96, 3, "90.0"), (999.6, 3, "1,000"),
        (0.0, 3, "0"), (-2.5, 2, "−2.5"), (math.nan, 3, "–"), (math.inf, 3, "–"), (1e-12, 3, "0.000000000"),
    ],
)  # fmt: skip
def test_numbers_have_so_many_significant_digits(value: float, digits: int, text: str) -> None:
    assert format_number(value, digits) == text


def test_accuracy_is_shown_in_percent_with_its_interval() -> None:
    assert metric("test_top1").text_with_interval(0.9071, 0.8992, 0.9150) == "90.71 ± 0.79"
    assert metric("test_top1").text_with_interval(0.9071, math.nan, math.nan) == "90.71"
    assert metric("test_top1").text_with_interval(0.9071, 0.9071, 0.9071) == "90.71"


def test_counts_have_no_interval() -> None:
    assert metric("params").text_with_interval(62_006, 62_000, 62_010) == "0.0620"


def test_an_unknown_key_is_shown_as_it_is() -> None:
    assert (metric("foo_s").axis, metric("foo_s").text(2.0)) == ("foo_s", "2.00")


def test_a_key_names_its_metric_and_speed_is_better_higher() -> None:
    assert all(key == m.key for key, m in METRICS.items())
    assert (METRICS["throughput_img_per_s"].better, METRICS["latency_p99_ms"].better) == ("higher", "lower")


def test_one_is_singular() -> None:
    assert [counted(n, "seed") for n in (0, 1, 1200)] == ["0 seeds", "1 seed", "1,200 seeds"]


@pytest.mark.parametrize(
    ("value", "low", "high", "texts"),
    [
        (1234.5, 1084.5, 1384.5, ("1,230", "1,080", "1,380")), (1234.5, 1219.1, 1249.3, ("1,234", "1,219", "1,249")),
        (0.12138, 0.12009, 0.12221, ("0.1214", "0.1201", "0.1222")), (99.6, 90.1, 110.0, ("100", "90", "110")),
        (5.0, 5.0, 5.0, ("5.00", "5.00", "5.00")), (5.0, math.nan, 6.0, ("5.00", "–", "6.00")),
    ],
)  # fmt: skip
def test_an_interval_decides_how_many_digits_its_value_has(value, low, high, texts) -> None:
    assert format_within(value, low, high) == texts


@pytest.mark.parametrize(("value", "text"), [(9.996, "10.0"), (0.99951, "1.00"), (99.95, "100"), (0.0099996, "0.0100")])
def test_rounding_up_to_a_power_of_ten_adds_no_digit(value: float, text: str) -> None:
    assert format_number(value) == text
