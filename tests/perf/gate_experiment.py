"""The honest experiment on the regression gate: how often it cries wolf, and how small a slowdown it finds.

A call times a few models against themselves by the very workers and rounds that `zoobench compare` uses, for the whole
budget. Its log-ratios are kept, and judged as the command judges them, look by look: as they are, and once for each
model with head's blocks made longer by 2%, 3% and 5%. A comparison's seconds are those until its verdict, with its
share of starting the processes.

With ``--others``, two gates as they are in use, given as many seconds on top of starting their processes: 7% on the
medians, and the rule of asv (a factor of 1.1 and a Mann-Whitney test at 0.002), both on blocks of separate processes,
base first, then head.

    python tests/perf/gate_experiment.py --calls 10 --others --seconds 10 --out results/gate.jsonl
    python tests/perf/gate_experiment.py --calls 100 --seconds 10 --out results/gate.jsonl
    python tests/perf/gate_experiment.py --show --out results/gate.jsonl

Needs a quiet machine, and takes about the product of calls, models and seconds. Each call is appended to the file; the
same command continues where the last one ended.
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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

import zoo
from bench.counting.complexity import count_macs
from bench.gate.compare import choose_batch_size
from bench.gate.statistics.paired import estimate_log_ratio
from bench.gate.statistics.verdicts import Clocks, Judgement, SequentialTest
from bench.gate.timing.fork_server import serve_forks
from bench.gate.timing.interference import Interference
from bench.gate.timing.pair import BLOCK_SECONDS, BlockWork, open_fresh_pair
from bench.gate.timing.rounds import Case, measure_rounds
from bench.gate.timing.subject import Setting, Subject
from bench.machine import describe_commit, describe_machine

MODELS = "lenet5,simple_cnn,resnet20,mobilenet_v1_025"
TOLERANCE = 0.05
CLOCKS = ("log_ratios", "cpu_log_ratios")
GATES = ("zoobench", "median 7%", "asv")
SLOWER, FASTER = ("regressed", "slower"), ("improved", "faster")
ROOT = str(Path(zoo.__file__).parent.parent)


def main() -> None:
    """Do the calls that the file lacks, then print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100, help="each of all models")
    parser.add_argument("--seconds", type=float, default=10.0, help="the budget of one comparison")
    parser.add_argument("--effects", default="0,2,3,5", help="slowdowns in percent; 0 is a model against itself")
    parser.add_argument("--modes", default="infer,infer,infer,train", help="taken in turn: here a quarter is training")
    parser.add_argument("--hogs", type=int, default=0, help="processes that keep a core busy all the time")
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--out", type=Path, default=Path("gate.jsonl"))
    parser.add_argument("--others", action="store_true", help="the two other gates as well: twice the time")
    parser.add_argument("--show", action="store_true", help="only print the table of what is there")
    arguments = parser.parse_args()
    if not arguments.show:
        run(arguments)
    rows, effects = read_rows(arguments.out), [float(each) / 100 for each in arguments.effects.split(",")]
    print(render(rows, effects), "", render_short(rows, effects), sep="\n")


def run(arguments: argparse.Namespace) -> None:
    """The calls that the file lacks."""
    models, modes = arguments.models.split(","), arguments.modes.split(",")
    kept = read_rows(arguments.out)
    with hogs(arguments.hogs):
        for number in range(arguments.calls):
            mode = modes[number % len(modes)]
            condition = {"hogs": arguments.hogs, "seconds": arguments.seconds, "call": number, "mode": mode}
            if any(condition.items() <= row.items() for row in kept):
                continue
            row = condition | {"machine": describe_machine("cpu")}
            row |= {"git": describe_commit(Path(ROOT), "bench", "zoo", "tests/perf"), "begun": time.time()}
            row["models"] = measure_call(models, Setting(mode=mode), arguments.seconds)
            if arguments.others:
                row["others"] = {
                    model: measure_others(model, Setting(mode=mode), arguments.seconds) for model in models
                }
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            found = {model: judge(row["models"], model, 0.0)[0] for model in models}
            words = ", ".join(f"{model} {each.verdict} ({each.change:+.1%})" for model, each in found.items())
            print(f"call {number + 1} of {arguments.calls}, {mode}: {words}", file=sys.stderr, flush=True)


