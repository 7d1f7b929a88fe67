"""What a report is drawn from: a results folder, read once, with its leaderboard computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bench.records import Folders
from reports.data.leaderboard import leaderboard
from reports.data.loading import Results, load_results
from reports.data.predictions import Answers, ImageComparison, compare_answers, load_answers
from reports.data.published import Published, load_published
from reports.data.study import StudyContent, load_study


@dataclass(frozen=True)
class ReportData:
    """Results in memory: the records, what single runs answered (by setting), and the leaderboard.

    ``published`` is what others have measured, to be shown beside it; ``study`` is what the runs
    are to decide, if they are those of one.
    """

    folder: Folders
    results: Results
    answers: dict[str, Answers]
    comparisons: dict[str, ImageComparison]
    table: pd.DataFrame
    published: Published | None = None
    study: StudyContent | None = None

    @property
    def setting(self) -> str:
        """The setting that a report is mainly about: of the most models, then of the most seeds; empty without any."""
        return str(self.table.setting.iloc[0]) if len(self.table) else ""

    @property
    def main_runs(self) -> pd.DataFrame:
        """The runs of that setting."""
        return self.results.runs[self.results.runs.setting == self.setting]


def load_report_data(folder: Folders, beside: Sequence[str | Path] = ()) -> ReportData:
    """Read a results folder or several, and perhaps files of timm's results. An empty folder gives empty tables."""
    published = load_published(beside) if beside else None
    results = load_results(folder)
    answers = load_answers(folder, results.runs)
    comparisons = {setting: compare_answers(own) for setting, own in answers.items()}
    table, study = leaderboard(results.runs, comparisons), load_study(folder)
    return ReportData(folder, results, answers, comparisons, table, published, study)
