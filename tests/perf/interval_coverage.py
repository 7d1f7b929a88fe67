"""Whether intervals of speed cover what they claim to: the same models measured again and again, each in a new process.

An interval that says 95% should contain the median over all repetitions in at least nine of ten. Sessions hours apart
differ by more; run it on a quiet machine.

    python tests/perf/interval_coverage.py --repetitions 10 --out results/interval_coverage.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

MODELS = ("lenet5", "simple_cnn", "resnet20", "mobilenet_v1", "resnet18")
QUANTITIES = ("throughput_img_per_s", "train_throughput_img_per_s", "latency_p50_ms")


def measure(model: str, seconds: float, batch_size: int) -> dict[str, Any]:
    """The measured metrics, flags and environment of a model, in a process of its own."""
    options = ["--seconds", str(seconds), "--batch-size", str(batch_size), "--threads", "1", "--json"]
    command = [sys.executable, "-m", "zoobench", "throughput", model, *options]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def summarize(measured: list[dict[str, Any]], quantity: str) -> dict[str, Any]:
    """How many intervals contain the median of all values, and how wide they are."""
    rows = [tuple(each["metrics"][f"{quantity}{end}"] for end in ("", "_low", "_high")) for each in measured]
    grand = statistics.median(value for value, _, _ in rows)
    return {
        "grand_median": grand,
        "covered": sum(low <= grand <= high for _, low, high in rows),
        "of": len(rows),
        "median_half_width": statistics.median((high - low) / 2 / value for value, low, high in rows),
        "rows": rows,
    }


def main() -> None:
    """Measure the models in turn, write what is found after each repetition, and print the coverage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    measured: dict[str, list[dict[str, Any]]] = {model: [] for model in options.models.split(",")}
    for _ in range(options.repetitions):
        for model, own in measured.items():
            own.append(measure(model, options.seconds, options.batch_size))
        result = {
            "machine": next(iter(measured.values()))[0]["environment"]["machine"],
            "seconds": options.seconds,
            "models": {
                model: {quantity: summarize(own, quantity) for quantity in QUANTITIES}
                | {"flags": [[flag["kind"] for flag in each["flags"]] for each in own]}
                for model, own in measured.items()
            },
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for model, quantities in result["models"].items():
        for quantity in QUANTITIES:
            found = quantities[quantity]
            width = found["median_half_width"]
            print(f"{model:14} {quantity:28} {found['covered']} of {found['of']} cover, ±{width:.2%} in the median")


if __name__ == "__main__":
    main()
