"""Baselines: what was measured once and kept, to compare with when the old code can no longer run. No torch.

A baseline is a JSON file of its own schema in a folder, ``NAME.json``. It keeps every block of every pair beside the
reference workload (`bench.measure.reference`), the exact counts, and where all of it was measured. One that was
imported from pytest-benchmark keeps the times of its rounds, which are relative to nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.errors import UserError, did_you_mean
from bench.measure.duet import Block, PairSample, Quad
from bench.measure.interference import Notice
from bench.measure.paired import estimate_log_ratio
from bench.measure.rounds import create_witnesses
from bench.measure.verdicts import Witnesses
from bench.records import write_atomically

SCHEMA_VERSION: Literal[1] = 1
DEFAULT_FOLDER = "results/baselines"
PREFIX = "baseline:"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class BaselineError(UserError):
    """A baseline that is missing, damaged, or cannot be compared with."""


class EmptyBaselineError(BaselineError):
    """A baseline without figures: nothing was measured."""

    exit_code = 14


class UnlikeBaselineError(BaselineError):
    """Baselines that have nothing in common that they could be compared by."""

    exit_code = 13


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Seconds = Annotated[float, Field(gt=0)]
Steps = Annotated[int, Field(gt=0)]


class StoredQuad(_Frozen):
    """Four blocks in the order of their timing: lane, seconds, process CPU seconds, involuntary switches."""

    blocks: tuple[
        tuple[Literal[0, 1], Seconds, float, int],
        tuple[Literal[0, 1], Seconds, float, int],
        tuple[Literal[0, 1], Seconds, float, int],
        tuple[Literal[0, 1], Seconds, float, int],
    ]
    flags: tuple[str, ...] = ()


class StoredPair(_Frozen):
    """`bench.measure.duet.PairSample`; lane 0 is the reference workload, lane 1 the network."""

    steps: tuple[Steps, Steps]
    step_seconds: tuple[float, ...]
    seconds: float
    notices: tuple[tuple[str, str], ...] = ()
    quads: Annotated[tuple[StoredQuad, ...], Field(min_length=1)]

    @classmethod
    def of(cls, pair: PairSample) -> Self:
        """The pair as it is stored."""
        quads = [
            StoredQuad(
                blocks=tuple((b.lane, b.seconds, b.cpu_seconds, b.involuntary_switches) for b in quad.blocks),  # type: ignore[arg-type]
                flags=quad.flags,
            )
            for quad in pair.quads
        ]
        return cls(
            steps=pair.steps,
            step_seconds=pair.step_seconds,
            seconds=pair.seconds,
            notices=tuple((notice.kind, notice.message) for notice in pair.notices),
            quads=tuple(quads),
        )

    def to_sample(self) -> PairSample:
        """The pair as it was measured."""
        quads = tuple(Quad(tuple(Block(*block) for block in quad.blocks), quad.flags) for quad in self.quads)
        notices = tuple(Notice(*notice) for notice in self.notices)
        return PairSample(quads, self.steps, self.step_seconds, self.seconds, notices)


class LayerCounts(_Frozen):
    """`bench.measure.complexity.LayerRow`."""

    name: str
    kind: str
    params: int
    macs: int
    activations: int
    output_shape: tuple[int, ...]


class Counts(_Frozen):
    """What the exact gates compare, of `bench.measure.complexity.Complexity`."""

    params: int
    macs: int
    activations: int
    output_shape: tuple[int, ...]
    layers: tuple[LayerCounts, ...]
    operators: tuple[str, ...]

    @classmethod
    def of(cls, counted: Mapping[str, Any]) -> Self:
        """From a `Complexity` as a mapping."""
        return cls.model_validate({key: counted[key] for key in cls.model_fields})


class Figure(_Frozen):
    """One network's measurement, or one benchmark's.

    ``step_ms`` is the median of a step, ``reference_step_ms`` that of the reference workload beside it, ``relative``
    how many of the latter's the former takes (the location of the pairs' log-ratios). ``sessions_seconds`` are the
    rounds of a benchmark, a list for each session of pytest.
    """

    batch_size: int | None = None
    step_ms: Seconds
    reference_step_ms: Seconds | None = None
    relative: Seconds | None = None
    counts: Counts | None = None
    pairs: tuple[StoredPair, ...] = ()
    sessions_seconds: tuple[Annotated[tuple[Seconds, ...], Field(min_length=1)], ...] = ()

    @model_validator(mode="after")
    def _has_times(self) -> Self:
        if bool(self.pairs) == bool(self.sessions_seconds):
            raise ValueError("expected either pairs or sessions_seconds")
        return self

    @property
    def samples(self) -> list[PairSample]:
        """The pairs as they were measured."""
        return [pair.to_sample() for pair in self.pairs]

    def witnesses(self, with_cpu: bool) -> Witnesses:
        """The estimates of the time: relative to the reference workload, or in seconds where there is none."""
        if self.pairs:
            return create_witnesses(self.samples, with_cpu)
        return Witnesses(estimate_log_ratio([[math.log(each) for each in rounds] for rounds in self.sessions_seconds]))


class Task(_Frozen):
    """What was timed, in all figures alike."""

    mode: Literal["infer", "train"] = "infer"
    input_size: int = 32
    num_classes: int = 10
    in_chans: int = 3


class Baseline(_Frozen):
    """What was measured of one side at one time.

    ``side`` is what the user named, ``commit`` its revision (with ``+`` behind it where the tree was changed, empty
    where there is none), ``counter`` the digest of the code that counted. ``environment`` is the machine, the
    versions, the device and the threads; figures of unlike environments are not compared.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    source: Literal["measured", "pytest-benchmark"]
    saved_at: str
    side: str
    commit: str = ""
    zoobench: str = ""
    reference: str | None = None
    counter: str = ""
    task: Task = Task()
    environment: dict[str, Any]
    figures: dict[str, Figure]

    @property
    def title(self) -> str:
        """As the user names it."""
        return f"{PREFIX}{self.name}"