def measure_call(models: Sequence[str], setting: Setting, budget_seconds: float) -> dict[str, Any]:
    """What the command measures when it compares each model with itself, for all of the budget."""
    cases = []
    for model in models:
        subject = Subject(model, root=ROOT)
        cases.append(Case(model, (subject, subject), choose_batch(model, setting)))
    with serve_forks([case.subjects[0] for case in cases]) as open_pair:
        measure_rounds(cases, setting, open_pair, budget_seconds=budget_seconds, test=None)
    return {
        case.name: {
            "batch_size": case.batch_size,
            "start_seconds": case.seconds - sum(pair.seconds for pair in case.pairs),
            "pair_seconds": [round(pair.seconds, 4) for pair in case.pairs],
            "disturbed": sum(pair.disturbed for pair in case.pairs),
            "log_ratios": [[round(each, 5) for each in pair.log_ratios()] for pair in case.pairs],
            "cpu_log_ratios": [[round(each, 5) for each in pair.log_ratios("cpu_seconds")] for pair in case.pairs],
        }
        for case in cases
    }


def judge(measured: Mapping[str, Any], slowed: str, effect: float) -> tuple[Judgement, float]:
    """What the command says of one model of a call whose head takes longer by that share, and after what seconds."""
    test = SequentialTest(len(measured), TOLERANCE)
    pairs = max(len(each["log_ratios"]) for each in measured.values())
    clocks: dict[str, Clocks] = {}
    for count in range(1, pairs + 1):
        clocks = {
            model: Clocks(
                *(estimate_log_ratio(shift(each[clock][:count], model == slowed, effect)) for clock in CLOCKS)
            )
            for model, each in measured.items()
        }
        test.look(count, clocks)
        if slowed in test.settled:
            break
    else:
        test.look_last(clocks)
    own = measured[slowed]
    return test.settled[slowed], own["start_seconds"] + sum(own["pair_seconds"][:count])


def shift(pairs: Sequence[Sequence[float]], is_slowed: bool, effect: float) -> list[list[float]]:
    """The pairs' log-ratios, with head's blocks made longer if that is the model."""
    added = math.log1p(effect) if is_slowed else 0.0
    return [[each + added for each in pair] for pair in pairs]


def choose_batch(model: str, setting: Setting) -> int:
    """As the command does."""
    return choose_batch_size(count_macs(zoo.create_model(model), (3, 32, 32)), setting)


def measure_others(model: str, setting: Setting, seconds: float) -> dict[str, list[float]]:
    """The blocks of one process after another, which the two other gates compare."""
    return {side: measure_alone(model, setting, seconds / 2, seed) for seed, side in enumerate(("base", "head"))}


def measure_alone(model: str, setting: Setting, seconds: float, seed: int) -> list[float]:
    """The seconds of a step, by blocks, of one subject in a process of its own; starting it does not count."""
    subject = Subject(model, root=ROOT)
    blocks: list[float] = []
    with (
        open_fresh_pair([subject.interpreter], setting) as workers,
        workers.build([subject], choose_batch(model, setting), [0], seed) as built,
    ):
        steps = max(1, round(BLOCK_SECONDS / built.step_seconds[0]))
        begun = time.monotonic()
        while not blocks or time.monotonic() - begun < seconds:
            abba = built.measure_abba(BlockWork((steps, steps)), (0, 0, 0, 0), Interference())
            blocks += [round(block.seconds / steps, 8) for block in abba.blocks]
    return blocks


def judge_others(blocks: Mapping[str, Sequence[float]], effect: float) -> dict[str, str]:
    """What either of the other gates says if head's blocks take longer by that share."""
    base, head = blocks["base"], [block * (1 + effect) for block in blocks["head"]]
    ratio = statistics.median(head) / statistics.median(base)
    differ = stats.mannwhitneyu(base, head).pvalue < 0.002
    return {"median 7%": decide(ratio, 1.07, True), "asv": decide(ratio, 1.1, differ)}


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


