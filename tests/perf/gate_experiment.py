"""The honest experiment on the regression gate: how often it cries wolf, and how small a slowdown it finds.

A round compares one model with itself and with subjects that do 2%, 3% and 5% more of the same work, by the very
workers, statistics and looks that `zoobench compare` uses. The slowdown is real: where base runs 50 steps in a block,
head runs 51. All subjects of a round live in the same processes; each is its own comparison with base, on base blocks
of its own, and its seconds are counted on its own (every start of a process in full).

With ``--others``, two gates as they are in use, given the seconds that our comparison of base with itself took in the
same round: 7% on the medians, and the rule of asv (a factor of 1.1 and a Mann-Whitney test at 0.002), both on blocks of
separate processes, base first, then head. Their slowdowns are head's own blocks, each made longer by that share.

    python tests/perf/gate_experiment.py --n 400 --seconds 10 --out results/gate.jsonl
    python tests/perf/gate_experiment.py --n 40 --seconds 60 --effects 0,2 --out results/gate.jsonl
    python tests/perf/gate_experiment.py --show --out results/gate.jsonl

Needs a quiet machine, and takes about the product of rounds, effects and seconds. Each round is appended to the file;
the same command continues where the last one ended. Rows of an earlier method stay in the file and in the table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

import zoo
from bench.counting.complexity import count_macs
from bench.gate.compare import choose_batch_size
from bench.gate.statistics.verdicts import SequentialTest
from bench.gate.timing.fork_server import serve_forks
from bench.gate.timing.interference import Interference
from bench.gate.timing.pair import ORDERS, WorkerPair, open_fresh_pair
from bench.gate.timing.rounds import MIN_PAIR_SECONDS, PLANNED_PAIRS, estimate_clocks, least_pair_seconds
from bench.gate.timing.sample import MIN_ABBA, Abba, PairSample
from bench.gate.timing.subject import Setting, Subject
from bench.machine import describe_commit, describe_machine

METHOD = "t over pairs"
"""Of the statistics; rows without one are of the bootstrap that came before."""
STEPS = 20
"""Blocks hold about this many steps; models are such that they take at most some 30 ms."""
MODELS = "lenet5,simple_cnn,resnet20,mobilenet_v1_025"
GATES = ("zoobench", "median 7%", "asv")
SLOWER, FASTER = ("regressed", "slower"), ("improved", "faster")
ROOT = str(Path(zoo.__file__).parent.parent)


def main() -> None:
    """Run what is missing of the experiment, then print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=400, help="rounds, over all models in turn")
    parser.add_argument("--seconds", type=float, default=10.0, help="the budget of one comparison")
    parser.add_argument("--effects", default="0,2,3,5", help="true slowdowns in percent; 0 is a model against itself")
    parser.add_argument("--modes", default="infer,infer,infer,train", help="taken in turn: here a quarter is training")
    parser.add_argument("--hogs", type=int, default=0, help="processes that keep a core busy all the time")
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--out", type=Path, default=Path("gate.jsonl"))
    parser.add_argument("--others", action="store_true", help="the two other gates as well: twice the time")
    parser.add_argument("--show", action="store_true", help="only print the table of what is there")
    arguments = parser.parse_args()
    if not arguments.show:
        run(arguments)
    print(render(read_rows(arguments.out)))


def run(arguments: argparse.Namespace) -> None:
    """The rounds that the file lacks."""
    effects = [float(each) / 100 for each in arguments.effects.split(",")]
    models, modes = arguments.models.split(","), arguments.modes.split(",")
    shared = {"method": METHOD, "hogs": arguments.hogs, "seconds": arguments.seconds}
    kept = read_rows(arguments.out)
    with hogs(arguments.hogs):
        for number in range(arguments.n):
            # All models in one mode, then in the next.
            model, mode = models[number % len(models)], modes[number // len(models) % len(modes)]
            condition = shared | {"round": number, "model": model, "mode": mode}
            if any(
                condition.items() <= row.items() and set(names(effects)) <= set(row["gates"][GATES[0]]) for row in kept
            ):
                continue
            subject, setting = Subject(model, root=ROOT), Setting(mode=mode)
            row = condition | {"machine": describe_machine("cpu")}
            row |= {"git": describe_commit(Path(ROOT), "bench", "zoo", "tests/perf")}
            row |= {"begun": time.time(), "gates": {}}
            row["gates"]["zoobench"] = run_round(subject, setting, effects, arguments.seconds, number)
            if arguments.others:
                fed = row["gates"]["zoobench"]["0.00"]["seconds"]
                row["gates"] |= run_others(subject, setting, effects, fed, number)
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"round {number + 1} of {arguments.n}, {model}, {mode}: {verdicts(row)}", file=sys.stderr, flush=True)


def names(effects: Sequence[float]) -> list[str]:
    """As they are in the file."""
    return [f"{each:.2f}" for each in effects]


