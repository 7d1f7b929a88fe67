"""The commands of baselines. Like `bench.cli.app`: parses and prints, decides nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from bench.cli.compare import (
    BASELINES,
    AsRunOption,
    DTypeOption,
    InChansOption,
    InputSizeOption,
    NumClassesOption,
    StepOption,
    ThreadsOption,
    check_models,
    create_options,
    progress_on_stderr,
)
from bench.cli.options import (
    BaselinesOption,
    BudgetOption,
    CudaGraphOption,
    DeviceOption,
    JsonOption,
    ModelsOption,
    OptionalBatchSizeOption,
)
from bench.cli.tables import Column, TerminalTable, create_console, print_json
from bench.machine import known_facts

if TYPE_CHECKING:
    from bench.gate.baselines import Baseline

NOTHING = 14
app = typer.Typer(no_args_is_help=True, help="Keep measurements to compare with: `compare baseline:NAME HEAD`.")

NameArgument = Annotated[str, typer.Argument(help="The baseline's name.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace a baseline of the same name.")]


@app.command()
def save(
    name: NameArgument,
    side: Annotated[
        str | None,
        typer.Argument(help="git:REV, '.', env:VENV or MODEL[,KEY=VALUE…]; the installed zoo if omitted."),
    ] = None,
    models: ModelsOption = None,
    mode: StepOption = None,
    budget: BudgetOption = 60.0,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    batch_size: OptionalBatchSizeOption = None,
    input_size: InputSizeOption = None,
    num_classes: NumClassesOption = None,
    in_chans: InChansOption = None,
    dtype: DTypeOption = None,
    cuda_graph: CudaGraphOption = False,
    as_run: AsRunOption = False,
    folder: BaselinesOption = BASELINES,
    overwrite: OverwriteOption = False,
) -> None:
    """Measure models beside their own operators, replayed, and keep everything as a baseline.

    Exit status: 0 saved, 14 some or all models could not be measured, 2 bad input.
    """
    from bench.gate.compare import save as save_side

    check_models(models, side)
    options = create_options(
        models,
        budget=budget,
        batch_size=batch_size,
        as_run=as_run,
        device=device,
        threads=threads,
        mode=mode,
        input_size=input_size,
        num_classes=num_classes,
        in_chans=in_chans,
        dtype=dtype,
        cuda_graph=cuda_graph or None,
    )
    with progress_on_stderr() as progress:
        saved = save_side(name, side, options, folder, overwrite=overwrite, progress=progress)
    _print(saved.baseline)
    for model, why in saved.failures.items():
        print(f"{model}: not measured: {why}")
    print(f"Saved: {saved.path}")
    if saved.failures:
        raise typer.Exit(NOTHING)


@app.command("list")
def list_command(folder: BaselinesOption = BASELINES, as_json: JsonOption = False) -> None:
    """List the baselines of a folder."""
    from bench.gate.baselines import list_baselines

    baselines, damaged = list_baselines(folder)
    if as_json:
        print_json([_summary(baseline) for baseline in baselines])
    elif baselines:
        columns = ["name", "saved", "entries", "commit", "device", "threads", "side"]
        numbers = ("saved", "entries", "threads")
        table = TerminalTable(
            [Column(each, "count" if each in numbers else "text", max(0, at - 2)) for at, each in enumerate(columns)]
        )
        for each in baselines:
            device, threads = (known_facts(each.environment).get(key) for key in ("device", "threads"))
            table.add_row(each.name, _minute(each), len(each.entries), each.commit[:12], device, threads, each.side)
        create_console().print(table)
    else:
        print(f"There are no baselines in {folder}. `zoobench baseline save NAME` measures one.")
    for error in damaged:
        print(f"zoobench: warning: {error}", file=sys.stderr)


@app.command()
def show(name: NameArgument, folder: BaselinesOption = BASELINES, as_json: JsonOption = False) -> None:
    """Show what a baseline holds; --json has every block."""
    from bench.gate.baselines import load_baseline

    baseline = load_baseline(folder, name)
    print_json(baseline.model_dump(mode="json")) if as_json else _print(baseline)


@app.command("import")
def import_command(
    name: NameArgument,
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="JSON of pytest-benchmark, one per session.")],
    folder: BaselinesOption = BASELINES,
    overwrite: OverwriteOption = False,
) -> None:
    """Make a baseline of what pytest-benchmark stored, to compare with another: `compare baseline:A baseline:B`.

    Only several sessions show how much sessions differ: with one, every verdict is inconclusive.
    """
    from bench.gate.baselines import check_new, save_baseline
    from bench.gate.pytest_benchmark import import_pytest_benchmark

    check_new(folder, name, overwrite)
    baseline = import_pytest_benchmark(name, files)
    path = save_baseline(folder, baseline)
    _print(baseline)
    print(f"Saved: {path}")


def _print(baseline: Baseline) -> None:
    lines = [
        f"{baseline.name}: {baseline.side}" + (f" at {baseline.commit}" if baseline.commit else ""),
        f"saved {_minute(baseline)}, relative to {baseline.reference or 'nothing: plain seconds'}",
        "; ".join(f"{key} {value}" for key, value in known_facts(baseline.environment).items() if value is not None),
    ]
    timed = ("pairs", "blocks") if baseline.reference else ("sessions", "rounds")
    if baseline.reference:
        lines.append(f"timed: {baseline.task}")
    else:
        lines.append("Rounds of one session are not independent; several sessions show how much sessions differ.")
        medians = sum(bool(entry.summarized_rounds) for entry in baseline.entries.values())
        if medians:
            lines.append(
                f"The rounds of {medians} entries are not in the files: the median is the session's one value."
            )
    table = TerminalTable(
        [
            Column("entry"),
            Column("step ms", "number"),
            Column("× reference", "number"),
            Column("batch", "count", 1),
            Column("img/s", "count", 2),
            *(Column(title, "count", 3) for title in (*timed, "disturbed")),
        ]
    )
    for name, entry in baseline.entries.items():
        pairs = entry.pairs
        rounds = 4 * sum(len(pair.abba) for pair in pairs)
        rounds = rounds or sum(entry.summarized_rounds) or sum(map(len, entry.sessions_seconds))
        table.add_row(
            name,
            f"{entry.step_ms:.3f}",
            None if entry.relative is None else f"{entry.relative:.3f}",
            entry.batch_size,
            round(1000 * entry.batch_size / entry.step_ms) if entry.batch_size else None,
            len(pairs) or len(entry.sessions_seconds),
            rounds,
            4 * sum(pair.disturbed for pair in pairs) if pairs else None,
        )
    console = create_console()
    console.print(Text("\n".join(lines)), table, sep="\n")


def _summary(baseline: Baseline) -> dict[str, Any]:
    keys = {"batch_size", "step_ms", "reference_step_ms", "relative"}
    entries = {name: entry.model_dump(mode="json", include=keys) for name, entry in baseline.entries.items()}
    return baseline.model_dump(mode="json", exclude={"entries"}) | {"figures": entries}


def _minute(baseline: Baseline) -> str:
    return baseline.saved_at[:16].replace("T", " ")