def render(rows: Sequence[dict[str, Any]], effects: Sequence[float]) -> str:
    """A table of rates with their 95% intervals, Wilson's and Clopper and Pearson's, for each condition."""
    lines = []
    for hogs_here, seconds in sorted({(row["hogs"], row["seconds"]) for row in rows}):
        chosen = [row for row in rows if (row["hogs"], row["seconds"]) == (hogs_here, seconds)]
        training = sum(row["mode"] == "train" for row in chosen)
        lines += [
            "",
            f"{len(chosen)} calls ({training} of training), {hogs_here} hogs, at most {seconds:.0f} s a comparison; "
            + ", ".join(chosen[0]["models"]),
            "",
            "| gate | true change | regressed or slower | regressed | improved or faster | inconclusive | seconds |",
            "|---|---|---|---|---|---|---|",
        ]
        for (gate, effect), found in collect(chosen, effects).items():
            words = [verdict for verdict, _ in found]
            cells = [rate(words, each) for each in (SLOWER, SLOWER[:1], FASTER, ("inconclusive",))]
            mean = statistics.mean(needed for _, needed in found)
            lines.append(f"| {gate} | +{effect:.0%} | {' | '.join(cells)} | {mean:.1f} |")
    return "\n".join(lines).lstrip()


def render_short(rows: Sequence[dict[str, Any]], effects: Sequence[float]) -> str:
    """The table of docs/gate.md: how often each gate says that head is slower, and without a change that it differs."""
    titles = ["called slower (without change: slower or faster), % [95%]", *map(_effect, effects), "seconds"]
    lines = [
        f"| {' | '.join(titles)} |",
        "|---|" + "---|" * (len(effects) + 1),
    ]
    quiet = [row for row in rows if not row["hogs"]]
    groups: dict[str, dict[float, list[tuple[str, float]]]] = {}
    for seconds, mode in itertools.product(sorted({row["seconds"] for row in quiet}), ("infer", "train")):
        chosen = [row for row in quiet if (row["seconds"], row["mode"]) == (seconds, mode)]
        for (gate, effect), found in collect(chosen, effects).items():
            what = {"infer": "inference", "train": "training"}[mode]
            name = f"`zoobench compare`, {what}, {seconds:.0f} s" if gate == GATES[0] else gate
            groups.setdefault(name, {}).setdefault(effect, []).extend(found)
    for name, by_effect in sorted(groups.items(), key=lambda item: not item[0].startswith("`zoobench")):
        cells = [
            _short_rate([verdict for verdict, _ in found], SLOWER if effect else SLOWER + FASTER)
            for effect, found in by_effect.items()
        ]
        means = sorted(statistics.mean(needed for _, needed in found) for found in by_effect.values())
        used = dict.fromkeys(f"{mean:.0f}" for mean in (means[0], means[-1]))
        lines.append(f"| {name} ({len(by_effect[0.0])}) | {' | '.join(cells)} | {'–'.join(used)} |")
    return "\n".join(lines)


def _effect(effect: float) -> str:
    return f"+{effect:.0%}" if effect else "no change"


def _short_rate(found: Sequence[str], words: Sequence[str]) -> str:
    count, total = sum(each in words for each in found), len(found)
    wilson = stats.binomtest(count, total).proportion_ci(method="wilson")
    return f"{count / total:.0%} [{wilson.low:.0%}, {wilson.high:.0%}]".replace("%", "")


def collect(
    rows: Sequence[dict[str, Any]], effects: Sequence[float]
) -> dict[tuple[str, float], list[tuple[str, float]]]:
    """By gate and true change: each comparison's verdict, and the seconds it took."""
    found: dict[tuple[str, float], list[tuple[str, float]]] = {}
    for row in rows:
        for model, effect in itertools.product(row["models"], effects):
            judgement, needed = judge(row["models"], model, effect)
            found.setdefault((GATES[0], effect), []).append((judgement.verdict.value, needed))
            if "others" in row:
                for gate, verdict in judge_others(row["others"][model], effect).items():
                    found.setdefault((gate, effect), []).append((verdict, row["seconds"]))
    return {(gate, effect): found[gate, effect] for gate in GATES for effect in effects if (gate, effect) in found}


def rate(found: Sequence[str], words: Sequence[str]) -> str:
    """How often, of how many, with the intervals of Wilson (1927) and, behind it, of Clopper and Pearson (1934)."""
    count, total = sum(each in words for each in found), len(found)
    test = stats.binomtest(count, total)
    wilson, exact = (test.proportion_ci(method=method) for method in ("wilson", "exact"))
    return f"{count}/{total} [{wilson.low:.1%}, {wilson.high:.1%}] ({exact.low:.1%}, {exact.high:.1%})"


if __name__ == "__main__":
    main()