def run_round(
    subject: Subject, setting: Setting, effects: Sequence[float], budget_seconds: float, number: int
) -> dict[str, Any]:
    """All comparisons of a round, each with its verdict, the seconds that it took and its pairs' log-ratios."""
    tests = {effect: SequentialTest(1, tolerance=0.05) for effect in effects}
    pairs: dict[float, list[PairSample]] = {effect: [] for effect in effects}
    seconds = dict.fromkeys(effects, 0.0)
    start_seconds, batch_size = 0.0, choose_batch(subject, setting)
    with serve_forks([subject]) as open_pair:
        for pair_number in range(PLANNED_PAIRS):
            going = [effect for effect in effects if not tests[effect].settled]
            least = {each: start_seconds + least_pair_seconds(pairs[each]) for each in going}
            going = [each for each in going if seconds[each] + least[each] <= budget_seconds]
            if not going:
                break
            with open_pair([subject.interpreter], setting) as workers:
                started, start_seconds = workers.start_seconds, workers.next_start_seconds
                left = PLANNED_PAIRS - pair_number
                spendable = {
                    each: (budget_seconds - seconds[each] - started - (left - 1) * start_seconds) / left
                    - MIN_PAIR_SECONDS / 4
                    for each in going
                }
                seed = number * PLANNED_PAIRS + pair_number
                measured = measure_subjects(workers, subject, batch_size, spendable, seed)
            for each, pair in measured.items():
                pairs[each].append(pair)
                seconds[each] += started + pair.seconds
                tests[each].look(len(pairs[each]), {"net": estimate_clocks(pairs[each], setting.compares_cpu_time)})
    results = {}
    for each, test in tests.items():
        if not test.settled:
            test.look_last({"net": estimate_clocks(pairs[each], setting.compares_cpu_time)})
        judgement = test.settled["net"]
        results[f"{each:.2f}"] = {
            "verdict": judgement.verdict.value,
            "true_change": block_steps(each, STEPS)[1] / block_steps(each, STEPS)[0] - 1,
            "change": judgement.change,
            "low": judgement.low,
            "high": judgement.high,
            "level": judgement.level,
            "seconds": seconds[each],
            "pairs": len(pairs[each]),
            "quads": sum(len(pair.abba) for pair in pairs[each]),
            "disturbed": sum(pair.disturbed for pair in pairs[each]),
            "log_ratios": [[round(ratio, 5) for ratio in pair.log_ratios()] for pair in pairs[each]],
            "cpu_log_ratios": [[round(ratio, 5) for ratio in pair.log_ratios("cpu_seconds")] for pair in pairs[each]],
        }
    return results


