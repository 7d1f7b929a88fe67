"""Runs on many machines: each is a task of Ray, which starts the same process for it as runs have on one machine.

Nothing here is a scheduler or a store of our own: Ray places the tasks and tries those again whose machine is lost;
the record and the checkpoints in the results folder, which all machines must reach, say what is done.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from bench.config import Plan, RunConfig
from bench.errors import ConfigError, DataError, UserError
from bench.events import OnEvent, RunBegins, RunEvent, ignore, read_events, to_json
from bench.records import RunFailure, RunRecord, is_local, save_record
from bench.runs.execution import find_done
from bench.runs.executors import LocalExecutor
from bench.runs.job_description import Job
from bench.runs.ledger import Ending, died
from bench.runs.resolve import load_plan_dataset, resolve_plan
from zoo.info import ZooError

RETRIES = 5
"""How often a run is tried again whose machine was lost, or whose worker was killed, each time from its checkpoint."""
LOOPBACK = "127.0.0.1"
ADDRESS = re.compile(r"(?:ray://)?([^/:]+):([0-9]{1,5})")
CONNECT_SECONDS = 10
FOLLOW_SECONDS = 0.5
"""How often the driver looks for what the runs report."""


class RayExecutor:
    """Does runs as tasks of the cluster at ``address``, or of a Ray of its own on this machine.

    Raises `ConfigError` on entry if Ray is not installed or the cluster cannot be reached.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address

    def __enter__(self) -> Self:
        try:
            import ray
        except ImportError as error:
            raise ConfigError("--executor ray needs Ray. Install it: pip install 'zoobench[ray]'.") from error
        self._ray = ray
        options: dict[str, Any] = {"log_to_driver": False, "include_dashboard": False, "_node_ip_address": LOOPBACK}
        if self._address is not None:
            options = {"log_to_driver": False}
        try:
            if self._address is not None and (match := ADDRESS.fullmatch(self._address)):
                socket.create_connection((match[1], int(match[2])), CONNECT_SECONDS).close()  # Ray tries for minutes
            ray.init(address=self._address or "local", configure_logging=False, **options)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"there is no Ray cluster to be reached at --address {self._address!r}: {error}. Start one with "
                "`ray start --head`, or leave --address out for a Ray of this machine alone."
            ) from error
        return self

    def __exit__(self, *raised: object) -> None:
        self._ray.shutdown()

    def resolve(self, plan: Plan, data_dir: str | None, on: OnEvent) -> list[RunConfig]:
        """The plan's runs, resolved on a machine of the cluster that has the data, and a GPU where one is wanted."""
        nodes = self._nodes(plan.device)
        threads = plan.threads or max(1, int(min(node["Resources"].get("CPU", 1) for node in nodes)) // plan.nproc)
        on_gpu = None if plan.gpu is None else plan.gpu.model_copy(update={"threads": plan.gpu.threads or threads})
        wanted = plan.model_copy(update={"threads": threads, "gpu": on_gpu}).model_dump_json()
        gpus = plan.nproc * int(plan.device.startswith("cuda") or (plan.device == "auto" and _has_gpu(nodes[0])))
        for what, needed in (("CPU", plan.nproc * threads), ("GPU", gpus)):
            most = max(node["Resources"].get(what, 0) for node in nodes)
            if needed > most:
                raise ConfigError(
                    f"a run of {plan.nproc} processes with {threads} threads each needs {needed} {what}s on one "
                    f"machine, and the largest of the Ray cluster has {most:g}. Give a smaller --threads or --nproc."
                )
        refused = []
        for node in nodes:
            task = self._remote(_resolve, node["NodeID"], num_cpus=1, num_gpus=gpus)
            try:
                answer = self._ray.get(task.remote(wanted, _absolute(data_dir)))
            except self._ray.exceptions.RayTaskError as error:  # whose text is the whole traceback there
                raise error.cause if isinstance(error.cause, UserError | ZooError) else error from None
            if isinstance(answer, list):
                return [RunConfig.model_validate_json(run) for run in answer]
            refused.append(answer)
        raise DataError(f"no machine of the cluster has the data: {refused[0]}")

    def run_all(self, jobs: Sequence[Job], notify: OnEvent) -> Iterator[RunRecord]:
        """Do the jobs wherever there is room, and follow their events; a run that is tried again reports anew."""
        tasks: dict[Any, tuple[Job, tuple[str, ...]]] = {}
        self._queue = self._create_queue()
        followed = _Followed({job.config.run_id: job.config for job in jobs}, notify)
        for job in map(_everywhere, jobs):
            tasks[self._submit(job, ())] = job, ()
        while tasks:
            done, _ = self._ray.wait(list(tasks), num_returns=1, timeout=FOLLOW_SECONDS)
            self._pass_on(followed)
            if not done:
                continue
            (ready,) = done
            job, refused = tasks.pop(ready)
            answer = self._answer(ready, job)
            if isinstance(answer, _Misplaced):
                refused = (*refused, answer.node)
                if not self._nodes(job.config.device, without=refused):
                    raise DataError(f"no machine of the cluster has the data: {answer.message}")
                tasks[self._submit(job, refused)] = job, refused
                continue
            followed.end(job.config.run_id)
            yield answer

    def _create_queue(self) -> Any:
        """What the runs put their events into; on this machine, so that it ends with no other."""
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=False)
        return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})

    def _pass_on(self, followed: _Followed) -> None:
        if self._queue is None:
            return
        try:
            lines = self._queue.get_nowait_batch(self._queue.size())
        except self._ray.exceptions.RayActorError as error:
            warnings.warn(f"the runs are no longer followed, only their ends: {error}", stacklevel=2)
            self._queue = None
            return
        for event in read_events(lines):
            followed.on(event)

    def _submit(self, job: Job, refused: tuple[str, ...]) -> Any:
        """Start a task; on one of the machines that have not refused it where some have."""
        node = self._nodes(job.config.device, without=refused)[0]["NodeID"] if refused else None
        nproc = job.config.nproc
        gpus = nproc * int(job.config.device.startswith("cuda"))
        task = self._remote(_do, node, num_cpus=nproc * job.config.threads, num_gpus=gpus, max_retries=RETRIES)
        return task.remote(job.model_dump_json(), self._queue)

    def _answer(self, ready: Any, job: Job) -> RunRecord | _Misplaced:
        """What a task returned; a task that Ray gave up leaves a record that says so. Raises what the task raised."""
        try:
            answer = self._ray.get(ready)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, UserError) else error from None
        except self._ray.exceptions.RayError as error:
            ending: Ending = "out_of_memory" if isinstance(error, self._ray.exceptions.OutOfMemoryError) else "lost"
            failure = RunFailure(kind=type(error).__name__, message=f"tried {RETRIES + 1} times: {error}")
            record = find_done(job) or died(job, ending, failure)
            if record.status == "failed":
                save_record(record, job.results)
            return record
        return answer if isinstance(answer, _Misplaced) else RunRecord.model_validate_json(answer)

    def _remote(self, function: Any, node: str | None, **options: Any) -> Any:
        """The function as a task, in a worker of its own, on one machine where it is named."""
        if node is not None:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
        return self._ray.remote(max_calls=1, **options)(function)

    def _nodes(self, device: str, without: Sequence[str] = ()) -> list[dict[str, Any]]:
        """The machines that can do the runs of a plan: those with a GPU, where it is ``auto``, before others."""
        alive = [node for node in self._ray.nodes() if node["Alive"] and node["NodeID"] not in without]
        able = [node for node in alive if node["Resources"].get("CPU", 0) >= 1]
        with_gpu = [node for node in able if _has_gpu(node)]
        if device.startswith("cuda") and not with_gpu and not without:
            raise ConfigError(f"--device {device} is not possible: no machine of the Ray cluster has a GPU.")
        chosen = with_gpu if device.startswith("cuda") or (device == "auto" and with_gpu) else able
        if not chosen and not without:
            raise ConfigError("no machine of the Ray cluster has a free CPU. `ray status` shows what there is.")
        return chosen


