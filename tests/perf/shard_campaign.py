"""Kill the shards of a plan again and again, and look for runs that are lost, damaged or doubled; writes a JSON result.

    python tests/perf/shard_campaign.py --runs 40 --kills 40 --out results/shard_campaign.json

Four processes do ``--shard I/4`` of a plan of very short runs on one results folder at the same time. Each is killed
after a number of events that a seeded generator draws, and started again, until its kills are spent; then it may
finish. The same plan was done before by one process that was left alone. `tests/bench/runs/test_shards.py` holds the
short form.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import selectors
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402

from bench.config import Plan, RunConfig, load_plan  # noqa: E402
from bench.events import Event, OnEvent, RunBegins  # noqa: E402
from bench.records import RunRecord, read_records  # noqa: E402
from bench.runs.executors import LocalExecutor  # noqa: E402
from bench.runs.fork_server import IMPORTED  # noqa: E402
from bench.runs.job import run_job  # noqa: E402
from bench.runs.job_description import Job  # noqa: E402
from bench.runs.resolve import resolve_plan  # noqa: E402
from bench.runs.runner import run_plan  # noqa: E402
from bench.runs.shards import Shard, choose_shard  # noqa: E402

TINY = {
    "models": ["lenet5"], "threads": 1, "device": "cpu", "limit_train": 20, "limit_test": 10, "autocast": False,
    "channels_last": True, "budget": {"epochs": 2}, "recipe": {"base": "quick", "batch_size": 10},
    "measure": {"seconds": 0.01, "block_seconds": 0.001, "batch_size": 2, "repeats": 3, "probes": False},
}  # fmt: skip
NUMBERS = ("test_top1", "test_loss", "weights_sha256", "steps", "params", "macs")
SHARDS = 4
EVENTS = 40
"""The most events before a kill: those of about two runs."""


class InThisProcess(LocalExecutor):
    """Does the runs in this process, which is to be killed: a process for each would cost seconds."""

    def run_all(self, jobs: Sequence[Job], notify: OnEvent) -> Iterator[RunRecord]:
        """Do the jobs, one after the other."""
        for job in jobs:
            notify(RunBegins(job.config))
            yield run_job(job, notify)


@dataclass
class Tell:
    """An observer that writes a byte for each event."""

    descriptor: int

    def on(self, event: Event) -> None:
        """Tell that something happened."""
        os.write(self.descriptor, b".")


def begin(plan: Plan, folder: Path, shard: Shard | None = None) -> tuple[int, int]:
    """Do a plan, or its shard, in a fork of this process; its id, and where its events can be read."""
    read, write = os.pipe()
    process = os.fork()
    if process:
        os.close(write)
        return process, read
    try:
        outcome = run_plan(
            plan, str(folder), [Tell(write)], executor=InThisProcess(), shard=shard, checkpoint_seconds=0.0
        )
        os._exit(any(record.status != "completed" for record in outcome.records))
    except BaseException as error:  # noqa: BLE001 - said, and the parent counts it
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(2)


def end(process: int, events: int) -> int:
    """Wait for a process; its exit status, negative for a signal."""
    os.close(events)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def disturb(plan: Plan, folder: Path, kills: int, seed: int) -> tuple[int, list[int]]:
    """Do all shards at once and kill ``kills`` times; how many hit a living process, and the other exit statuses."""
    generators = [random.Random(f"{seed} {number}") for number in range(SHARDS)]
    left = [kills // SHARDS + (number < kills % SHARDS) for number in range(SHARDS)]
    hits, statuses = 0, []
    with selectors.DefaultSelector() as selector:

        def start(number: int) -> None:
            process, events = begin(plan, folder, Shard(number + 1, SHARDS))
            lives = generators[number].randint(1, EVENTS) if left[number] else None
            selector.register(events, selectors.EVENT_READ, [number, process, lives])

        for number in range(SHARDS):
            start(number)
        while selector.get_map():
            for key, _ in selector.select():
                number, process, lives = key.data
                happened = len(os.read(key.fd, 1 if lives is not None else 4096))
                if happened and (lives is None or lives > happened):
                    key.data[2] = lives and lives - happened
                    continue
                if happened:
                    os.kill(process, signal.SIGKILL)
                selector.unregister(key.fd)
                status = end(process, key.fd)
                if status == -signal.SIGKILL:
                    hits += 1
                    left[number] -= 1
                    start(number)
                else:
                    statuses.append(status)
    return hits, statuses


def numbers(records: Sequence[RunRecord]) -> dict[str, tuple[Any, ...]]:
    """What kills must not change."""
    return {record.run_id: tuple(map(record.metrics.get, NUMBERS)) for record in records}


def not_in_one_shard(plan: Plan, runs: Sequence[RunConfig]) -> int:
    """Over every number of shards up to one more than there are runs: the runs that are not in exactly one."""
    wrong = 0
    for parts in range(1, len(runs) + 2):
        shards = [choose_shard(runs, Shard(number + 1, parts), None) for number in range(parts)]
        counted = Counter(run.run_id for shard in shards for run in shard)
        wrong += sum(counted[run.run_id] != 1 for run in runs)
    return wrong


def campaign(runs: int, kills: int, seed: int, root: Path) -> dict[str, Any]:
    """The plan alone, then in shards that are killed, and what is different."""
    plan = load_plan("quick", TINY | {"seeds": list(range(runs))})
    began = time.perf_counter()
    alone = end(*begin(plan, root / "whole"))
    hits, statuses = disturb(plan, root / "killed", kills, seed)
    records, damaged = read_records(root / "killed")
    wanted, found = numbers(read_records(root / "whole")[0]), numbers(records)
    attempts = Counter(record.environment["ledger"]["attempts"] for record in records)
    return {
        "runs": runs, "shards": SHARDS, "kills": hits, "alone": len(wanted),
        "lost": len(wanted.keys() - found.keys()),
        "damaged": len(damaged),
        "doubled": len(list((root / "killed").glob("earlier/*"))),
        "different": sum(found[run_id] != wanted[run_id] for run_id in wanted.keys() & found.keys()),
        "unplanned": len(found.keys() - wanted.keys()) + runs - len(wanted),
        "failed": int(alone != 0) + sum(status != 0 for status in statuses),
        "not_in_one_shard": not_in_one_shard(plan, resolve_plan(plan, data_dir=None)),
        "runs_by_attempts": {str(count): attempts[count] for count in sorted(attempts)},
        "seed": seed, "seconds": round(time.perf_counter() - began, 1), "torch": torch.__version__,
    }  # fmt: skip


FAULTS = ("lost", "damaged", "doubled", "different", "unplanned", "failed", "not_in_one_shard")


def main() -> None:
    """Run the campaign and write its result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for module in IMPORTED:
        __import__(module)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        os.environ["ZOOBENCH_CACHE"] = f"{name}/cache"
        result = campaign(options.runs, options.kills, options.seed, Path(name))
    text = json.dumps(result, indent=1)
    options.out.write_text(text + "\n") if options.out else print(text)
    sys.exit(any(result[kind] for kind in FAULTS))


if __name__ == "__main__":
    main()
