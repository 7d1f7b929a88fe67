"""Kill writers and runs at random moments, and look for what is damaged, lost or doubled; writes a JSON result.

    python tests/perf/kill_campaign.py --kills 300 --out results/kill_campaign.json

Half of the kills hit processes that do a plan's runs, with a checkpoint after every step, the others a process that
writes records, baselines or checkpoints without a pause. After each kill everything on disk is read: records are whole
and, once there, stay as they are; checkpoints are whole, and a run's newest is never older than before. Whenever a plan
is complete, its numbers are compared with those of the plan that was left alone. The result is written after each kill,
and the same command goes on from it. `tests/bench/runs/test_faults.py` holds the short form.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402

from bench.config import load_plan  # noqa: E402
from bench.events import ignore  # noqa: E402
from bench.gate.baselines import Baseline, load_baseline, save_baseline  # noqa: E402
from bench.records import RunRecord, read_records, record_paths, save_record, write_atomically  # noqa: E402
from bench.runs.fork_server import IMPORTED  # noqa: E402
from bench.runs.job import run_job  # noqa: E402
from bench.runs.job_description import Job  # noqa: E402
from bench.runs.resolve import resolve_plan  # noqa: E402
from bench.timing import speed  # noqa: E402
from bench.timing.clock import create_clock  # noqa: E402
from bench.timing.peak import measure_peak  # noqa: E402
from bench.timing.setting import Setting  # noqa: E402
from bench.training.checkpoint import SUMS, Checkpoints  # noqa: E402

PLAN = {
    "models": ["lenet5", "simple_cnn"], "threads": 1, "device": "cpu", "limit_train": 60,
    "limit_test": 20, "budget": {"epochs": 2}, "recipe": {"base": "quick", "batch_size": 20},
    "measure": {"seconds": 0.02, "block_seconds": 0.001, "batch_size": 2, "probes": False},
}  # fmt: skip
NUMBERS = ("test_top1", "test_loss", "weights_sha256", "steps", "params", "macs")
FAULTS = ("damaged", "lost", "doubled", "different", "failed")
WRITER_SECONDS = 0.1
MOST_EVENTS = 16
"""Of a plan before it is killed; a run has about twenty, so that most are killed once."""


def fork(work: Callable[[], object]) -> int:
    """Do the work in a process of its own; its exit status is 0 where it came to an end."""
    process = os.fork()
    if process == 0:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - said, and the parent counts it
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return process


def kill_after(process: int, seconds: float) -> int:
    """Kill the process after so long, unless it has ended; returns its exit status, negative for the signal."""
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def do_plan(runs: list[Any], folder: Path, on_event: Callable[[Any], object] = ignore) -> None:
    """All runs of the plan, in this process."""
    for run in runs:
        run_job(Job(config=run, results=str(folder), checkpoint_seconds=0.0), on_event)


def numbers(folder: Path) -> dict[str, tuple[Any, ...]]:
    """What a run's kills must not change."""
    return {record.run_id: tuple(map(record.metrics.get, NUMBERS)) for record in read_records(folder)[0]}


def records_of(folder: Path) -> dict[str, bytes]:
    """Each record's content, by the run's id."""
    return {Path(path).stem: Path(path).read_bytes() for path in record_paths(folder)}


def newest_steps(folder: Path) -> dict[str, int]:
    """The step of each run's newest checkpoint, by the run's id; -1 where there is a damaged one."""
    steps = {}
    for own in folder.glob("checkpoints/*"):
        complete = [int(sums.parent.name.removeprefix("step-")) for sums in own.glob(f"step-*/{SUMS}")]
        if complete:
            steps[own.name] = max(complete) if is_intact(Checkpoints(own)) else -1
    return steps


