"""How much the ratio of a network's time to the reference workload's differs from session to session.

`SESSION_SPREAD` and `INSIDE_SPREAD` of `bench.measure.relative` stand for this. The same code is measured again and
again, in fresh processes as `zoobench baseline save` does and in one process as the fixture `throughput` does, each
session on its own. The variance of the sessions' log-ratios, less what the sessions themselves say of their error, is
that of the spread; its 95% bound is from the chi-squared distribution.

    python tests/perf/session_spread.py --sessions 12 --budget 15 --out results/session_spread.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy import stats

from bench.measure.checks import Work, create_subject, measure_subject
from bench.measure.compare import CompareOptions, choose_batch_size
from bench.measure.duet import Setting
from bench.measure.past import measure_baseline
from bench.measure.relative import INSIDE_SPREAD, SESSION_SPREAD
from bench.measure.sessions import describe_session
from bench.measure.verdicts import ALPHA

MODELS = ("lenet5", "simple_cnn", "mobilenet_v1")
PROCESSES = ("its own", "the tests'")


def measure_fresh(model: str, budget: float) -> dict[str, float]:
    """A session in fresh processes."""
    with tempfile.TemporaryDirectory() as folder:
        saved = measure_baseline("x", None, CompareOptions((model,), Setting(), budget), folder)
    return estimate(saved.baseline.figures[model])


def measure_inside(model: str, budget: float) -> dict[str, float]:
    """A session in this process."""
    counted = create_subject(model, Work(), model).counts.macs
    subject = create_subject(model, Work(batch_size=choose_batch_size(counted, Setting())), model)
    return estimate(measure_subject(subject, model, Path.cwd(), budget).figures[model])


def estimate(figure) -> dict[str, float]:
    """What a session says of itself."""
    wall = figure.witnesses(with_cpu=False).wall
    pairs = figure.samples
    return {
        "log_ratio": wall.log_ratio,
        "standard_error": wall.standard_error,
        "degrees": wall.degrees,
        "pairs": wall.pairs,
        "quads": wall.quads,
        "disturbed_share": sum(pair.disturbed for pair in pairs) / sum(len(pair.quads) for pair in pairs),
        "reference_step_ms": figure.reference_step_ms,
    }


def summarize(sessions: list[dict[str, float]]) -> dict[str, float]:
    """The spread of the sessions, and how often two of them would differ by more than their intervals."""
    if any(each["pairs"] < 2 for each in sessions):
        raise SystemExit("a session had room for one pair only, which says nothing on its error: raise --budget")
    ratios = np.array([each["log_ratio"] for each in sessions])
    within = float(np.mean([each["standard_error"] ** 2 for each in sessions]))
    total, freedom = float(ratios.var(ddof=1)), len(ratios) - 1
    bound = total * freedom / float(stats.chi2.ppf(0.05, freedom))
    return {
        "sessions": len(sessions),
        "standard_deviation": math.sqrt(total),
        "standard_error": math.sqrt(within),
        "spread": math.sqrt(max(0.0, total - within)),
        "spread_at_most": math.sqrt(max(0.0, bound - within)),
        "largest_change": float(np.ptp(ratios)),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=12)
    parser.add_argument("--budget", type=float, default=15.0, help="seconds a session")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    measured: dict[str, dict[str, list[dict[str, float]]]] = {
        process: {model: [] for model in arguments.models} for process in PROCESSES
    }
    spawn = multiprocessing.get_context("spawn")
    for number, process, model in itertools.product(range(arguments.sessions), PROCESSES, arguments.models):
        with spawn.Pool(1) as pool:
            function = measure_fresh if process == PROCESSES[0] else measure_inside
            session = pool.apply(function, (model, arguments.budget))
        measured[process][model].append(session)
        print(f"session {number + 1}, {process} process, {model}: {session['log_ratio']:+.4f}", file=sys.stderr)
    told = {process: {model: summarize(each) for model, each in of.items()} for process, of in measured.items()}
    print(json.dumps(told, indent=2))
    if arguments.out is not None:
        content = {
            "command": " ".join(sys.argv),
            "assumed_spread": dict(zip(PROCESSES, (SESSION_SPREAD, INSIDE_SPREAD), strict=True)),
            "alpha": ALPHA,
            "environment": describe_session({}),
            "summary": told,
            "sessions": measured,
        }
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
