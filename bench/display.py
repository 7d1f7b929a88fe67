"""How a plan's progress is shown: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from bench.config import RunConfig
from bench.records import RunRecord

LINE_EVERY_SECONDS = 10.0


def create_display(console: Console) -> BarDisplay | LineDisplay:
    """Bars where ``console`` is a terminal, else plain lines."""
    return BarDisplay(console) if console.is_terminal else LineDisplay(console)


class LineDisplay:
    """One plain line for each thing that happens; for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._runs = self._begun = 0
        self._spoke = 0.0
        self._pace = _Pace()

    def loading(self, what: str, done: int, total: int) -> None:
        """Say how far the data set is, now and then."""
        if total > 1 and (done == total or self._is_due()):
            self._say(f"{what}: {done:,}/{total:,}")

    def begin(self, runs: list[RunConfig], done: list[RunRecord]) -> None:
        """Say how much there is to do."""
        self._runs, self._begun = len(runs), len(done)
        if done:
            self._say(f"{len(done)} of {len(runs)} runs are done already")

    def run_begins(self, config: RunConfig) -> None:
        """Say which run begins."""
        self._begun += 1
        self._pace = _Pace()
        self._say(f"{self._label()} {config.model} seed {config.seed}: begins")

    def run_goes_on(self, event: dict[str, Any]) -> None:
        """Say how far training is, now and then."""
        if event["event"] == "row" and self._is_due():
            left = self._pace.left(event["share"])
            self._say(f"{self._label()}   {describe_row(event['row'])}, {left} left")

    def run_ends(self, record: RunRecord) -> None:
        """Say what a run came to."""
        self._say(f"{self._label()} {describe_record(record)}")

    def close(self) -> None:
        """Nothing to tidy."""

    def _label(self) -> str:
        return f"[{self._begun}/{self._runs}]"

    def _is_due(self) -> bool:
        return time.monotonic() - self._spoke > LINE_EVERY_SECONDS

    def _say(self, line: str) -> None:
        self._spoke = time.monotonic()
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class BarDisplay:
    """A bar for the plan, and one for the run in progress with epoch, loss, accuracy, images/s and time left."""

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
        self._progress.start()
        self._plan: TaskID | None = None
        self._run: TaskID | None = None
        self._load: TaskID | None = None
        self._pace = _Pace()

    def loading(self, what: str, done: int, total: int) -> None:
        """Show how far the data set is."""
        if self._load is None:
            self._load = self._progress.add_task(escape(what), status="")
        status = f"{done:,}/{total:,}"
        self._progress.update(self._load, description=escape(what), completed=done, total=total, status=status)

    def begin(self, runs: list[RunConfig], done: list[RunRecord]) -> None:
        """Show the plan's bar."""
        if self._load is not None:
            self._progress.remove_task(self._load)
        status = f"{len(done)}/{len(runs)}"
        self._plan = self._progress.add_task("runs", total=len(runs), completed=len(done), status=status)

    def run_begins(self, config: RunConfig) -> None:
        """Show the run's bar."""
        self._pace = _Pace()
        label = f"[bold]{escape(config.model)}[/] seed {config.seed}"
        self._run = self._progress.add_task(label, total=1.0, status="starts")

    def run_goes_on(self, event: dict[str, Any]) -> None:
        """Move the run's bar."""
        assert self._run is not None
        if event["event"] == "phase":
            self._progress.update(self._run, status=event["phase"].replace("_", " "))
        else:
            status = f"{describe_row(event['row'])}, {self._pace.left(event['share'])} left"
            self._progress.update(self._run, completed=event["share"], status=status)

    def run_ends(self, record: RunRecord) -> None:
        """Replace the run's bar by a line on what it came to."""
        assert self._run is not None
        assert self._plan is not None
        self._progress.remove_task(self._run)
        self._progress.advance(self._plan)
        task = self._progress.tasks[0]
        self._progress.update(self._plan, status=f"{task.completed:.0f}/{task.total:.0f}")
        self._progress.console.print(describe_record(record), markup=False, highlight=False)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()


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


def describe_row(row: dict[str, Any]) -> str:
    """An epoch's row so far, in words."""
    names = {"val_miou": "val mIoU", "val_top1": "val", "train_top1": "acc"}
    accuracy = next(f"{label} {row[name]:.1%}" for name, label in names.items() if name in row)
    return f"epoch {row['epoch'] + 1}, loss {row['train_loss']:.3f}, {accuracy}, {row['images_per_s']:,.0f} img/s"


def describe_record(record: RunRecord) -> str:
    """A finished run, in a line."""
    label = f"{record.config['model']} seed {record.config['seed']}: {record.status}"
    if record.error is not None:
        return f"{label}, {record.error.kind}: {' '.join(record.error.message.split())[:200]}"
    parts = [label]
    epochs, seconds = (record.metrics.get(name) for name in ("epochs", "train_seconds"))
    for name, label in (("test_top1", "top-1"), ("test_miou", "mean IoU")):
        if isinstance(value := record.metrics.get(name), float):
            parts.append(f"test {label} {value:.1%}")
    if isinstance(seconds, float):
        parts.append(f"{epochs} epochs in {_duration(seconds)}")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{seconds:.1f}s" if seconds < 10 else f"{rest}s"
