"""What a plan is doing, for other programs: one file beside the records, and the view of it in a terminal."""

from __future__ import annotations

import datetime
import time
import warnings
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.errors import RecordError
from bench.events import Event, Loading, Phase, PlanBegins, PlanEnds, Row, RunBegins, RunEnds, Unsaved
from bench.records import RunRecord, parse_json, write_atomically
from bench.stores import file_system, names_in

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
    """An observer that keeps ``RESULTS/live.json`` up to date.

    A phase or a row is written with the next event where the file was just written, so that a plan of many runs spends
    at most about ``share`` of its time on that.
    """

    def __init__(self, results: str, share: float = 0.01) -> None:
        self._path, self._share = live_path(results), share
        self._runs: dict[str, LiveRun] = {}
        self._texts: dict[str, str] = {}
        """Each run as JSON: a plan may have thousands, of which few change."""
        self._ended = self._warned = False
        self._begun = ""
        self._next_write = 0.0

    def on(self, event: Event) -> None:
        """Change the state and write it; a plan that ends before its runs are known leaves nothing."""
        match event:
            case Loading() | Unsaved():
                return
            case PlanBegins(runs, done):
                finished = {record.run_id: record for record in done}
                for run in runs:
                    live = LiveRun(run_id=run.run_id, model=run.model, seed=run.seed)
                    if live.run_id in finished:
                        _finish(live, finished[live.run_id])
                    self._keep(live)
            case RunBegins(config):
                self._begun = config.run_id
                live = self._runs[self._begun]
                live.state = "running"
                self._keep(live)
            case Phase(phase, run_id):
                live = self._runs[run_id or self._begun]
                live.phase = phase
                self._keep(live)
            case Row(row, share, run_id):
                live = self._runs[run_id or self._begun]
                live.share = share
                while live.rows and live.rows[-1]["epoch"] >= row["epoch"]:  # above it where the run is tried again
                    live.rows.pop()
                live.rows.append(row)
                self._keep(live)
            case RunEnds(record):
                live = self._runs[record.run_id]
                _finish(live, record)
                self._keep(live)
            case PlanEnds():
                self._ended = True
                for live in self._runs.values():
                    if live.state == "running":
                        live.state, live.phase = "waiting", "interrupted"
                        self._keep(live)
        passing = isinstance(event, Phase | Row)
        if self._runs and not (passing and time.monotonic() < self._next_write):
            self._write()

    def _keep(self, run: LiveRun) -> None:
        self._runs[run.run_id] = run
        self._texts[run.run_id] = run.model_dump_json()

    def _write(self) -> None:
        began = time.monotonic()
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        head = LiveState(updated_at=now, ended=self._ended).model_dump_json(exclude={"runs"})
        try:
            text = f'{head[:-1]},"runs":[{",".join(self._texts.values())}]}}'
            write_atomically(self._path, text, durable=False)
        except OSError as error:  # no reason to lose the run
            if not self._warned:
                warnings.warn(f"`zoobench watch` cannot follow this plan, {self._path!r}: {error}.", stacklevel=2)
            self._warned = True
        ended = time.monotonic()
        self._next_write = ended + (ended - began) * (1 / self._share - 1)


def live_path(results: str | Path) -> str:
    """Where the state of the plan in progress is."""
    return f"{str(results).rstrip('/')}/live.json"


def read_live(results: str | Path) -> LiveState:
    """The state of the plan in progress, or of the last one. Raises `RecordError` if there is none."""
    fs, path = file_system(live_path(results))
    try:
        return LiveState.model_validate(parse_json(fs.cat_file(path)))
    except (OSError, ValueError) as error:
        raise RecordError(
            f"no plan has run with the results folder {str(results)!r}, there is no readable {live_path(results)!r}. "
            "Name the folder of `zoobench run` with --results DIR."
        ) from error


def latest_live(root: str | Path) -> str:
    """The folder of the plan in ``root`` that was heard of last. Raises `RecordError` if there is none."""
    fs, folder = file_system(str(root))
    base = str(root).rstrip("/")
    inner = [name for name in names_in(fs, folder) if fs.exists(f"{folder.rstrip('/')}/{name}/live.json")]
    folders = [f"{base}/{name}" for name in inner] + [base] * fs.exists(f"{folder.rstrip('/')}/live.json")
    if not folders:
        raise RecordError(f"no plan has run in {base!r}. Name the folder of `zoobench run` with --results DIR.")
    return max(folders, key=lambda each: read_live(each).updated_at)


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
