"""What a plan reports while it runs: typed events, their JSON between processes, and who observes them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Protocol

from pydantic import Field, TypeAdapter, ValidationError

from bench.config import RunConfig
from bench.records import RunRecord

ROW_KEYS: Final = frozenset({"epoch", "step", "train_loss", "train_top1", "images_per_s"})
"""What every row has; more may be there."""


@dataclass(frozen=True)
class Phase:
    """A run enters a phase: ``load``, ``train``, ``measure_infer``, …

    Where several run at once, ``run_id`` says which; empty, it is the one that began last.
    """

    phase: str
    run_id: str = ""
    event: Literal["phase"] = "phase"


@dataclass(frozen=True)
class Row:
    """The training epoch so far, a row of the record's ``history``, and the share of the budget that is spent."""

    row: dict[str, int | float | None]
    share: float
    run_id: str = ""
    event: Literal["row"] = "row"

    def __post_init__(self) -> None:
        if missing := ROW_KEYS - self.row.keys():
            raise ValueError(f"a row lacks {', '.join(sorted(missing))}")


@dataclass(frozen=True)
class Note:
    """Something of the run that its user should know, such as which weights fitted."""

    message: str
    run_id: str = ""
    event: Literal["note"] = "note"


@dataclass(frozen=True)
class Unsaved:
    """The run is over and its record could not be saved."""

    message: str
    event: Literal["unsaved"] = "unsaved"


RunEvent = Phase | Row | Note | Unsaved
"""What a run reports, also from a process of its own."""


@dataclass(frozen=True)
class Loading:
    """A part of the data set is being prepared: ``done`` of ``total`` images or files."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class PlanBegins:
    """The plan's runs are known; ``done`` are the records of those that are skipped."""

    runs: tuple[RunConfig, ...]
    done: tuple[RunRecord, ...] = ()


@dataclass(frozen=True)
class RunBegins:
    """A run begins."""

    config: RunConfig


@dataclass(frozen=True)
class RunEnds:
    """A run has its record."""

    record: RunRecord


@dataclass(frozen=True)
class PlanEnds:
    """The last event of a plan, also of one that failed or was interrupted."""


Event = Loading | PlanBegins | RunBegins | RunEvent | RunEnds | PlanEnds
OnEvent = Callable[[Event], None]
Emit = Callable[[RunEvent], None]


class Observer(Protocol):
    """Anything that follows a plan: a display, a log, a tracker."""

    def on(self, event: Event) -> None:
        """Take notice of an event."""


def ignore(event: Event) -> None:
    """Observe nothing."""


_JSON: Final[TypeAdapter[RunEvent]] = TypeAdapter(Annotated[RunEvent, Field(discriminator="event")])


def to_json(event: RunEvent) -> str:
    """A run's event as a line of JSON, without its line feed; numbers that JSON lacks become null."""
    return _JSON.dump_json(event).decode()


def from_json(line: str | bytes) -> RunEvent:
    """The event of a line of JSON. Raises `ValueError` for anything else, in one line."""
    try:
        return _JSON.validate_json(line)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ValueError(f"not an event: {where + ': ' if where else ''}{problem['msg']}") from error


def read_events(lines: Iterable[str | bytes]) -> Iterator[RunEvent]:
    """The events of a stream of lines; the first line that is none is warned about, and all such are skipped."""
    warned = False
    for line in lines:
        try:
            event = from_json(line)
        except ValueError as error:
            if not warned:
                warnings.warn(f"a run sent {line[:80]!r}, which is {error}. Such lines are ignored.", stacklevel=2)
            warned = True
        else:
            yield event
