"""What models reach within budgets smaller than the one they were trained under, by the same records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.typing import DataFrameGroupBy

BUDGETS = (60.0, 300.0, 1800.0)
"""Seconds of training for which a model is recommended: 1, 5 and 30 minutes."""
PASSES = 3
"""Forward passes that a training step costs in MACs: one forward, and a backward that counts twice (Kaplan et al. 2020,
arXiv:2001.08361)."""


@dataclass(frozen=True)
class Choice:
    """The model that is ahead after each of ``budgets`` seconds of training: its score then, and the epochs behind it.

    Several budgets where more time changes nothing, since all that is longer was not tried.
    """

    budgets: tuple[float, ...]
    model: str
    score: float
    epochs: float


def scores_by_cost(runs: pd.DataFrame, history: pd.DataFrame, score: str = "val_top1") -> pd.DataFrame:
    """The score of each model after each of its epochs, with what training had cost by then.

    ``runs`` and ``history`` are tables of `load_runs` and `load_history`. Columns: model, epoch, ``train_seconds``,
    ``train_macs`` and ``score``, means over seeds. Seconds are the images seen, by their share of the pixels where they
    are small, over the measured training throughput, so that they do not depend on what else the machine did during the
    training; NaN where it was not measured. Epochs that only some of a model's seeds have reached are left out.
    """
    known = history.merge(runs[["run_id", "macs", "train_throughput_img_per_s"]], on="run_id")
    known = known[known[score].notna() & known.full_size_images.gt(0)]
    known = known.assign(
        train_seconds=known.full_size_images / known.train_throughput_img_per_s.where(lambda speed: speed > 0),
        train_macs=PASSES * known.macs * known.full_size_images,
    )
    columns = ["train_seconds", "train_macs", score]
    groups = known.groupby(["model", "epoch"], sort=False)
    return groups[columns].mean()[of_all_seeds(groups)].reset_index().rename(columns={score: "score"})


def of_all_seeds(groups: DataFrameGroupBy[Any, Any]) -> pd.Series:
    """Of groups by model and epoch, whether an epoch was reached by as many seeds of its model as any was.

    A mean over the others would be one over those that ran longest.
    """
    seeds = groups.size()
    return seeds == seeds.groupby(level="model").transform("max")


def front_of(table: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The rows of `scores_by_cost` that no other beats at the same cost or a smaller one, the cheapest first."""
    ordered = table[table[cost].gt(0)].sort_values([cost, "score"], ascending=[True, False])
    return ordered[ordered.score > ordered.score.cummax().shift(fill_value=-1.0)]


def choices(table: pd.DataFrame) -> list[Choice]:
    """Which model to choose for each of `BUDGETS`; none for a budget in which no model finishes an epoch."""
    front = front_of(table, "train_seconds")
    last = np.searchsorted(front.train_seconds, BUDGETS, side="right") - 1
    return [
        Choice(
            tuple(budget for budget, its in zip(BUDGETS, last, strict=True) if its == k),
            str(front.model.iloc[k]),
            float(front.score.iloc[k]),
            float(front.epoch.iloc[k]),
        )
        for k in dict.fromkeys(last)
        if k >= 0
    ]
