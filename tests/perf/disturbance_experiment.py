"""Which disturbances move a speed by more than its interval, and which of them are flagged.

A known one: a process on every core that computes for a share of each tenth of a second. `bench.timing.contention`
flags a loss of processor time that exceeds the interval's half-width (or the precision asked for), on the argument that
a lost share moves a speed by about as much; this experiment holds that against what is measured. Quiet measurements
and disturbed ones take turns, so that a drift of the machine hits both. Run it on a quiet machine.

    python tests/perf/disturbance_experiment.py --out results/disturbance.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from interval_coverage import measure

SHARES = (0.0, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
QUANTITIES = {
    "throughput_img_per_s": "measure_infer",
    "train_throughput_img_per_s": "measure_train",
    "latency_p50_ms": "measure_latency",
}
DISTURBANCES = {"load", "steal", "throttling", "spread"}
BURN = """
import sys, time
share = float(sys.argv[1])
while True:
    begun = time.perf_counter()
    while time.perf_counter() - begun < 0.1 * share:
        pass
    time.sleep(0.1 * (1 - share))
"""


@contextlib.contextmanager
def burning(share: float) -> Iterator[None]:
    """One process a core that computes for that share of the time."""
    count = (os.cpu_count() or 1) if share else 0
    processes = [subprocess.Popen([sys.executable, "-c", BURN, str(share)]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def judge(quiet: list[dict[str, Any]], found: dict[str, Any], share: float) -> Iterator[dict[str, Any]]:
    """Of each quantity: by how much it moved, its half-width, and whether a flag names its phase."""
    for quantity, phase in QUANTITIES.items():
        level = statistics.median(each["metrics"][quantity] for each in quiet)
        value, low, high = (found["metrics"][f"{quantity}{end}"] for end in ("", "_low", "_high"))
        flags = sorted({flag["kind"] for flag in found["flags"] if flag["phase"] == phase} & DISTURBANCES)
        moved = abs(value / level - 1)
        half = (high - low) / 2 / value
        yield {
            "share": share, "quantity": quantity, "moved": moved, "half_width": half,
            "moved_beyond_interval": moved > half, "flags": flags,
        }  # fmt: skip


def main() -> None:
    """Measure, write every row, and print how often a flag was right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="lenet5,resnet20,mobilenet_v1")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for model in options.models.split(","):
        found: dict[float, list[dict[str, Any]]] = {share: [] for share in SHARES}
        for _ in range(options.repetitions):
            for share, own in found.items():
                with burning(share):
                    own.append(measure(model, options.seconds, batch_size=32))
        for share, own in found.items():
            for each in own:
                rows += ({"model": model} | row for row in judge(found[0.0], each, share))
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for share in SHARES:
        own = [row for row in rows if row["share"] == share]
        moved = [row for row in own if row["moved_beyond_interval"]]
        caught = sum(bool(row["flags"]) for row in moved)
        needless = sum(bool(row["flags"]) for row in own) - caught
        print(f"load {share:.0%}: {len(moved)} of {len(own)} moved beyond the interval, {caught} of these flagged; "
              f"{needless} flags where the interval covers the move")  # fmt: skip


if __name__ == "__main__":
    main()