class _Misplaced:
    """A machine cannot do a run: it lacks the data."""

    def __init__(self, node: str, message: str) -> None:
        self.node, self.message = node, message


class _Followed:
    """Passes on the events of runs: of each its beginning once and first, and nothing after its end."""

    def __init__(self, configs: Mapping[str, RunConfig], notify: OnEvent) -> None:
        self._waiting, self._running, self._notify = dict(configs), set[str](), notify

    def on(self, event: RunEvent) -> None:
        """An event of any of the runs."""
        run_id = getattr(event, "run_id", "")
        self._begin(run_id)
        if run_id in self._running:
            self._notify(event)

    def end(self, run_id: str) -> None:
        """The run has its record."""
        self._begin(run_id)
        self._running.discard(run_id)

    def _begin(self, run_id: str) -> None:
        if (config := self._waiting.pop(run_id, None)) is not None:
            self._running.add(run_id)
            self._notify(RunBegins(config))


def _do(job_json: str, queue: Any) -> str | _Misplaced:
    """In a worker of Ray: the run, in a process of its own; returns its record as JSON. Its events go to the queue."""
    import ray

    sent: list[Any] = []

    def send(event: RunEvent) -> None:
        if queue is not None:
            sent[:] = [queue.actor.put_nowait.remote(to_json(event))]  # not waited for: the run goes on

    node = ray.get_runtime_context().get_node_id()
    job = Job.model_validate_json(job_json).model_copy(update={"node": node})
    if (record := find_done(job)) is None:
        try:
            load_plan_dataset(job.config, job.config.input_size, job.data_dir, ignore)
        except DataError as error:
            return _Misplaced(node, str(error))
        if job.config.device == "cpu":
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves the GPUs visible to a task that asks for none
        with LocalExecutor() as executor:
            record = executor.run(job, send)
        with contextlib.suppress(ray.exceptions.RayActorError):  # the driver warns that the queue is gone
            ray.get(sent)  # they arrive in order, and all before the record
    return record.model_dump_json()


def _resolve(plan_json: str, data_dir: str | None) -> list[str] | str:
    """In a worker of Ray: the plan's runs as JSON, or why this machine cannot do them."""
    try:
        runs = resolve_plan(Plan.model_validate_json(plan_json), data_dir=data_dir)
    except DataError as error:
        return str(error)
    return [run.model_dump_json() for run in runs]


def _everywhere(job: Job) -> Job:
    """The job with paths that mean the same on every machine."""
    results = _absolute(job.results) if is_local(job.results) else job.results
    return job.model_copy(update={"results": results, "data_dir": _absolute(job.data_dir)})


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).resolve())


def _has_gpu(node: dict[str, Any]) -> bool:
    return bool(node["Resources"].get("GPU", 0) >= 1)
