"""The honest experiment on the regression gate: how often it cries wolf, and how often it sees one.

A round compares, for one model, a base lane with itself and with lanes that do 5%, 10% and 20% more of the same work,
by the very duet, statistics and looks that `zoobench compare` uses. The slowdown is real: where base runs 20 steps in
a block, the others run 21, 22 and 24. All lanes of a round live in the same processes; each is its own comparison with
base, on base blocks of its own, and its seconds are counted on its own (every start of a process in full).

Beside it, fed the seconds that our comparison of base with itself took in the same round, two gates as they are in
use: 7% on the medians, and the rule of asv (a factor of 1.1 and a Mann-Whitney test at 0.002), both on blocks of
separate processes, base first, then head. Their slowdowns are head's own blocks, each made longer by that share.

    python tests/perf/gate_experiment.py --n 60 --hogs 0 --out results/gate.jsonl
    python tests/perf/gate_experiment.py --n 60 --hogs 2 --out results/gate.jsonl
    python tests/perf/gate_experiment.py --show --out results/gate.jsonl

Each round is appended to the file; the same command goes on where the last one ended.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

import zoo
from bench.environment import describe_commit, describe_machine
from bench.measure.compare import choose_batch_size
from bench.measure.complexity import count_macs
from bench.measure.duet import MIN_QUADS, QUAD_ORDERS, Duet, Lane, PairSample, Quad, Setting, Stage
from bench.measure.interference import Interference
from bench.measure.nursery import Nursery
from bench.measure.rounds import MIN_PAIR_SECONDS, PLANNED_PAIRS, create_witnesses, least_pair_seconds
from bench.measure.verdicts import Jury

SLOWDOWNS = (0.0, 0.05, 0.10, 0.20)
STEPS = 20
"""Of which 5% is one step. Blocks are multiples of this; models are such that it takes at most some 30 ms."""
MODELS = "lenet5,simple_cnn,resnet20,mobilenet_v1_025"
GATES = ("zoobench", "median 7%", "asv")
ROOT = str(Path(zoo.__file__).parent.parent)


def main() -> None:
    """Run what is missing of the experiment, then print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=60, help="rounds, over all models in turn")
    parser.add_argument("--seconds", type=float, default=30.0, help="the budget of one comparison")
    parser.add_argument("--hogs", type=int, default=0, help="processes that keep a core busy all the time")
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--mode", choices=("infer", "train"), default="infer")
    parser.add_argument("--out", type=Path, default=Path("gate.jsonl"))
    parser.add_argument("--no-others", action="store_true", help="leave the other gates out: half the time")
    parser.add_argument("--show", action="store_true", help="only print the table of what is there")
    arguments = parser.parse_args()
    if not arguments.show:
        setting = Setting(mode=arguments.mode)
        condition = {"hogs": arguments.hogs, "seconds": arguments.seconds, "mode": arguments.mode}
        done = [row for row in read_rows(arguments.out) if condition.items() <= row.items()]
        models = itertools.cycle(arguments.models.split(","))
        with hogs(arguments.hogs):
            for number, model in zip(range(arguments.n), models, strict=False):
                if number < len(done):
                    continue
                lane = Lane(sys.executable, ROOT, model)
                row = condition | {"round": number, "model": model, "machine": describe_machine("cpu")}
                row |= {"git": describe_commit(Path(ROOT), "bench", "zoo", "tests/perf")}
                row |= {"begun": time.time(), "gates": {}}
                row["gates"]["zoobench"] = run_round(lane, setting, arguments.seconds, number)
                if not arguments.no_others:
                    fed = row["gates"]["zoobench"]["0.00"]["seconds"]
                    row["gates"] |= run_others(lane, setting, fed, number)
                with arguments.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"round {number + 1} of {arguments.n}, {model}: {verdicts(row)}", file=sys.stderr, flush=True)
    print(render(read_rows(arguments.out)))


