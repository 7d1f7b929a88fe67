"""Records: a run's stored outcome, one JSON file a run, written atomically and validated on write and on read.

Each plan has a results folder of its own, ``results/PLAN`` by default, or an fsspec URL such as ``s3://bucket/quick``.
Records alone are in its ``runs``: ``runs/RUN_ID.json``; what else a run leaves is beside it (`STORED`).
This module imports no torch, so that a report can be drawn on a machine without it.
"""

from __future__ import annotations

import json
import re
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.errors import RecordError, UnwritableError
from bench.flags import Flag as Flag
from bench.stores import exists, file_system, glob, names_in, protocols, reaching
from bench.stores import is_local as is_local
from bench.stores import write_atomically as write_atomically

SCHEMA_VERSION: Final = 1

ROOT: Final = "results"
"""Where the plans' folders are by default."""

ROOM_BYTES: Final = 65536
"""What must be free for a record, before anything is trained."""

EARLIER: Final = "earlier"
"""The folder of records that were replaced when a run was measured or trained again."""

FAILED: Final = "failed"
"""The folder of failures of runs that have a good record: these do not replace it."""

Kind = Literal["cards", "probes", "weights"]
STORED: Final[dict[Kind, str]] = {"cards": ".json", "probes": ".npz", "weights": ".safetensors"}
"""What a run may leave besides its record, as ``KIND/RUN_ID.SUFFIX``: the architecture's card, arrays that only the
live network can give, and its weights."""

_FORMERLY: Final[dict[str, str]] = {"cards": ".card.json", "probes": ".probes.npz"}
"""How these were named when they lay among the records, in ``runs``; such folders are still read."""

Status = Literal["completed", "diverged", "failed"]

Folders = str | Path | Sequence[str | Path]
"""A results folder, or several that are read as one: those of a plan's shards, for example."""


Scalar = bool | int | float | str | None
"""JSON has no NaN and no infinity: the loss of a diverged run is stored as null."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunFailure(_Frozen):
    """Why a run has no result: the exception's class (or the signal), its message, and its traceback."""

    kind: str
    message: str
    traceback: str = ""


class RunRecord(_Frozen):
    """Everything that is kept of one run.

    ``metrics`` is flat: a key ends with its unit unless it is a count or a fraction. ``history`` has a row an epoch.
    ``samples`` holds the raw block times in seconds, a list a repeat (earlier records: one list for all), and other raw
    measurements, by name.
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


def study_path(results: str | Path) -> str:
    """Where a study's claim, variants and comparisons are kept, beside the records of its runs."""
    return f"{str(results).rstrip('/')}/study.json"


def runs_folder(results: str | Path) -> str:
    """The folder of the records in a results folder."""
    return f"{str(results).rstrip('/')}/runs"


def stored_path(results: str | Path, kind: Kind, run_id: str) -> str:
    """Where a run stores something of that kind."""
    return f"{str(results).rstrip('/')}/{kind}/{run_id}{STORED[kind]}"


def each_folder(folders: Folders) -> list[str]:
    """The folders as a list, without trailing slashes."""
    several = [folders] if isinstance(folders, str | Path) else folders
    return [str(folder).rstrip("/") or "/" for folder in several]


def find_stored(results: Folders, kind: Kind, run_id: str) -> str | None:
    """Where something of that kind of a run is, also in a folder of the earlier layout; None if there is none."""
    places = []
    for folder in each_folder(results):
        places.append(stored_path(folder, kind, run_id))
        if kind in _FORMERLY:
            places.append(f"{runs_folder(folder)}/{run_id}{_FORMERLY[kind]}")
    return next((place for place in places if exists(place)), None)


def list_stored(results: Folders, kind: Kind) -> set[str]:
    """The ids of the runs that have something of that kind."""
    patterns = []
    for folder in each_folder(results):
        patterns.append((f"{folder}/{kind}", STORED[kind]))
        if kind in _FORMERLY:
            patterns.append((runs_folder(folder), _FORMERLY[kind]))
    return {
        str(name).rpartition("/")[2].removesuffix(suffix)
        for folder, suffix in patterns
        for name in glob(f"{folder}/*{suffix}")
    }


def record_paths(results: str | Path, *, earlier: bool = False) -> list[str]:
    """The records of a results folder, sorted, one a run; then perhaps the earlier ones, which these replaced.

    Temporary files, and cards of the earlier layout, are none.
    """
    names = [name for name in glob(f"{runs_folder(results)}/*.json") if not name.endswith(_FORMERLY["cards"])]
    return names + (glob(f"{str(results).rstrip('/')}/{EARLIER}/*.json") if earlier else [])


def plan_folders(root: str | Path) -> list[str]:
    """The plans' results folders in ``root``, sorted; the first is ``root`` itself where it has records of its own."""
    fs, folder = file_system(root)
    base = str(root).rstrip("/")
    with reaching(root):
        inner = [name for name in names_in(fs, folder) if fs.exists(f"{folder.rstrip('/')}/{name}/runs")]
        return [base] * fs.exists(f"{folder.rstrip('/')}/runs") + [f"{base}/{name}" for name in inner]


