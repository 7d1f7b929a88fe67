import math

import numpy as np
import pandas as pd
import pytest

from reports.data.leaderboard import leaderboard, pareto_front
from reports.data.loading import calibration_error, load_history, load_runs
from reports.data.report_data import load_report_data
from reports.figures.comparison import plot_accuracy_against, plot_roofline, plot_throughput_by_batch
from reports.figures.curves import curve_summary, median_seconds, plot_learning_curves, plot_time_to_target
from reports.figures.mistakes import (
    confusion_shares,
    merge_bins,
    per_class_accuracy,
    plot_agreement,
    plot_confusion,
    plot_hard_images,
    plot_per_class_accuracy,
    plot_reliability,
)
from reports.figures.style import MANY, new_figure, place_labels
from reports.figures.svg import figure_svg, inline_svg
from reports.pages.comparison import build_page
from reports.pages.snapshot import take_snapshot


def _texts(figure) -> set[str]:
    figure.canvas.draw()
    return {text.get_text() for text in figure.findobj(match=lambda a: hasattr(a, "get_text"))}


@pytest.mark.parametrize("x", ["macs", "params", "throughput_img_per_s"])
def test_a_point_a_model_where_the_table_has_it(zoo_results, x: str) -> None:
    table = leaderboard(load_runs(zoo_results))
    figure = plot_accuracy_against(table, x)
    (points,) = [c for c in figure.axes[0].collections if c.get_gid() == "points"]
    known = table[table.test_top1.notna()]
    scale = 1 if x.startswith("throughput") else 1e-6
    np.testing.assert_allclose(points.get_offsets(), np.stack([known[x] * scale, known.test_top1 * 100], axis=1))


def test_the_front_is_drawn_and_named(zoo_results) -> None:
    table = leaderboard(load_runs(zoo_results))
    figure = plot_accuracy_against(table)
    (line,) = [line for line in figure.axes[0].lines if line.get_label() == "Pareto front"]
    np.testing.assert_allclose(line.get_ydata(), pareto_front(table).test_top1 * 100)
    assert set(pareto_front(table).model) <= _texts(figure)


def test_error_bars_are_the_intervals(zoo_results) -> None:
    table = leaderboard(load_runs(zoo_results))
    bars = plot_accuracy_against(table).axes[0].containers[0]
    segments = bars[2][0].get_segments()
    known = table[table.test_top1.notna()]
    drawn = [(segment[0][1], segment[1][1]) for segment in segments]
    np.testing.assert_allclose(drawn, known[["test_top1_low", "test_top1_high"]] * 100)


def test_labels_do_not_overlap() -> None:
    rng = np.random.default_rng(0)
    runs = pd.DataFrame({
        "model": [f"network_{k}" for k in range(60)], "setting": "s", "rank": 1.0,
        "test_top1": rng.normal(0.9, 0.01, 60), "macs": 10 ** rng.normal(8, 0.3, 60),
        "macs_low": math.nan, "macs_high": math.nan, "test_top1_low": math.nan,
        "test_top1_high": math.nan,
    })  # fmt: skip
    figure = plot_accuracy_against(runs)
    figure.canvas.draw()
    boxes = [t.get_window_extent().shrunk(0.97, 0.9) for t in figure.axes[0].texts]
    assert len(boxes) > 5
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[k + 1 :])


def test_the_marked_models_name_keeps_clear_of_its_circle_and_names_of_the_legend(zoo_results) -> None:
    table = leaderboard(load_runs(zoo_results))
    for model in table.model[table.test_top1.notna()]:
        figure = plot_accuracy_against(table, highlight=model)
        figure.canvas.draw()
        axes = figure.axes[0]
        boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
        x, y = axes.transData.transform(axes.collections[-1].get_offsets()[0])
        radius = math.sqrt(axes.collections[-1].get_sizes()[0] / math.pi) * figure.dpi / 72
        nearest = np.clip((x, y), boxes[model].min, boxes[model].max)
        assert np.hypot(*(nearest - (x, y))) > radius
        legend = axes.get_legend().get_window_extent()
        assert not any(box.overlaps(legend) for box in boxes.values())


def test_a_name_avoids_a_line_where_there_is_room_beside_it() -> None:
    axes = new_figure()[1]
    axes.set(xlim=(0, 10), ylim=(0, 10))
    axes.plot([0, 10], [5, 5])
    place_labels(axes, [5.0], [5.0], ["a name"], set())
    box = axes.texts[0].get_window_extent()
    line = axes.transData.transform((5, 5))[1]
    assert box.y0 > line or box.y1 < line