def run_round(lane: Lane, setting: Setting, budget_seconds: float, number: int) -> dict[str, Any]:
    """All comparisons of a round, each with its verdict, the seconds that it took and its pairs' log-ratios."""
    juries = {slowdown: Jury(1, tolerance=0.05) for slowdown in SLOWDOWNS}
    pairs: dict[float, list[PairSample]] = {slowdown: [] for slowdown in SLOWDOWNS}
    seconds = dict.fromkeys(SLOWDOWNS, 0.0)
    start_seconds, batch_size = 0.0, choose_batch(lane, setting)
    with Nursery([lane]) as nursery:
        for pair_number in range(PLANNED_PAIRS):
            going = [slowdown for slowdown in SLOWDOWNS if not juries[slowdown].settled]
            least = {each: start_seconds + least_pair_seconds(pairs[each]) for each in going}
            going = [each for each in going if seconds[each] + least[each] <= budget_seconds]
            if not going:
                break
            with nursery.open([lane.interpreter], setting) as duet:
                started, start_seconds = duet.start_seconds, duet.next_start_seconds
                left = PLANNED_PAIRS - pair_number
                spendable = {
                    each: (budget_seconds - seconds[each] - started - (left - 1) * start_seconds) / left
                    - MIN_PAIR_SECONDS / 4
                    for each in going
                }
                measured = measure_lanes(duet, lane, batch_size, spendable, seed=number * PLANNED_PAIRS + pair_number)
            for each, pair in measured.items():
                pairs[each].append(pair)
                seconds[each] += started + pair.seconds
                juries[each].look(len(pairs[each]), {"net": create_witnesses(pairs[each], setting.has_cpu_witness)})
    told = {}
    for each, jury in juries.items():
        if not jury.settled:
            jury.look_last({"net": create_witnesses(pairs[each], setting.has_cpu_witness)})
        judgement = jury.settled["net"]
        told[f"{each:.2f}"] = {
            "verdict": judgement.verdict.value,
            "change": judgement.change,
            "low": judgement.low,
            "high": judgement.high,
            "seconds": seconds[each],
            "pairs": len(pairs[each]),
            "quads": sum(len(pair.quads) for pair in pairs[each]),
            "disturbed": sum(pair.disturbed for pair in pairs[each]),
            "log_ratios": [[round(ratio, 5) for ratio in pair.log_ratios()] for pair in pairs[each]],
            "cpu_log_ratios": [[round(ratio, 5) for ratio in pair.log_ratios("cpu_seconds")] for pair in pairs[each]],
        }
    return told


def measure_lanes(
    duet: Duet, lane: Lane, batch_size: int, spendable: dict[float, float], seed: int
) -> dict[float, PairSample]:
    """A pair of each comparison, a quad of each in turn, in both orders of building, as `measure_pair` does.

    Lane 0 is base, the others are the heads in the order of ``spendable``, which holds the seconds of each.
    """
    heads = list(spendable)
    quads: dict[float, list[Quad]] = {each: [] for each in heads}
    used = dict.fromkeys(heads, 0.0)
    interference = Interference()
    count, steps, step_seconds = len(heads) + 1, 0, (0.0,)
    for sitting, order in enumerate((range(count), range(count)[::-1])):
        begun = time.monotonic()
        with duet.build([lane] * count, batch_size, list(order), 2 * seed + sitting) as stage:
            steps = steps or STEPS * max(1, round(stage.block_steps() / STEPS))
            step_seconds = stage.step_seconds
            for each in heads:  # a comparison alone would have built two lanes
                used[each] += (time.monotonic() - begun) * 2 / count
            turn = 0
            while any(wants_more(used[each], spendable[each] * (sitting + 1) / 2, turn) for each in heads):
                for position, each in enumerate(heads):
                    if not wants_more(used[each], spendable[each] * (sitting + 1) / 2, turn):
                        continue
                    quad_begun = time.monotonic()
                    quads[each].append(measure_slowed(stage, steps, each, position + 1, turn + sitting, interference))
                    used[each] += time.monotonic() - quad_begun
                turn += 1
    notices = tuple(interference.notices())
    return {each: PairSample(tuple(quads[each]), (steps, steps), step_seconds, used[each], notices) for each in heads}


def choose_batch(lane: Lane, setting: Setting) -> int:
    """So many images that `STEPS` steps are as long as a step of the command is, if one image is not longer."""
    macs = STEPS * count_macs(zoo.create_model(lane.model), (3, 32, 32))
    return choose_batch_size(macs, setting)


def wants_more(used: float, spendable: float, turn: int) -> bool:
    """Whether a comparison goes on in this sitting."""
    return turn < MIN_QUADS or used < spendable


