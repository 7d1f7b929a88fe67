"""From a plan to its records: resolves what the plan leaves open, skips what is done, records what fails."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.config import Plan, RunConfig
from bench.errors import ConfigError, RecordError
from bench.events import Event, Observer, PlanBegins, PlanEnds, RunEnds
from bench.records import (
    RunRecord,
    check_writable,
    find_intact_record,
    find_record,
    find_record_of_job,
    is_local,
)
from bench.runs.executors import Executor, LocalExecutor
from bench.runs.job_description import Job
from bench.runs.locks import is_held
from bench.runs.measure_again import is_measured_as
from bench.runs.shards import Shard, choose_shard
from bench.signals import ended_by_signals
from bench.stores import file_system, names_in


@dataclass
class Outcome:
    """What became of a plan: the runs that ended, in the plan's order, and the runs that are left.

    ``skipped`` counts the runs that were done before, ``measured_again`` those that were trained before. ``ended`` has
    of each run that ended its id and its job's.
    """

    results: str
    ended: list[tuple[str, str]] = field(default_factory=list)
    skipped: int = 0
    measured_again: int = 0
    left: list[RunConfig] = field(default_factory=list)
    interrupted: bool = False

    @property
    def records(self) -> list[RunRecord]:
        """The records of the runs that ended, read anew: a plan may have more than memory should hold."""
        found = [
            find_record_of_job(self.results, run_id, job_id) or find_intact_record(self.results, run_id)
            for run_id, job_id in self.ended
        ]
        return [record for record in found if record is not None]


def run_plan(
    plan: Plan,
    results: str,
    observers: Sequence[Observer] = (),
    *,
    executor: Executor | None = None,
    shard: Shard | None = None,
    data_dir: str | Path | None = None,
    command: str = "",
    force: bool = False,
    measure_again: bool = False,
    checkpoint_seconds: float = 60.0,
    save_weights: bool = False,
) -> Outcome:
    """Do the plan's runs, or those of a ``shard`` of it, each in a process of its own.

    They are done where the ``executor`` does them; by default one after the other on this machine. Events and records
    of several at once come as they happen.

    A run whose record says ``completed`` or ``diverged`` is skipped unless ``force``; a failed one is tried again. A
    completed run whose record was measured with other settings, or any with ``measure_again``, is measured and not
    trained. A new record never overwrites: `save_record` keeps the earlier one.
    ``KeyboardInterrupt`` ends the runs in progress and is reported by the outcome; SIGTERM ends them as well, and then
    the process. Training leaves a checkpoint at each
    epoch's end and every ``checkpoint_seconds``, from which a killed run goes on. Observers see every event, and
    `PlanEnds` last, whatever happens.
    """

    def notify(event: Event) -> None:
        for observer in observers:
            observer.on(event)

    data_dir = str(data_dir) if data_dir is not None else None
    try:
        check_writable(results)
        if save_weights and not is_local(results):
            raise ConfigError(f"--save-weights needs a folder of this machine for --results, not {results!r}.")
        if results.startswith("memory:"):
            raise RecordError(
                f"the results folder {results!r} is one of this process alone, and runs are done in processes of their "
                "own. Name a folder, or a store that all of them reach, with --results."
            )
        with ended_by_signals(), executor or LocalExecutor() as chosen:
            runs = chosen.resolve(plan, data_dir, notify)
            if shard is not None:
                runs = choose_shard(runs, shard, data_dir)
            before = {} if force else {run.run_id: record for run in runs if (record := _finished(results, run))}
            trained = {
                run.run_id: record
                for run in runs
                if (record := before.get(run.run_id)) is not None
                and record.status == "completed"
                and (measure_again or not is_measured_as(record, run.measure))
            }
            skipped = {run_id: record for run_id, record in before.items() if run_id not in trained}
            done = {run_id: _job_of(record) for run_id, record in skipped.items()}
            outcome = Outcome(results, skipped=len(skipped), measured_again=len(trained))
            _remove_checkpoints(results, skipped)
            notify(PlanBegins(tuple(runs), tuple(skipped.values())))
            _warn_of_missing_probes(runs, before)
            del before, skipped
            job_of = functools.partial(
                Job,
                results=results,
                data_dir=data_dir,
                checkpoint_seconds=checkpoint_seconds,
                fresh=force,
                save_weights=save_weights,
                plan=plan.name,
                command=command,
            )
            jobs = [job_of(config=run, trained=trained.pop(run.run_id, None)) for run in runs if run.run_id not in done]
            try:
                for record in chosen.run_all(jobs, notify):
                    done[record.run_id] = _job_of(record)
                    notify(RunEnds(record))
                    _warn(record)
            except KeyboardInterrupt:
                outcome.interrupted = True
    finally:
        notify(PlanEnds())
    ids = [run.run_id for run in runs]
    outcome.ended = [(run_id, done[run_id]) for run_id in ids if run_id in done]
    outcome.left = [run for run, run_id in zip(runs, ids, strict=True) if run_id not in done]
    return outcome


def _warn_of_missing_probes(runs: Sequence[RunConfig], before: Mapping[str, RunRecord]) -> None:
    asked = [run.run_id for run in runs if run.measure.probes and run.run_id in before]
    without = [run_id for run_id in asked if (before[run_id].config.get("measure") or {}).get("probes") is False]
    if without:
        warnings.warn(
            f"{', '.join(without)}: trained with measure.probes = false, and probes are of a network that was just "
            "trained. --force trains again.",
            stacklevel=3,
        )


def _job_of(record: RunRecord) -> str:
    return str(record.environment.get("job_id", ""))


def _finished(results: str, run: RunConfig) -> RunRecord | None:
    try:
        record = find_record(results, run.run_id)
    except RecordError as error:
        warnings.warn(f"{error} It is repeated now.", stacklevel=2)
        return None
    return record if record is not None and record.status != "failed" else None


def _remove_checkpoints(results: str, done: Collection[str]) -> None:
    """Those of runs that were killed when they had saved their record, unless another command does them again.

    What cannot be removed stays.
    """
    fs, folder = file_system(f"{results.rstrip('/')}/checkpoints")
    for run_id in names_in(fs, folder):
        if run_id in done and not is_held(results, run_id):
            with contextlib.suppress(OSError):
                fs.rm(f"{folder}/{run_id}", recursive=True)


def _warn(record: RunRecord) -> None:
    for flag in record.flags:
        if flag.kind == "no_checkpoint":
            warnings.warn(f"{record.run_id}: {flag.message}.", stacklevel=2)
