"""The long form of `tests/fuzz`: many mutated inputs for everything that reads files of others; writes a JSON result.

    python tests/perf/fuzz_campaign.py --inputs 200000 --out results/fuzz_campaign.json
    python tests/perf/fuzz_campaign.py --target plan --coverage --inputs 100000    # guided by coverage, with atheris

Each target runs in processes of its own, so that a crash of a C library is noticed: a process that dies, or takes over
`HANG_SECONDS` for one input, is a finding, and the input is printed. A mutant that is read without an error joins those
to mutate.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import multiprocessing
import random
import sys
import time
import traceback
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "fuzz")]

from mutations import mutate  # noqa: E402
from targets import SEEDS, TARGETS  # noqa: E402

HANG_SECONDS = 20
MOST_KEPT = 200
SHARES = {"parquet": 0.25, "weights_torch": 0.5, "checkpoint_state": 0.5}
"""Of the inputs that the others get: these are slow."""


def attack(name: str, inputs: int, seed: int, done: Synchronized[int], findings: Any) -> None:
    """Feed mutants to a target, and put what it raises into ``findings``, with the input in hexadecimal."""
    faulthandler.enable()
    generator, pool = random.Random(f"{name} {seed}"), list(SEEDS[name])
    for _ in range(inputs):
        content = mutate(generator.choice(pool), generator)
        Path(f"/dev/shm/zoobench-fuzz-last-{name}").write_bytes(content)
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        try:
            TARGETS[name](content)
        except BaseException as error:  # noqa: BLE001 - what escapes is what is looked for
            findings.put((type(error).__name__, traceback.format_exc(limit=-3), content.hex()))
        else:
            if len(pool) < MOST_KEPT and len(content) < 20_000:
                pool.append(content)
        finally:
            faulthandler.cancel_dump_traceback_later()
        done.value += 1


def campaign(name: str, inputs: int, seed: int) -> dict[str, Any]:
    """All of a target's inputs, whatever happens to the processes that read them."""
    context = multiprocessing.get_context("fork")
    done, findings, found = context.Value("q", 0), context.SimpleQueue(), []
    while done.value < inputs and len(found) < 20:
        process = context.Process(target=attack, args=(name, inputs - done.value, seed + done.value, done, findings))
        process.start()
        while process.is_alive():
            process.join(0.5)
            while not findings.empty():
                found.append(findings.get())
        while not findings.empty():
            found.append(findings.get())
        if process.exitcode:
            done.value += 1
            last = Path(f"/dev/shm/zoobench-fuzz-last-{name}").read_bytes()
            found.append((f"exit status {process.exitcode}", "", last.hex()))
    Path(f"/dev/shm/zoobench-fuzz-last-{name}").unlink(missing_ok=True)
    return {
        "inputs": done.value,
        "findings": [dict(zip(("kind", "trace", "input"), each, strict=True)) for each in found],
    }


def guided(name: str, inputs: int) -> None:
    """The same under atheris, which mutates towards code that was not reached before."""
    import atheris

    folder = Path(f"/dev/shm/zoobench-corpus-{name}")
    folder.mkdir(exist_ok=True)
    for number, content in enumerate(SEEDS[name]):
        if len(content) < 20_000:
            (folder / str(number)).write_bytes(content)
    target = TARGETS[name]
    atheris.instrument_all()
    atheris.Setup([sys.argv[0], f"-runs={inputs}", "-max_len=8192", f"-timeout={HANG_SECONDS}", str(folder)], target)
    atheris.Fuzz()


def main() -> None:
    """Run the campaign and write its result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS)
    parser.add_argument("--coverage", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.coverage:
        guided(options.target, options.inputs)
        return
    names = [options.target] if options.target else list(TARGETS)
    each = options.inputs / sum(SHARES.get(name, 1.0) for name in names)
    started = time.perf_counter()
    results = {name: campaign(name, round(each * SHARES.get(name, 1.0)) + 1, options.seed) for name in names}
    total = {
        "inputs": sum(result["inputs"] for result in results.values()),
        "findings": sum(len(result["findings"]) for result in results.values()),
        "seed": options.seed,
        "seconds": round(time.perf_counter() - started, 1),
        "targets": results,
    }
    text = json.dumps(total, indent=1)
    options.out.write_text(text + "\n") if options.out else print(text)
    sys.exit(bool(total["findings"]))


if __name__ == "__main__":
    main()