def baseline_path(folder: str | Path, name: str) -> Path:
    """Where a baseline is, or would be. Raises `BaselineError` for a name that is no file's."""
    if not NAME.fullmatch(name):
        raise BaselineError(
            f"{name!r} is no name of a baseline: expected letters, digits, '.', '_', '+' and '-', as in main or v1.2."
        )
    return Path(folder) / f"{name}.json"


def load_baseline(folder: str | Path, name: str) -> Baseline:
    """Read a baseline. Raises `BaselineError` if there is none of that name, or it is damaged."""
    path = baseline_path(folder, name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        here = baseline_names(folder)
        known = f" There are {', '.join(here)}." if here else " There are none yet."
        raise BaselineError(
            f"there is no baseline {name!r} in {folder}.{did_you_mean(name, here)}{known} "
            f"`zoobench baseline save {name}` measures one."
        ) from error
    except OSError as error:
        raise BaselineError(f"the baseline {str(path)!r} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise BaselineError(f"the baseline {str(path)!r} is damaged, it is not JSON ({error}). {_MEND}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise BaselineError(
            f"the baseline {str(path)!r} has schema version {version!r}, this zoobench reads version "
            f"{SCHEMA_VERSION}. {_MEND}"
        )
    try:
        return Baseline.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
        raise BaselineError(f"the baseline {str(path)!r} is damaged: {problems}. {_MEND}") from error


_MEND = "Save it anew, or take the file from where it was last good."


def load_figures(folder: str | Path, name: str) -> Baseline:
    """As `load_baseline`, and raises `EmptyBaselineError` if it has no figure."""
    baseline = load_baseline(folder, name)
    if not baseline.figures:
        raise EmptyBaselineError(
            f"the baseline {name!r} in {folder} is empty: it holds no figure, so there is nothing to compare with. "
            f"`zoobench baseline save {name} --overwrite` measures one."
        )
    return baseline


def save_baseline(folder: str | Path, baseline: Baseline) -> Path:
    """Write a baseline, atomically. Raises `BaselineError` if the folder cannot be written."""
    path = baseline_path(folder, baseline.name)
    try:
        write_atomically(str(path), baseline.model_dump_json() + "\n")
    except OSError as error:
        raise BaselineError(
            f"the folder of baselines {str(folder)!r} cannot be written: {error.strerror or error}. Name another."
        ) from error
    return path


def check_new(folder: str | Path, name: str, overwrite: bool) -> None:
    """Raise `BaselineError` now, before anything is measured, if there is one of that name that is to be kept."""
    if baseline_path(folder, name).exists() and not overwrite:
        raise BaselineError(
            f"there is a baseline {name!r} in {folder} already. Choose another name, or replace it with --overwrite."
        )


def baseline_names(folder: str | Path) -> list[str]:
    """The names of all baselines in a folder, in order."""
    return sorted(path.stem for path in Path(folder).glob("*.json") if NAME.fullmatch(path.stem))


def list_baselines(folder: str | Path) -> tuple[list[Baseline], list[BaselineError]]:
    """All baselines of a folder, by name, and an error for each one that cannot be read."""
    baselines, damaged = [], []
    for name in baseline_names(folder):
        try:
            baselines.append(load_baseline(folder, name))
        except BaselineError as error:
            damaged.append(error)
    return baselines, damaged