def measure_slowed(stage: Stage, steps: int, slowdown: float, head: int, turn: int, interference: Interference) -> Quad:
    """A quad in which head's blocks hold so much more work."""
    work = (steps, round(steps * (1 + slowdown)))
    return stage.measure_quad(work, QUAD_ORDERS[turn % 2], interference, lanes=(0, head))


def run_others(lane: Lane, setting: Setting, seconds: float, number: int) -> dict[str, Any]:
    """The two other gates on blocks of one process after another, half of the seconds each.

    The same two processes serve all slowdowns of the round, so these are not independent of one another.
    """
    base, same = (measure_alone(lane, setting, seconds / 2, number + side) for side in (0, 1))
    told: dict[str, Any] = {gate: {} for gate in GATES[1:]}
    for slowdown in SLOWDOWNS:
        head = [block * (1 + slowdown) for block in same]
        ratio = statistics.median(head) / statistics.median(base)
        differ = stats.mannwhitneyu(base, head).pvalue < 0.002
        shared = {"change": ratio - 1, "seconds": seconds}
        told["median 7%"][f"{slowdown:.2f}"] = shared | {"verdict": decide(ratio, 1.07, True)}
        told["asv"][f"{slowdown:.2f}"] = shared | {"verdict": decide(ratio, 1.1, differ)}
    return told


def measure_alone(lane: Lane, setting: Setting, seconds: float, seed: int) -> list[float]:
    """The seconds of a step, by blocks, of one lane in a process of its own; starting it counts."""
    begun = time.monotonic()
    blocks: list[float] = []
    with (
        Duet([lane.interpreter], setting) as duet,
        duet.build([lane], choose_batch(lane, setting), [0], seed) as stage,
    ):
        steps = STEPS * max(1, round(stage.block_steps() / STEPS))
        while not blocks or time.monotonic() - begun < seconds:
            quad = stage.measure_quad([steps], (0, 0, 0, 0), Interference(), lanes=(0, 0))
            blocks += [block.seconds / steps for block in quad.blocks]
    return blocks


def decide(ratio: float, factor: float, differ: bool) -> str:
    """What a gate with a threshold says."""
    return "regressed" if ratio > factor and differ else "improved" if ratio < 1 / factor and differ else "unchanged"


@contextlib.contextmanager
def hogs(count: int) -> Iterator[None]:
    """Inside, so many processes keep a core busy."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rounds that are done."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def verdicts(row: dict[str, Any]) -> str:
    """Of our gate in one round."""
    told = row["gates"]["zoobench"]
    return ", ".join(f"+{float(key):.0%} {each['verdict']} in {each['seconds']:.0f} s" for key, each in told.items())


def render(rows: Sequence[dict[str, Any]]) -> str:
    """A table of rates with their 95% intervals (Wilson), for each condition."""
    lines = []
    for hogs_here, seconds, mode in sorted({(row["hogs"], row["seconds"], row["mode"]) for row in rows}):
        chosen = [row for row in rows if (row["hogs"], row["seconds"], row["mode"]) == (hogs_here, seconds, mode)]
        models = ", ".join(sorted({row["model"] for row in chosen}))
        lines += [
            "",
            f"{len(chosen)} rounds, {hogs_here} hogs, {mode}, at most {seconds:.0f} s a comparison; {models}",
            "",
        ]
        lines += ["| gate | true change | regressed | inconclusive | improved | seconds |", "|---|---|---|---|---|---|"]
        for gate in GATES:
            for slowdown in SLOWDOWNS:
                told = [row["gates"][gate][f"{slowdown:.2f}"] for row in chosen if gate in row["gates"]]
                if not told:
                    continue
                cells = [rate(told, verdict) for verdict in ("regressed", "inconclusive", "improved")]
                mean = statistics.mean(each.get("seconds", seconds) for each in told)
                lines.append(f"| {gate} | +{slowdown:.0%} | {' | '.join(cells)} | {mean:.0f} |")
    return "\n".join(lines).lstrip()


def rate(told: Sequence[dict[str, Any]], verdict: str) -> str:
    """How often, of how many, and Wilson's interval (1927)."""
    count, total = sum(each["verdict"] == verdict for each in told), len(told)
    low, high = wilson(count, total)
    return f"{count}/{total} = {count / total:.1%} [{low:.1%}, {high:.1%}]"


def wilson(count: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95% score interval of a rate."""
    share, spread = count / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    margin = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, centre - margin), min(1.0, centre + margin)


if __name__ == "__main__":
    main()
