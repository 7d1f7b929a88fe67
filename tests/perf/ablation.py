"""What each ingredient of fast training buys on every family: one thing changed at a time, at equal epochs.

For a quiet machine: ``python tests/perf/ablation.py results/ablation --data parquet:cifar10-jpeg``. It can be stopped
and started again: runs that have a record are not repeated. ``--table`` prints what there is so far.
"""

import argparse
import json
import statistics

from bench.config import load_plan
from bench.records import read_records
from bench.runs.runner import run_plan

EPOCHS = {"lenet5": 3, "simple_cnn": 3, "resnet20": 3, "mobilenet_v1": 3, "vgg16_bn": 1, "resnet18": 1, "airbench94": 3}
BASE = {"base": "fast", "name": "fast"}
CHANGES = {
    "nothing": {},
    "whiten": {"whiten": True},
    "dirac": {"dirac": True},
    "norm bias ×64": {"norm_bias_lr_factor": 64.0},
    "norm bias ×8": {"norm_bias_lr_factor": 8.0},
    "lookahead": {"lookahead": 5},
    "averaged": {"ema": 0.995},
    "muon": {"optimizer": "muon"},
    "random flip": {"flip": True},
    "no mirror at test": {"test_flip": False},
    "shifts at test": {"test_shift": 1},
    "shifts at test, a quarter": {"test_shift": 1, "test_share": 0.25},
    "jitter": {"brightness": 0.14, "contrast": 0.13},
    "no smoothing": {"label_smoothing": 0.0},
    "small first": {"small_size": 24, "small_epochs": 1},
    "batch 256": {"batch_size": 256},
    "batch 512": {"batch_size": 512},
}
FLATTENING = ("lenet5",)
"""Networks with a linear layer for one size of image only: they take no smaller ones."""


def plans(models: list[str], data: str, seeds: list[int]):
    """The plan of each change for each model, with a name for it."""
    for model in models:
        for change, keys in CHANGES.items():
            if "small_size" in keys and (model in FLATTENING or EPOCHS[model] < 2):
                continue
            measure = {"seconds": 0.5, "probes": False}
            overrides = {"models": [model], "seeds": seeds, "data": data, "recipe": BASE | keys | {"name": change}}
            # Named, so that all changes are compared in the same precision and layout.
            overrides |= {"budget": {"epochs": EPOCHS[model]}, "measure": measure, "autocast": False}
            yield model, change, load_plan("cifar10", overrides | {"channels_last": True})


def table(results: str) -> str:
    """Mean accuracy of each model under each change, and its difference from nothing changed."""
    found: dict[tuple[str, str], list[float]] = {}
    for record in read_records(results)[0]:
        if (top1 := record.metrics.get("val_top1")) is not None:  # what is chosen by it must not be chosen on test
            found.setdefault((record.config["model"], record.config["recipe"]["name"]), []).append(top1)
    lines = ["model | change | seeds | val top-1 % | difference", "---|---|---|---|---"]
    for (model, change), values in sorted(found.items()):
        mean, before = statistics.mean(values), found.get((model, "nothing"))
        difference = f"{100 * (mean - statistics.mean(before)):+.2f}" if before else "–"
        lines.append(f"{model} | {change} | {len(values)} | {100 * mean:.2f} | {difference}")
    return "\n".join(lines)


def main() -> None:
    """Run what has no record yet, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--models", nargs="+", default=list(EPOCHS), choices=list(EPOCHS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        for model, change, plan in plans(options.models, options.data, options.seeds):
            records = run_plan(plan, options.results).records
            found = [record.metrics.get("val_top1") or record.status for record in records]
            print(json.dumps({"model": model, "change": change, "found": found}), flush=True)
    print(table(options.results))


if __name__ == "__main__":
    main()
