"""What models reach within smaller budgets, on tables small enough to be worked out by hand."""

import pandas as pd
import pytest

from bench.records import RunRecord
from reports.data.budgets import choices, front_of, scores_by_cost
from reports.data.loading import history_table, runs_table
from reports.figures.curves import curve_summary

SPEEDS = {"small": 1000.0, "large": 100.0}


def tables(scores):
    """Runs and history of models with 1,000 images an epoch; ``scores`` by model and seed, one for each epoch."""
    runs = [(f"{model}-{seed}", model, 1e6, SPEEDS[model]) for model, seed in scores]
    history = [
        (f"{model}-{seed}", model, seed, epoch, 1000.0 * epoch, score)
        for (model, seed), curve in scores.items()
        for epoch, score in enumerate(curve, 1)
    ]
    return (
        pd.DataFrame(runs, columns=["run_id", "model", "macs", "train_throughput_img_per_s"]),
        pd.DataFrame(history, columns=["run_id", "model", "seed", "epoch", "full_size_images", "val_top1"]),
    )


SCORES = {
    ("small", 0): [0.4] * 10 + [0.5] * 90,
    ("small", 1): [0.6] * 10 + [0.5] * 90,
    ("large", 0): [0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.8, 0.9, 0.9],
}


def test_costs_are_images_over_speed_and_three_forward_passes():
    table = scores_by_cost(*tables(SCORES)).set_index(["model", "epoch"])
    assert len(table) == 110
    row = table.loc["large", 3]
    assert (row.train_seconds, row.train_macs, row.score) == (30.0, 3 * 1e6 * 3000, 0.3)
    assert table.loc["small", 10].score == pytest.approx(0.5)  # the mean of its seeds
    assert table.loc["small", 10].train_seconds == 10.0


def test_smaller_images_count_by_their_share_of_the_pixels():
    seen = [{"epoch": epoch, "images_seen": 1000.0 * (epoch + 1), "val_top1": 0.5} for epoch in range(3)]
    record = RunRecord(
        run_id="a",
        status="completed",
        config={"model": "a", "recipe": {"small_epochs": 2, "small_size": 16}},
        environment={"data": {"input_size": 32}},
        metrics={"macs": 10.0, "train_throughput_img_per_s": 10.0},
        history=[*seen[:2], seen[2] | {"images_seen": "many"}, seen[2]],
    )
    runs = runs_table([record])
    table = scores_by_cost(runs, history_table(runs, {"a": record}))
    assert table.train_seconds.tolist() == [25.0, 50.0, 150.0]
    assert table.train_macs.tolist() == [3 * 2500.0, 3 * 5000.0, 3 * 15000.0]


def test_an_epoch_that_only_some_seeds_have_reached_is_no_mean_over_seeds():
    runs, history = tables({("small", 0): [0.4, 0.5], ("small", 1): [0.4, 0.5, 0.9]})
    assert scores_by_cost(runs, history).score.tolist() == [0.4, 0.5]
    curves = curve_summary(history.assign(seconds=history.epoch))
    assert curves.val_top1.tolist() == [0.4, 0.5]


def test_the_front_is_what_nothing_cheaper_reaches():
    front = front_of(scores_by_cost(*tables(SCORES)), "train_seconds")
    assert list(front.model) == ["small", "large", "large"]
    assert front.train_seconds.tolist() == [1.0, 80.0, 90.0]
    assert front_of(scores_by_cost(*tables(SCORES)), "train_macs").model.tolist() == ["small", "large", "large"]


def test_one_model_is_chosen_for_each_budget_and_said_once_where_time_changes_nothing():
    found = choices(scores_by_cost(*tables(SCORES)))
    assert [(choice.budgets, choice.model, choice.epochs) for choice in found] == [
        ((60.0,), "small", 1.0),
        ((300.0, 1800.0), "large", 9.0),
    ]
    assert found[1].score == pytest.approx(0.9)


def test_a_budget_in_which_nothing_finishes_an_epoch_has_no_choice(monkeypatch):
    monkeypatch.setitem(SPEEDS, "large", 10.0)
    found = choices(scores_by_cost(*tables({("large", 0): [0.3]})))
    assert [choice.budgets for choice in found] == [(300.0, 1800.0)]


def test_without_a_measured_speed_there_are_macs_but_no_seconds(monkeypatch):
    monkeypatch.setitem(SPEEDS, "large", float("nan"))
    table = scores_by_cost(*tables(SCORES))
    assert set(table[table.train_seconds.notna()].model) == {"small"}
    assert set(table[table.train_macs.notna()].model) == {"small", "large"}
    assert [choice.model for choice in choices(table)] == ["small"]