def test_a_great_many_points_become_one_image() -> None:
    n = MANY + 700
    table = pd.DataFrame({
        "model": [f"n{k}" for k in range(n)], "setting": "s", "rank": 1.0, "test_top1": np.linspace(0.1, 0.9, n),
        "macs": np.geomspace(1e6, 1e9, n),
    })  # fmt: skip
    svg = figure_svg(plot_accuracy_against(table))
    assert "data:image/png" in svg
    assert len(svg) < 200_000


def test_curves_are_means_over_seeds_within_the_extreme_ones(zoo_results) -> None:
    history = load_history(zoo_results)
    expected = history.groupby(["model", "epoch"]).val_top1.agg(["mean", "min", "max"])
    summary = curve_summary(history).set_index(["model", "epoch"])
    pd.testing.assert_frame_equal(
        summary[["val_top1", "val_top1_low", "val_top1_high"]].sort_index(),
        expected.set_axis(["val_top1", "val_top1_low", "val_top1_high"], axis=1),
    )
    lines = plot_learning_curves(history).axes[0].lines
    assert len(lines) == 5
    np.testing.assert_allclose(lines[0].get_ydata(), expected.loc["lenet5"]["mean"] * 100)


def test_curves_over_seconds_use_the_training_clock(zoo_results) -> None:
    history = load_history(zoo_results)
    lines = plot_learning_curves(history, "seconds").axes[0].lines
    np.testing.assert_allclose(lines[0].get_xdata(), history[history.model == "lenet5"].groupby("epoch").seconds.mean())


def test_time_to_target_orders_by_the_median_and_leaves_out_who_never_met_it() -> None:
    times = pd.DataFrame({
        "model": ["slow", "slow", "fast", "fast", "never"], "seed": [0, 1, 0, 1, 0],
        "seconds": [10.0, 12.0, 3.0, 5.0, math.nan],
    })  # fmt: skip
    axes = plot_time_to_target(times, 0.8).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["fast", "slow"]
    assert [line.get_xdata()[0] for line in axes.lines[-2:]] == [4.0, 11.0]
    assert "80%" in axes.get_xlabel()


def test_a_seed_that_never_met_the_target_counts_as_the_latest() -> None:
    times = pd.DataFrame({
        "model": ["lucky"] * 3 + ["steady"] * 3 + ["mostly"] * 3, "seed": [0, 1, 2] * 3,
        "seconds": [10.0, math.nan, math.nan, 12.0, 12.0, 13.0, 5.0, math.nan, 20.0],
    })  # fmt: skip
    assert median_seconds(times).to_dict() == {"steady": 12.0, "mostly": 20.0}
    axes = plot_time_to_target(times, 0.8).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["steady", "mostly"]


def test_roofline_shows_achieved_macs_and_the_peak(zoo_results) -> None:
    runs = load_runs(zoo_results)
    table = leaderboard(runs)
    axes = plot_roofline(table, 1.1e11).axes[0]
    known = table[table.macs_per_s > 0]
    (points,) = [c for c in axes.collections if c.get_gid() == "points"]
    expected = (runs.macs * runs.throughput_img_per_s).groupby(runs.model).mean()[known.model] / 1e9
    np.testing.assert_allclose(points.get_offsets()[:, 1], expected)
    assert [line.get_ydata()[0] for line in axes.lines] == [110.0]


def test_throughput_by_batch_takes_medians() -> None:
    rows = pd.DataFrame({"model": ["a"] * 4, "batch_size": [1, 1, 8, 8], "images_per_s": [10.0, 20.0, 70.0, 90.0]})
    (line,) = plot_throughput_by_batch(rows).axes[0].lines
    assert line.get_xydata().tolist() == [[1, 15], [8, 80]]


def test_confusion_is_shares_of_the_true_class() -> None:
    counts = np.array([[8, 2, 0], [1, 3, 0], [0, 0, 0]])
    shares = confusion_shares(counts)
    expected = pd.DataFrame(counts).div(counts.sum(axis=1), axis=0)
    np.testing.assert_allclose(shares, expected)
    assert {"80", "20", "75", "25"} <= _texts(plot_confusion(counts, ["a", "b", "c"]))


def test_per_class_accuracy_is_the_diagonal() -> None:
    table = per_class_accuracy({"m": [[8, 2], [1, 3]]}, ["a", "b"])
    assert table.loc["m"].tolist() == [0.8, 0.75]
    assert {"80", "75", "m"} <= _texts(plot_per_class_accuracy(table))