def is_intact(checkpoints: Checkpoints) -> bool:
    """Whether the newest checkpoint is there and loads."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # how `load` tells of a damaged one
        try:
            return checkpoints.load() is not None
        except UserWarning:
            return False


def new_result(seed: int) -> dict[str, Any]:
    """A campaign that has not begun."""
    counts = dict.fromkeys(("kills", "complete_plans", *FAULTS), 0)
    killed = dict.fromkeys(("plan", "record", "baseline", "checkpoint"), 0)
    return counts | {"killed": killed, "seed": seed, "seconds": 0.0}


def campaign(
    kills: int, seeds: int, result: dict[str, Any], root: Path, keep: Callable[[dict[str, Any]], None]
) -> None:
    """Kill until ``result`` counts ``kills``; ``keep`` comes after each. The plan: two models, ``seeds`` seeds."""
    generator = random.Random(f"{result['seed']} {result['kills']}")
    runs = resolve_plan(load_plan("quick", PLAN | {"seeds": list(range(seeds))}), data_dir=None)
    # The machine's peak is measured once: each run would spend most of its time there, where it writes nothing.
    peak = measure_peak(Setting(torch.device("cpu"), runs[0].input_size), create_clock(torch.device("cpu")))
    speed.measure_peak = lambda setting, clock, seconds: peak
    began, before = time.perf_counter(), result["seconds"]
    assert os.waitpid(fork(lambda: do_plan(runs, root / "whole")), 0)[1] == 0
    wanted, plans = numbers(root / "whole"), 0
    writers = _writers(root / "writers")
    killed = result["killed"]
    result |= {"runs_each": len(runs), "torch": torch.__version__}

    def finish(folder: Path) -> None:
        """A plan's last command has ended by itself, or has nothing left to do."""
        result["complete_plans"] += 1
        result["different"] += numbers(folder) != wanted
        result["doubled"] += len(list(folder.glob("earlier/*")))

    while result["kills"] < kills:
        folder = root / f"plan-{plans}"
        if killed["plan"] < kills // 2:
            killed["plan"] += _kill_plan(runs, folder, generator, result)
            if set(numbers(folder)) == set(wanted):
                plans += 1
                finish(folder)
        name, (write, is_whole) = generator.choice(list(writers.items()))
        killed[name] += kill_after(fork(write), generator.uniform(0, WRITER_SECONDS)) == -signal.SIGKILL
        result["damaged"] += not is_whole()
        result["kills"] = sum(killed.values())
        result["seconds"] = round(before + time.perf_counter() - began, 1)
        keep(result)
    folder = root / f"plan-{plans}"
    result["failed"] += os.waitpid(fork(lambda: do_plan(runs, folder)), 0)[1] != 0
    finish(folder)
    keep(result)


def _kill_plan(runs: list[Any], folder: Path, generator: random.Random, result: dict[str, Any]) -> bool:
    """Kill the plan's process at some moment and add to ``result`` what is wrong; returns False if it had ended.

    The moment is a while after one of the run's events, which is as good a choice on a busy machine as on a quiet one.
    """
    records, steps = records_of(folder), newest_steps(folder)
    events, seconds = generator.randint(0, MOST_EVENTS), generator.uniform(0, WRITER_SECONDS)
    happened, say = os.pipe()
    process = fork(lambda: do_plan(runs, folder, lambda event: os.write(say, b".")))
    os.close(say)
    while events and os.read(happened, 1):
        events -= 1
    status = kill_after(process, seconds)
    os.close(happened)
    records_now, steps_now = records_of(folder), newest_steps(folder)
    result["failed"] += status > 0
    result["damaged"] += len(read_records(folder)[1]) + sum(step < 0 for step in steps_now.values())
    result["lost"] += sum(records_now.get(run) != content for run, content in records.items())
    result["lost"] += sum(steps_now.get(run, -1) < step for run, step in steps.items() if run not in records_now)
    return status == -signal.SIGKILL


def _writers(root: Path) -> dict[str, tuple[Callable[[], None], Callable[[], bool]]]:
    """For each kind of file: what writes it without end, and whether what is there is whole."""
    record = RunRecord(run_id="r", status="failed", config={}, environment={"pad": "x" * 200_000})
    baseline = Baseline(name="b", source="measured", saved_at="", side="x" * 100_000, environment={}, entries={})
    checkpoints = Checkpoints(root / "checkpoints")
    weights = {"w": torch.zeros(50_000)}

    def write_records() -> None:
        while True:
            save_record(record, root)

    def write_baselines() -> None:
        while True:
            save_baseline(root, baseline)

    def write_checkpoints() -> None:
        step = 0
        while True:
            step += 1
            checkpoints.save(step, weights, {"step": step})

    save_record(record, root)
    save_baseline(root, baseline)
    checkpoints.save(0, weights, {"step": 0})
    return {
        "record": (write_records, lambda: read_records(root)[1] == []),
        "baseline": (write_baselines, lambda: load_baseline(root, baseline.name) == baseline),
        "checkpoint": (write_checkpoints, lambda: is_intact(checkpoints)),
    }


def main() -> None:
    """Run the campaign and write its result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3, help="of the plan: twice as many runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for module in IMPORTED:
        __import__(module)
    out = options.out
    result = json.loads(out.read_text()) if out and out.exists() else new_result(options.seed)

    def keep(result: dict[str, Any]) -> None:
        if out:
            write_atomically(str(out.absolute()), json.dumps(result, indent=1) + "\n")

    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        campaign(options.kills, options.seeds, result, Path(name), keep)
    print(json.dumps(result, indent=1))
    sys.exit(any(result[kind] for kind in FAULTS))


if __name__ == "__main__":
    main()