def own_or_inner_plans(path: Folders) -> list[str]:
    """The plans' results folders in each of the folders, or a folder alone where it is a plan's own."""
    found = []
    for own in each_folder(path):
        folders = plan_folders(own)
        found += [own] if own in folders else folders
    return list(dict.fromkeys(found))


def plan_name(folder: str | Path) -> str:
    """What the plan of a results folder is called."""
    return Path(str(folder).rstrip("/")).resolve().name if is_local(folder) else str(folder).rstrip("/").split("/")[-1]


def save_record(record: RunRecord, results: str | Path) -> str:
    """Write a record and return its path; a reader sees the old file or the new one, never half of one.

    An earlier record of the run, unless it failed, is kept in the folder ``earlier``; and a failure does not replace
    it: that goes into the folder ``failed``, until the run succeeds.
    Raises `RecordError` if the record is not valid or its folder cannot be written.
    """
    try:
        RunRecord.model_validate(record.model_dump())
    except ValidationError as error:
        raise RecordError(f"the record of {record.run_id} is not valid and was not written: {error}") from error
    before = find_intact_record(results, record.run_id)
    good = before if before is not None and before.status != "failed" else None
    failure = _failure_path(results, record.run_id)
    path = failure if record.status == "failed" and good is not None else record_path(results, record.run_id)
    try:
        if good is not None and path != failure:
            write_atomically(_earlier_path(results, good), good.model_dump_json(indent=1) + "\n")
        write_atomically(path, record.model_dump_json(indent=1) + "\n")
        if path != failure and exists(failure):
            fs, local = file_system(failure)
            fs.rm(local)
    except OSError as error:
        raise unwritable(results, error) from error
    return path


def _earlier_path(results: str | Path, record: RunRecord) -> str:
    started = re.sub(r"[^0-9T]", "", str(record.environment.get("started_at", "")).partition("+")[0])
    return f"{str(results).rstrip('/')}/{EARLIER}/{record.run_id}-{started or 'undated'}.json"


def _failure_path(results: str | Path, run_id: str) -> str:
    return f"{str(results).rstrip('/')}/{FAILED}/{run_id}.json"


def find_record_of_job(results: str | Path, run_id: str, job_id: str) -> RunRecord | None:
    """The record that a job has left, as the run's record or, where it failed, beside it; None if it left none."""
    for path in (record_path(results, run_id), _failure_path(results, run_id)):
        record = _read_intact(path)
        if record is not None and record.environment.get("job_id") == job_id:
            return record
    return None


def find_intact_record(results: str | Path, run_id: str) -> RunRecord | None:
    """As `find_record`; None also where the record is damaged."""
    return _read_intact(record_path(results, run_id))


def _read_intact(path: str) -> RunRecord | None:
    if not exists(path):
        return None
    try:
        return read_record(path)
    except RecordError:
        return None


def check_writable(results: str | Path) -> None:
    """Make the results folder, and raise `RecordError` now rather than after an hour of training if that fails."""
    fs, folder = file_system(runs_folder(results))
    try:
        if "file" in protocols(fs):
            fs.makedirs(folder, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as file:
                file.write(bytes(ROOM_BYTES))  # an empty file may fit where nothing else does
                file.flush()
            return
        probe = f"{runs_folder(results)}/.probe-{uuid.uuid4().hex}"
        write_atomically(probe, b"")  # a store has no folders; this makes no bucket either
        fs.rm_file(file_system(probe)[1])
    except (FileNotFoundError, NotADirectoryError) as error:  # no place for a folder: another name is wanted
        raise RecordError(str(unwritable(results, error))) from error
    except OSError as error:
        raise unwritable(results, error) from error


def check_exists(results: str | Path) -> None:
    """Raise `RecordError` if there is no results folder of that name."""
    fs, folder = file_system(results)
    with reaching(results):
        is_there = fs.exists(folder)
    if not is_there:
        raise RecordError(
            f"the results folder {str(results)!r} does not exist. `zoobench run PLAN` makes {ROOT}/PLAN; "
            "name another with --results DIR."
        )


def unwritable(results: str | Path, error: OSError) -> UnwritableError:
    """The error for a results folder that refuses to be written."""
    return UnwritableError(
        f"the results folder {str(results)!r} cannot be written: {error.strerror or error}. "
        "Name another with --results DIR, or free space and mend its permissions."
    )


def parse_json(content: str | bytes) -> Any:
    """As `json.loads`; a file that nests too deep for it, which only hostile ones do, is a `ValueError` as well."""
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def read_record(path: str | Path) -> RunRecord:
    """Read one record. Raises `RecordError` if it is missing, damaged or of another schema version."""
    fs, local = file_system(path)
    try:
        content = parse_json(fs.cat_file(local))
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
    path = record_path(results, run_id)
    return read_record(path) if exists(path) else None


def read_records(results: str | Path) -> tuple[list[RunRecord], list[RecordError]]:
    """All records of a results folder, by run id, and an error for each one that cannot be read."""
    records: list[RunRecord] = []
    damaged: list[RecordError] = []
    for path in record_paths(results):
        try:
            records.append(read_record(path))
        except RecordError as error:
            damaged.append(error)
    return records, damaged
