"""How a plan's progress is shown: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from bench.events import Event, Loading, Note, Phase, PlanBegins, PlanEnds, Row, RunBegins, RunEnds
from bench.records import RunRecord

LINE_EVERY_SECONDS = 10.0


def create_display(console: Console) -> BarDisplay | LineDisplay:
    """Bars where ``console`` is a terminal, else plain lines."""
    return BarDisplay(console) if console.is_terminal else LineDisplay(console)


class LineDisplay:
    """One plain line for each thing that happens; for logs. Several runs may be in progress."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._total = self._begun = 0
        self._spoke: dict[str, float] = {}
        self._runs: dict[str, tuple[str, _Pace]] = {}
        self._last = ""

    def on(self, event: Event) -> None:
        """Print what begins and ends, and every few seconds how far it is."""
        match event:
            case Loading(what, done, total):
                if total > 1 and (done == total or self._is_due("")):
                    self._say(f"{what}: {done:,}/{total:,}")
            case PlanBegins(runs, done_already):
                self._total, self._begun = len(runs), len(done_already)
                if done_already:
                    self._say(f"{len(done_already)} of {len(runs)} runs are done already")
            case RunBegins(config):
                self._begun += 1
                self._last = run_id = config.run_id
                label = f"[{self._begun}/{self._total}] {config.model} seed {config.seed}"
                self._runs[run_id] = label, _Pace()
                self._say(f"{label}: begins", run_id)
            case Phase("waiting", run_id):
                label = self._runs[run_id or self._last][0]
                self._say(f"{label}: waits for another process, which does the same run in this folder", run_id)
            case Row(row, share, run_id):
                run_id = run_id or self._last
                label, pace = self._runs[run_id]
                if self._is_due(run_id):
                    self._say(f"{label}: {describe_row(row)}, {pace.left(share)} left", run_id)
            case Note(message, run_id):
                self._say(f"{self._runs[run_id or self._last][0]}: {message}", run_id)
            case RunEnds(record):
                number = self._runs.pop(record.run_id)[0].partition(" ")[0]
                self._spoke.pop(record.run_id, None)
                self._say(f"{number} {describe_record(record)}")

    def _is_due(self, run_id: str) -> bool:
        return time.monotonic() - self._spoke.get(run_id, 0.0) > LINE_EVERY_SECONDS

    def _say(self, line: str, run_id: str = "") -> None:
        self._spoke[run_id] = time.monotonic()
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class BarDisplay:
    """A bar for the plan, and one for each run in progress with epoch, loss, accuracy, images/s and time left."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            refresh_per_second=2,  # drawing must not disturb what is measured
        )
        self._plan: TaskID | None = None
        self._runs: dict[str, tuple[TaskID, _Pace]] = {}
        self._begun = ""
        self._load: TaskID | None = None

    def on(self, event: Event) -> None:
        """Move the bars; the first event shows them and the last leaves the terminal as it was."""
        self._progress.start()
        match event:
            case Loading(what, done, total):
                self._show_loading(what, done, total)
            case PlanBegins(runs, finished):
                self._show_plan(len(runs), len(finished))
            case RunBegins(config):
                label = f"[bold]{escape(config.model)}[/] seed {config.seed}"
                self._begun = config.run_id
                self._runs[self._begun] = self._progress.add_task(label, total=1.0, status="starts"), _Pace()
            case Phase(phase, run_id):
                task, _ = self._runs[run_id or self._begun]
                self._progress.update(task, status=phase.replace("_", " "))
            case Row(row, share, run_id):
                task, pace = self._runs[run_id or self._begun]
                self._progress.update(task, completed=share, status=f"{describe_row(row)}, {pace.left(share)} left")
            case Note(message):
                self._progress.console.print(message, markup=False, highlight=False)
            case RunEnds(record):
                self._end_run(record)
            case PlanEnds():
                self._progress.stop()

    def _show_loading(self, what: str, done: int, total: int) -> None:
        if self._load is None:
            self._load = self._progress.add_task(escape(what), status="")
        status = f"{done:,}/{total:,}"
        self._progress.update(self._load, description=escape(what), completed=done, total=total, status=status)

    def _show_plan(self, runs: int, done: int) -> None:
        if self._load is not None:
            self._progress.remove_task(self._load)
        self._plan = self._progress.add_task("runs", total=runs, completed=done, status=f"{done}/{runs}")

    def _end_run(self, record: RunRecord) -> None:
        """Replace the run's bar by a line with its result."""
        assert self._plan is not None
        self._progress.remove_task(self._runs.pop(record.run_id)[0])
        self._progress.advance(self._plan)
        task = self._progress.tasks[0]
        self._progress.update(self._plan, status=f"{task.completed:.0f}/{task.total:.0f}")
        self._progress.console.print(describe_record(record), markup=False, highlight=False)


class _Pace:
    """Time left, by the share that is done and the time that it took."""

    def __init__(self) -> None:
        self._since: tuple[float, float] | None = None

    def left(self, share: float) -> str:
        now = time.monotonic()
        if self._since is None or share <= self._since[1]:
            self._since = self._since or (now, share)
            return "–"
        begun, from_share = self._since
        return _duration((1 - share) * (now - begun) / (share - from_share))


def describe_row(row: Mapping[str, Any]) -> str:
    """An epoch's row so far, in words; a number that is not finite is null in an event."""
    value = {name: math.nan if number is None else number for name, number in row.items()}
    names = {"val_miou": "val mIoU", "val_top1": "val", "train_top1": "acc"}
    accuracy = next(f"{label} {value[name]:.1%}" for name, label in names.items() if name in value)
    loss, speed = value["train_loss"], value["images_per_s"]
    return f"epoch {value['epoch'] + 1}, loss {loss:.3f}, {accuracy}, {speed:,.0f} img/s"


def describe_record(record: RunRecord) -> str:
    """A finished run, in one line."""
    label = f"{record.config['model']} seed {record.config['seed']}: {record.status}"
    if record.error is not None:
        return f"{label}, {record.error.kind}: {' '.join(record.error.message.split())[:200]}"
    parts = [label]
    epochs, seconds = (record.metrics.get(name) for name in ("epochs", "train_seconds"))
    for name, label in (("test_top1", "top-1"), ("test_miou", "mean IoU")):
        if isinstance(value := record.metrics.get(name), float):
            parts.append(f"test {label} {value:.1%}")
    if isinstance(seconds, float):
        parts.append(f"{epochs:.3g} epochs in {_duration(seconds)}")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{seconds:.1f}s" if seconds < 10 else f"{rest}s"