def test_calibration_error_is_the_weighted_gap() -> None:
    bins = [[0.3, 0.2, 10], [0.9, 0.8, 30], [0.5, 0.9, 0]]
    assert calibration_error(bins) == pytest.approx(0.1)
    assert math.isnan(calibration_error([]))


def test_bins_of_seeds_are_merged_by_their_images() -> None:
    merged = merge_bins([[0.31, 0.2, 10], [0.35, 0.4, 30], [0.95, None, 5], [1.0, 1.0, 2]])
    assert merged.images.tolist() == [40, 2]
    assert merged.confidence[0] == pytest.approx(0.34)
    assert merged.accuracy[0] == pytest.approx(0.35)


def test_the_calibration_error_of_the_figure_is_that_of_the_table(save, make_record) -> None:
    """Two seeds that err by 5 points in opposite directions: brought together they would look calibrated."""
    seeds = [
        make_record("m", seed, samples={"test_calibration": [[0.6, accuracy, 100]]}, run_id=f"m-s{seed}")
        for seed, accuracy in ((0, 0.65), (1, 0.55))
    ]
    folder = save(seeds)
    table = leaderboard(load_runs(folder))
    assert table.calibration_error.tolist() == pytest.approx([0.05])
    snapshot = take_snapshot(load_report_data(folder))
    page = build_page(snapshot)
    assert "m, error 5.00%" in page
    merged = merge_bins(snapshot["calibration"]["m"])
    assert merged.confidence[0] == pytest.approx(merged.accuracy[0])


def test_agreement_is_shown_once_for_each_pair() -> None:
    names = list("abc")
    figure = plot_agreement(pd.DataFrame([[1, 0.91, 0.52], [0.91, 1, 0.63], [0.52, 0.63, 1]], names, names))
    percents = [text.get_text() for text in figure.axes[0].texts]
    assert percents == ["91", "52", "63"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["b", "c"]


def test_hard_images_have_their_class_and_what_was_answered() -> None:
    images = [np.full((3, 8, 8), k, dtype=np.uint8) for k in range(5)]
    figure = plot_hard_images(images, ["cat"] * 5, ["dog"] * 5)
    assert [axes.get_title() for axes in figure.axes] == ["cat\n(dog)"] * 5
    assert [axes.images[0].get_array()[0, 0].tolist() for axes in figure.axes] == [[k] * 3 for k in range(5)]


def test_a_peak_that_is_exceeded_is_no_peak(save, make_record) -> None:
    """1.9 times the peak on record: no share above 100% anywhere, and the figure has no line to be above of."""
    numbers = {"test_top1": 0.5, "macs": 1e9, "activations": 1e6, "throughput_img_per_s": 191.0}
    fast = make_record("fast", metrics=numbers, environment={"peak_macs_per_s": 1.03e11})
    folder = save([fast, make_record("slow", metrics=numbers | {"throughput_img_per_s": 50.0})])
    runs = load_runs(folder).set_index("model")
    assert math.isnan(runs.macs_utilisation["fast"])
    assert runs.macs_utilisation["slow"] == pytest.approx(5e10 / 1.1e11)
    page = build_page(take_snapshot(load_report_data(folder)))
    assert "more than was measured as this machine&#39;s peak" in page
    assert "measured peak" not in page


def test_figures_say_why_they_are_empty() -> None:
    nothing = leaderboard(load_runs("/nowhere/at/all"))
    figures = [
        plot_accuracy_against(nothing), plot_roofline(nothing), plot_confusion([], []), plot_reliability({}, {}),
        plot_learning_curves(load_history("/nowhere/at/all")), plot_per_class_accuracy(pd.DataFrame()),
        plot_time_to_target(pd.DataFrame({"model": [], "seconds": []}, dtype=float), 0.5),
        plot_throughput_by_batch(pd.DataFrame()),
    ]  # fmt: skip
    assert all(any(text.startswith("No ") or "only" in text for text in _texts(figure)) for figure in figures)


def test_the_same_figure_gives_the_same_svg(zoo_results) -> None:
    table = leaderboard(load_runs(zoo_results))
    assert figure_svg(plot_accuracy_against(table)) == figure_svg(plot_accuracy_against(table))


def test_inline_svg_has_no_style_and_ids_of_its_own(zoo_results) -> None:
    svg = figure_svg(plot_accuracy_against(leaderboard(load_runs(zoo_results))))
    inline = inline_svg(svg, "one", "A & <title>", "caption", ["first"])
    assert "style=" not in inline
    assert "<style" not in inline
    assert "<title>first</title>" in inline
    assert "A &amp; &lt;title&gt;" in inline
    assert "var(--ink)" in inline
    assert 'id="points"' not in inline
    assert 'id="one-points"' in inline
