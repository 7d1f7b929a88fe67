"""What a plan is doing, told to other programs: one file beside the records, and the view of it in a terminal."""

from __future__ import annotations

import datetime
import json
import warnings
from pathlib import Path
from typing import Any, Literal

import fsspec
from pydantic import BaseModel, ConfigDict
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.config import RunConfig
from bench.errors import RecordError
from bench.records import RunRecord, write_atomically

BARS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 12
STYLES = {"completed": "green", "running": "bold", "failed": "red", "diverged": "red"}


class LiveRun(BaseModel):
    """One run of the plan: its state, its phase, the share of its budget that is spent, and a row an epoch.

    ``test_score`` is the accuracy, or the mean IoU of dense labels.
    """

    model_config = ConfigDict(extra="forbid")

    run_id: str
    model: str
    seed: int
    state: Literal["waiting", "running", "completed", "diverged", "failed"] = "waiting"
    phase: str = ""
    share: float = 0.0
    test_score: float | None = None
    rows: list[dict[str, Any]] = []


class LiveState(BaseModel):
    """The plan in progress, or the last one. ``ended`` says that no process writes this any more."""

    model_config = ConfigDict(extra="forbid")

    updated_at: str = ""
    ended: bool = False
    runs: list[LiveRun] = []


class LiveLog:
    """A `bench.runner.Display` that keeps ``RESULTS/live.json`` up to date."""

    def __init__(self, results: str) -> None:
        self._path = live_path(results)
        self._state = LiveState()
        self._warned = False

    def loading(self, what: str, done: int, total: int) -> None:
        """The data set is no run; nothing to tell."""

    def begin(self, runs: list[RunConfig], done: list[RunRecord]) -> None:
        """All runs are waiting, but for those that are done."""
        finished = {record.run_id: record for record in done}
        for run in runs:
            live = LiveRun(run_id=run.run_id, model=run.model, seed=run.seed)
            self._state.runs.append(live)
            if run.run_id in finished:
                _finish(live, finished[run.run_id])
        self._write()

    def run_begins(self, config: RunConfig) -> None:
        """A run goes from waiting to running."""
        self._current = next(run for run in self._state.runs if run.run_id == config.run_id)
        self._current.state = "running"
        self._write()

    def run_goes_on(self, event: dict[str, Any]) -> None:
        """The run has a new phase, or a newer row of the epoch."""
        if event["event"] == "phase":
            self._current.phase = event["phase"]
        else:
            row = event["row"]
            self._current.share = event["share"]
            if self._current.rows and self._current.rows[-1]["epoch"] == row["epoch"]:
                self._current.rows.pop()
            self._current.rows.append(row)
        self._write()

    def run_ends(self, record: RunRecord) -> None:
        """The run has its record."""
        _finish(self._current, record)
        self._write()

    def close(self) -> None:
        """The plan is over, or was interrupted."""
        for run in self._state.runs:
            if run.state == "running":
                run.state, run.phase = "waiting", "interrupted"
        self._state.ended = True
        if self._state.runs:
            self._write()

    def _write(self) -> None:
        self._state.updated_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        try:
            write_atomically(self._path, self._state.model_dump_json())
        except OSError as error:  # a view that cannot be had is no reason to lose the run
            if not self._warned:
                warnings.warn(f"`zoobench watch` will show old news, {self._path!r}: {error}.", stacklevel=2)
            self._warned = True


def live_path(results: str | Path) -> str:
    """Where the state of the plan in progress is."""
    return f"{str(results).rstrip('/')}/live.json"


def read_live(results: str | Path) -> LiveState:
    """The state of the plan in progress, or of the last one. Raises `RecordError` if there is none."""
    fs, path = fsspec.url_to_fs(live_path(results))
    try:
        return LiveState.model_validate(json.loads(fs.cat_file(path)))
    except (OSError, ValueError) as error:
        raise RecordError(
            f"no plan has run with the results folder {str(results)!r}, there is no readable {live_path(results)!r}. "
            "Name the folder of `zoobench run` with --results DIR."
        ) from error


def render_live(state: LiveState) -> RenderableType:
    """The plan for a terminal: a line a run, with the curves of loss and accuracy as sparklines."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("model", overflow="fold")
    table.add_column("seed", justify="right")
    table.add_column("state", no_wrap=True)
    table.add_column("done", justify="right")
    table.add_column("epoch", justify="right")
    table.add_column("loss", justify="right")
    table.add_column("", no_wrap=True)
    table.add_column("score", justify="right")
    table.add_column("", no_wrap=True)
    table.add_column("img/s", justify="right")
    for run in state.runs:
        losses = [row["train_loss"] for row in run.rows if row["train_loss"] is not None]
        scores = [row.get("val_miou", row.get("val_top1", row["train_top1"])) for row in run.rows]
        last = run.rows[-1] if run.rows else {}
        score = run.test_score if run.test_score is not None else scores[-1] if scores else None
        state_words = run.phase.replace("_", " ") if run.state == "running" and run.phase else run.state
        table.add_row(
            Text(run.model),
            str(run.seed),
            Text(state_words, style=STYLES.get(run.state, "dim")),
            f"{run.share:.0%}",
            str(last["epoch"] + 1) if last else "",
            f"{losses[-1]:.3f}" if losses else "",
            sparkline(losses),
            f"{score:.1%}" if score is not None else "",
            sparkline(scores),
            f"{last['images_per_s']:,.0f}" if last else "",
        )
    finished = sum(run.state in ("completed", "diverged", "failed") for run in state.runs)
    outcome = "ended" if state.ended else "running"
    return Group(table, Text(f"{finished} of {len(state.runs)} runs done; {outcome}, last heard {state.updated_at}"))


def sparkline(values: list[float], width: int = SPARKLINE_WIDTH) -> str:
    """The last ``width`` values as bars between the least and the greatest of them."""
    values = values[-width:]
    if not values:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] for value in values)


def _finish(run: LiveRun, record: RunRecord) -> None:
    run.state, run.phase, run.share = record.status, "", 1.0
    score = record.metrics.get("test_miou", record.metrics.get("test_top1"))
    run.test_score = score if isinstance(score, float) else None
    run.rows = list(record.history)