def block_steps(effect: float, steps: int) -> tuple[int, int]:
    """Base's and head's steps of a block of about ``steps``: as near to the effect as whole steps allow.

    2% is one step more in 50, 3% one in 33, 5% one in 20.
    """
    unit = round(1 / effect) if effect else 1
    base = unit * max(1, round(steps / unit))
    return base, base + (base // unit if effect else 0)


def measure_subjects(
    workers: WorkerPair, subject: Subject, batch_size: int, spendable: dict[float, float], seed: int
) -> dict[float, PairSample]:
    """A pair of each comparison, four blocks of each in turn, in both orders of building, as `measure_pair` does.

    Subject 0 is base, the others are the heads in the order of ``spendable``, which holds the seconds of each.
    """
    heads = list(spendable)
    sequences: dict[float, list[Abba]] = {each: [] for each in heads}
    used = dict.fromkeys(heads, 0.0)
    interference = Interference()
    count, steps, step_seconds = len(heads) + 1, dict.fromkeys(heads, (0, 0)), (0.0,)
    for half, order in enumerate((range(count), range(count)[::-1])):
        begun = time.monotonic()
        with workers.build([subject] * count, batch_size, list(order), 2 * seed + half) as built:
            if not half:
                steps = {each: block_steps(each, built.block_steps()) for each in heads}
            step_seconds = built.step_seconds
            for each in heads:  # a comparison alone would have built two subjects
                used[each] += (time.monotonic() - begun) * 2 / count
            turn = 0
            while any(wants_more(used[each], spendable[each] * (half + 1) / 2, turn) for each in heads):
                for position, each in enumerate(heads):
                    if not wants_more(used[each], spendable[each] * (half + 1) / 2, turn):
                        continue
                    abba_begun = time.monotonic()
                    # Both sides count as the same number of steps: head's block holds more work.
                    blocks = built.measure_abba(
                        steps[each], ORDERS[(turn + half) % 2], interference, subjects=(0, position + 1)
                    )
                    sequences[each].append(blocks)
                    used[each] += time.monotonic() - abba_begun
                turn += 1
    notices = tuple(interference.notices())
    return {
        each: PairSample(tuple(sequences[each]), (steps[each][0],) * 2, step_seconds, used[each], notices)
        for each in heads
    }


def choose_batch(subject: Subject, setting: Setting) -> int:
    """Such that `STEPS` steps are as long as a step of the command is, if one image is not longer."""
    macs = STEPS * count_macs(zoo.create_model(subject.model), (3, 32, 32))
    return choose_batch_size(macs, setting)


def wants_more(used: float, spendable: float, turn: int) -> bool:
    """Whether a comparison goes on with this build."""
    return turn < MIN_ABBA or used < spendable


def run_others(
    subject: Subject, setting: Setting, effects: Sequence[float], seconds: float, number: int
) -> dict[str, Any]:
    """The two other gates on blocks of one process after another, half of the seconds each.

    The same two processes serve all effects of the round, so these are not independent of one another.
    """
    base, same = (measure_alone(subject, setting, seconds / 2, number + side) for side in (0, 1))
    results: dict[str, Any] = {gate: {} for gate in GATES[1:]}
    for effect in effects:
        head = [block * (1 + effect) for block in same]
        ratio = statistics.median(head) / statistics.median(base)
        differ = stats.mannwhitneyu(base, head).pvalue < 0.002
        shared = {"change": ratio - 1, "seconds": seconds}
        results["median 7%"][f"{effect:.2f}"] = shared | {"verdict": decide(ratio, 1.07, True)}
        results["asv"][f"{effect:.2f}"] = shared | {"verdict": decide(ratio, 1.1, differ)}
    return results


def measure_alone(subject: Subject, setting: Setting, seconds: float, seed: int) -> list[float]:
    """The seconds of a step, by blocks, of one subject in a process of its own; starting it counts."""
    begun = time.monotonic()
    blocks: list[float] = []
    with (
        open_fresh_pair([subject.interpreter], setting) as workers,
        workers.build([subject], choose_batch(subject, setting), [0], seed) as built,
    ):
        steps = STEPS * max(1, round(built.block_steps() / STEPS))
        while not blocks or time.monotonic() - begun < seconds:
            abba = built.measure_abba([steps], (0, 0, 0, 0), Interference(), subjects=(0, 0))
            blocks += [block.seconds / steps for block in abba.blocks]
    return blocks


def decide(ratio: float, factor: float, differ: bool) -> str:
    """What a gate with a threshold says."""
    return "regressed" if ratio > factor and differ else "improved" if ratio < 1 / factor and differ else "unchanged"


@contextlib.contextmanager
def hogs(count: int) -> Iterator[None]:
    """Inside, that many processes keep a core busy each."""
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
    results = row["gates"]["zoobench"]
    return ", ".join(f"+{float(key):.0%} {each['verdict']} in {each['seconds']:.0f} s" for key, each in results.items())


def render(rows: Sequence[dict[str, Any]]) -> str:
    """A table of rates with their 95% intervals, Wilson's and Clopper and Pearson's, for each condition."""
    lines = []

    def condition(row: dict[str, Any]) -> tuple[Any, ...]:
        return row.get("method", "bootstrap"), row["hogs"], row["seconds"]

    for method, hogs_here, seconds in sorted({condition(row) for row in rows}):
        chosen = [row for row in rows if condition(row) == (method, hogs_here, seconds)]
        models = ", ".join(sorted({row["model"] for row in chosen}))
        training = sum(row["mode"] == "train" for row in chosen)
        lines += [
            "",
            f"{method}: {len(chosen)} rounds ({training} of training), {hogs_here} hogs, at most {seconds:.0f} s a "
            f"comparison; {models}",
            "",
            "| gate | true change | regressed or slower | regressed | improved or faster | inconclusive | seconds |",
            "|---|---|---|---|---|---|---|",
        ]
        for gate in GATES:
            effects = sorted({effect for row in chosen for effect in row["gates"].get(gate, {})})
            for effect in effects:
                results = [row["gates"][gate][effect] for row in chosen if effect in row["gates"].get(gate, {})]
                cells = [rate(results, each) for each in (SLOWER, SLOWER[:1], FASTER, ("inconclusive",))]
                mean = statistics.mean(each.get("seconds", seconds) for each in results)
                lines.append(f"| {gate} | +{float(effect):.0%} | {' | '.join(cells)} | {mean:.0f} |")
    return "\n".join(lines).lstrip()


def rate(results: Sequence[dict[str, Any]], words: Sequence[str]) -> str:
    """How often, of how many, with the intervals of Wilson (1927) and, behind it, of Clopper and Pearson (1934)."""
    count, total = sum(each["verdict"] in words for each in results), len(results)
    test = stats.binomtest(count, total)
    wilson, exact = (test.proportion_ci(method=method) for method in ("wilson", "exact"))
    return f"{count}/{total} [{wilson.low:.1%}, {wilson.high:.1%}] ({exact.low:.1%}, {exact.high:.1%})"


if __name__ == "__main__":
    main()
