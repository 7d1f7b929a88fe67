"""How much the ratio of a network's time to that of its replayed operators differs from session to session.

`SESSION_SPREAD` of `bench.gate.statistics.sessions` stands for this. The same code is measured again and again, in
fresh processes as `zoobench baseline save` does and in one process as the fixture `throughput` does, each session on
its own. The variance of the sessions' log-ratios, less what the sessions themselves say of their error, is that of the
spread; its 95% bound is from the chi-squared distribution.

    python tests/perf/session_spread.py --sessions 12 --budget 15 --out results/session_spread.json
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from bench.gate.checks import create_network, measure_network
from bench.gate.compare import choose_batch_size, save
from bench.gate.result import CompareOptions
from bench.gate.statistics.sessions import SESSION_SPREAD
from bench.gate.statistics.verdicts import ALPHA
from bench.gate.timing.subject import Setting
from bench.machine import describe_environment

MODELS = (
    "lenet5", "simple_cnn", "alexnet", "vgg16_bn", "resnet18", "resnet20", "mobilenet_v1", "mobilenet_v2", "xception",
    "deeplab_resnet18",
)  # fmt: skip
PROCESSES = ("its own", "the tests'")


def measure_fresh(models: Sequence[str], budget: float) -> dict[str, dict[str, float]]:
    """A session in fresh processes."""
    with tempfile.TemporaryDirectory() as folder:
        saved = save("x", None, CompareOptions(models, Setting(), budget), folder)
    return {model: estimate(entry) for model, entry in saved.baseline.entries.items()}


def measure_inside(models: Sequence[str], budget: float) -> dict[str, dict[str, float]]:
    """A session in this process."""
    measured = {}
    for model in models:
        network = create_network(model, model, Setting(), batch_size=1)
        network = dataclasses.replace(network, batch_size=choose_batch_size(network.counts["macs"], Setting()))
        measured[model] = estimate(measure_network(network, model, Path.cwd(), budget).entries[model])
    return measured


def estimate(entry) -> dict[str, float]:
    """What a session says of itself."""
    wall = entry.clocks(with_cpu=False).wall
    pairs = entry.pairs
    return {
        "log_ratio": wall.log_ratio,
        "standard_error": wall.standard_error,
        "degrees": wall.degrees,
        "pairs": wall.pairs,
        "quads": sum(len(pair.abba) for pair in pairs),
        "disturbed_share": sum(pair.disturbed for pair in pairs) / sum(len(pair.abba) for pair in pairs),
        "reference_step_ms": entry.reference_step_ms,
    }


def summarize(networks: Sequence[list[dict[str, float]]]) -> dict[str, float]:
    """The spread of sessions that the networks have in common: the root of their mean variance; with its 95% bound."""
    within = float(np.mean([each["standard_error"] ** 2 for own in networks for each in own]))
    total = float(np.mean([np.var([each["log_ratio"] for each in own], ddof=1) for own in networks]))
    freedom = sum(len(own) - 1 for own in networks)
    bound = total * freedom / float(stats.chi2.ppf(0.05, freedom))
    return {
        "standard_deviation": math.sqrt(total),
        "standard_error": math.sqrt(within),
        "spread": math.sqrt(max(0.0, total - within)),
        "spread_at_most": math.sqrt(max(0.0, bound - within)),
    }


def summarize_each(by_model: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The spread of each network's sessions, and under ``all`` what the networks have in common of it."""
    summary = {
        model: {"sessions": len(own)}
        | summarize([own])
        | {"largest_change": float(np.ptp([each["log_ratio"] for each in own]))}
        for model, own in by_model.items()
    }
    return summary | {"all": {"networks": len(by_model)} | summarize(list(by_model.values()))}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=12)
    parser.add_argument("--budget", type=float, default=15.0, help="seconds of a model in a session")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--processes", nargs="+", default=PROCESSES, choices=PROCESSES)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    measured: dict[str, dict[str, list[dict[str, float]]]] = {
        process: {model: [] for model in arguments.models} for process in arguments.processes
    }
    spawn = multiprocessing.get_context("spawn")
    for number, process in itertools.product(range(arguments.sessions), arguments.processes):
        with spawn.Pool(1) as pool:
            function = measure_fresh if process == PROCESSES[0] else measure_inside
            session = pool.apply(function, (arguments.models, arguments.budget))
        for model, found in session.items():
            if found["pairs"] < 2:
                raise SystemExit(f"{model} had room for one pair only, which says nothing on its error: raise --budget")
            measured[process][model].append(found)
            print(f"session {number + 1}, {process} process, {model}: {found['log_ratio']:+.4f}", file=sys.stderr)
    summary = {process: summarize_each(by_model) for process, by_model in measured.items()}
    print(json.dumps(summary, indent=2))
    if arguments.out is not None:
        content = {
            "command": " ".join(sys.argv),
            "assumed_spread": SESSION_SPREAD,
            "alpha": ALPHA,
            "environment": describe_environment("cpu", 1),
            "summary": summary,
            "sessions": measured,
        }
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
