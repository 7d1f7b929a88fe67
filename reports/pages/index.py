"""The index of several plans' reports: one line each, with what is in it and which model leads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from reports.data.leaderboard import ranked_by
from reports.data.metrics import metric
from reports.data.report_data import ReportData
from reports.pages.page import Snapshot, new_snapshot, render


@dataclass(frozen=True)
class Entry:
    """One plan: its name, the path of its page from the index, and a summary.

    ``best`` leads the setting in which the most models completed; ``score`` is its accuracy or mean IoU, as text.
    """

    plan: str
    page: str
    setting: str
    models: int
    completed: int
    lost: int
    best: str
    score: str
    last: str


def describe_plan(plan: str, page: str, data: ReportData) -> Entry:
    """The line of a plan."""
    runs, table = data.results.runs, data.table[data.table.setting == data.setting]
    ranked, score = table[table["rank"].notna()], metric(ranked_by(data.main_runs))
    completed = int((runs.status == "completed").sum())
    return Entry(
        plan=plan,
        page=page,
        setting=data.setting,
        models=runs.model.nunique(),
        completed=completed,
        lost=len(runs) - completed,
        best=str(ranked.model.iloc[0]) if len(ranked) else "",
        score=f"{score.text(ranked[score.key].iloc[0])}{score.unit}" if len(ranked) else "",
        last=str(runs.started_at.max())[:16].replace("T", " ") if len(runs) else "",
    )


def take_index_snapshot(entries: Iterable[Entry]) -> Snapshot:
    """Everything that the index shows."""
    return new_snapshot("index", plans=[asdict(entry) for entry in entries])


def build_index(snapshot: Snapshot) -> str:
    """The index page as HTML."""
    return render("index.html.j2", snapshot, title="Plans", plans=snapshot["plans"])
