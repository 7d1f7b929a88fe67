"""Records: a run's stored outcome, one JSON file a run, written atomically and validated on write and on read.

`RESULTS` is a folder or an fsspec URL such as ``s3://bucket/results``; records are ``RESULTS/runs/RUN_ID.json``.
This module imports no torch, so that a report can be drawn on a machine without it.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import fsspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.errors import RecordError

SCHEMA_VERSION: Final = 1

CARD_SUFFIX, PROBES_SUFFIX = ".card.json", ".probes.npz"
"""What may lie beside a record: the architecture's card, and arrays that only the live network could tell."""

Status = Literal["completed", "diverged", "failed"]


Scalar = bool | int | float | str | None
"""JSON has no NaN and no infinity: the loss of a diverged run is stored as null."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunFailure(_Frozen):
    """Why a run has no result: the exception's class (or the signal), its message, and its traceback."""

    kind: str
    message: str
    traceback: str = ""


class Flag(_Frozen):
    """A disturbance of a measurement: what (``load``, ``steal``, …), while what was measured, and how much."""

    kind: str
    phase: str
    message: str


class RunRecord(_Frozen):
    """Everything that is kept of one run.

    ``metrics`` is flat: a key ends with its unit unless it is a count or a fraction. ``history`` has a row an epoch.
    ``samples`` holds the raw block times in seconds, and other raw measurements, by name.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    run_id: Annotated[str, Field(min_length=1, pattern=r"^[^/\\]+$")]
    status: Status
    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: dict[str, Scalar] = {}
    history: list[dict[str, Scalar]] = []
    samples: dict[str, list[float] | list[list[float]]] = {}
    flags: list[Flag] = []
    error: RunFailure | None = None


def record_path(results: str | Path, run_id: str) -> str:
    """Where the record of a run is, or would be."""
    return f"{runs_folder(results)}/{run_id}.json"


def runs_folder(results: str | Path) -> str:
    """The folder of the records in a results folder."""
    return f"{str(results).rstrip('/')}/runs"


def save_record(record: RunRecord, results: str | Path) -> str:
    """Write a record and return its path; a reader sees the old file or the new one, never half of one.

    Raises `RecordError` if the record is not valid or its folder cannot be written.
    """
    path = record_path(results, record.run_id)
    try:
        RunRecord.model_validate(record.model_dump())
    except ValidationError as error:
        raise RecordError(f"the record of {record.run_id} is not valid and was not written: {error}") from error
    try:
        write_atomically(path, record.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise unwritable(results, error) from error
    return path


def is_local(results: str | Path) -> bool:
    """Whether a results folder lies in a file system of this machine, rather than in a bucket."""
    return "file" in _protocols(fsspec.url_to_fs(str(results))[0])


def check_writable(results: str | Path) -> None:
    """Make the results folder, and raise `RecordError` now rather than after an hour of training if that fails."""
    fs, folder = fsspec.url_to_fs(runs_folder(results))
    try:
        fs.makedirs(folder, exist_ok=True)
        if "file" in _protocols(fs):
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-"):
                pass
    except OSError as error:
        raise unwritable(results, error) from error


def check_exists(results: str | Path) -> None:
    """Raise `RecordError` if there is no results folder of that name."""
    fs, folder = fsspec.url_to_fs(str(results))
    if not fs.exists(folder):
        raise RecordError(
            f"the results folder {str(results)!r} does not exist. Name one with --results DIR; `zoobench run` makes it."
        )


def unwritable(results: str | Path, error: OSError) -> RecordError:
    """The error for a results folder that refuses to be written."""
    return RecordError(
        f"the results folder {str(results)!r} cannot be written: {error.strerror or error}. "
        "Name another with --results DIR, or free space and mend its permissions."
    )


def read_record(path: str | Path) -> RunRecord:
    """Read one record. Raises `RecordError` if it is missing, damaged or of another schema version."""
    fs, local = fsspec.url_to_fs(str(path))
    try:
        content = json.loads(fs.cat_file(local))
    except OSError as error:
        raise RecordError(f"the record {str(path)!r} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise RecordError(
            f"the record {str(path)!r} is damaged, it is not JSON ({error}). Remove the file; the run is then repeated."
        ) from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise RecordError(
            f"the record {str(path)!r} has schema version {version!r}, this zoobench reads version {SCHEMA_VERSION}. "
            "Read it with the version of zoobench that wrote it, or remove the file."
        )
    try:
        return RunRecord.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
        raise RecordError(
            f"the record {str(path)!r} is damaged: {problems}. Remove the file; the run is then repeated."
        ) from error


def find_record(results: str | Path, run_id: str) -> RunRecord | None:
    """The record of a run, or None if there is none yet. Raises `RecordError` if it is damaged."""
    fs, path = fsspec.url_to_fs(record_path(results, run_id))
    return read_record(record_path(results, run_id)) if fs.exists(path) else None


def read_records(results: str | Path) -> tuple[list[RunRecord], list[RecordError]]:
    """All records of a results folder, by run id, and an error for each one that cannot be read."""
    fs, folder = fsspec.url_to_fs(runs_folder(results))
    records: list[RunRecord] = []
    damaged: list[RecordError] = []
    for path in sorted(fs.glob(f"{folder}/*.json")):
        if path.endswith(CARD_SUFFIX):
            continue
        try:
            records.append(read_record(path if "file" in _protocols(fs) else fs.unstrip_protocol(path)))
        except RecordError as error:
            damaged.append(error)
    return records, damaged


def write_atomically(path: str, text: str) -> None:
    """Replace a file by new text: temporary file, fsync, rename. Raises OSError."""
    fs, target = fsspec.url_to_fs(path)
    if "file" not in _protocols(fs):
        fs.pipe_file(target, text.encode())  # object stores replace an object as a whole
        return
    folder = Path(target).parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=folder, prefix=".", suffix=".tmp", delete=False
    ) as file:
        temporary = Path(file.name)
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    _sync_folder(folder)


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; not every system can open a folder for that."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
