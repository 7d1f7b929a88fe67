"""The commands of baselines. Like `bench.cli`: parses and prints, decides nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from bench.cli_gate import Mode, told_on_stderr

if TYPE_CHECKING:
    from bench.baselines import Baseline

NOTHING = 14
app = typer.Typer(no_args_is_help=True, help="Keep what was measured, to compare with: `compare baseline:NAME HEAD`.")

NameArgument = Annotated[str, typer.Argument(help="The baseline's name.")]
FolderOption = Annotated[Path, typer.Option("--baselines", metavar="DIR", help="Folder of the baselines.")]
OverwriteOption = Annotated[bool, typer.Option(help="Replace one of the same name.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
FOLDER = Path("results/baselines")


@app.command()
def save(
    name: NameArgument,
    side: Annotated[
        str | None, typer.Argument(help="git:REV, '.', env:VENV or MODEL[,KEY=VALUE…]; the installed zoo if not given.")
    ] = None,
    models: Annotated[str, typer.Option(help="Names or wildcards, separated by commas.")] = "@representative",
    mode: Annotated[Mode, typer.Option(help="What is timed.")] = Mode.INFER,
    budget: Annotated[float, typer.Option(min=1, help="Seconds of timing a model.")] = 60.0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; one spreads least.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Chosen for each model if not given.")] = None,
    input_size: Annotated[int, typer.Option(min=1, help="Side of the images in pixels.")] = 32,
    num_classes: Annotated[int, typer.Option(min=1, help="Outputs of the head.")] = 10,
    folder: FolderOption = FOLDER,
    overwrite: OverwriteOption = False,
) -> None:
    """Measure models beside a fixed reference workload, and keep all of it as a baseline.

    Exit status: 0 saved, 14 some or all models could not be measured, 2 bad input.
    """
    from bench.config import parse_models
    from bench.measure.compare import CompareOptions
    from bench.measure.duet import Setting
    from bench.measure.past import measure_baseline

    options = CompareOptions(
        models=parse_models(models),
        setting=Setting(device, threads, mode.value, input_size, num_classes),
        budget_seconds=budget,
        batch_size=batch_size,
    )
    with told_on_stderr() as tell:
        saved = measure_baseline(name, side, options, folder, overwrite=overwrite, tell=tell)
    _print(saved.baseline)
    for model, why in saved.failures.items():
        print(f"{model}: not measured: {why}")
    print(f"Saved: {saved.path}")
    if saved.failures:
        raise typer.Exit(NOTHING)


@app.command("list")
def list_command(folder: FolderOption = FOLDER, as_json: JsonOption = False) -> None:
    """List the baselines of a folder."""
    from bench.baselines import list_baselines

    baselines, damaged = list_baselines(folder)
    if as_json:
        _print_json([_summary(baseline) for baseline in baselines])
    elif baselines:
        table = _table("name", "saved", "commit", "what", "device", "threads", "figures")
        for each in baselines:
            table.add_row(
                *map(Text, (each.name, _minute(each), each.commit[:12] or "–", each.side)),
                *(Text(str(each.environment.get(key, "–"))) for key in ("device", "threads")),
                Text(str(len(each.figures))),
            )
        Console().print(table)
    else:
        print(f"There are no baselines in {folder}. `zoobench baseline save NAME` measures one.")
    for error in damaged:
        print(f"zoobench: warning: {error}", file=sys.stderr)


@app.command()
def show(name: NameArgument, folder: FolderOption = FOLDER, as_json: JsonOption = False) -> None:
    """Show what a baseline holds; --json has every block."""
    from bench.baselines import load_baseline

    baseline = load_baseline(folder, name)
    _print_json(baseline.model_dump(mode="json")) if as_json else _print(baseline)


@app.command("import")
def import_command(
    name: NameArgument,
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="JSON of pytest-benchmark, one a session.")],
    folder: FolderOption = FOLDER,
    overwrite: OverwriteOption = False,
) -> None:
    """Make a baseline of what pytest-benchmark stored, to compare with another: `compare baseline:A baseline:B`.

    Rounds of one session share its luck: give the files of several sessions, or every verdict is inconclusive.
    """
    from bench.baselines import check_new, save_baseline
    from bench.imported_baselines import import_pytest_benchmark

    check_new(folder, name, overwrite)
    baseline = import_pytest_benchmark(name, files)
    path = save_baseline(folder, baseline)
    _print(baseline)
    print(f"Saved: {path}")


def _print(baseline: Baseline) -> None:
    environment = "; ".join(f"{key} {value}" for key, value in baseline.environment.items() if value is not None)
    lines = [
        f"{baseline.name}: {baseline.side}" + (f" at {baseline.commit}" if baseline.commit else ""),
        f"saved {_minute(baseline)}, relative to {baseline.reference or 'nothing: plain seconds'}",
        environment,
    ]
    columns = ["figure", "batch", "step", "images/s", "× reference", "sessions", "rounds", "disturbed"]
    if baseline.reference:
        columns[5:7] = ["pairs", "quads"]
    else:
        lines.append("Rounds of one session share its luck; several sessions tell how much sessions differ.")
    table = _table(*columns)
    for name, figure in baseline.figures.items():
        pairs = figure.samples
        rounds = sum(len(pair.quads) for pair in pairs) or sum(map(len, figure.sessions_seconds))
        rate = f"{1000 * figure.batch_size / figure.step_ms:,.0f}" if figure.batch_size else "–"
        table.add_row(
            *map(Text, (name, str(figure.batch_size or "–"), f"{figure.step_ms:.3f} ms", rate)),
            f"{figure.relative:.3f}" if figure.relative else "–",
            str(len(pairs) or len(figure.sessions_seconds)),
            str(rounds),
            str(sum(pair.disturbed for pair in pairs)) if pairs else "–",
        )
    Console().print(Group(*map(Text, lines), table))


def _summary(baseline: Baseline) -> dict[str, Any]:
    told = baseline.model_dump(mode="json", exclude={"figures"})
    keys = {"batch_size", "step_ms", "reference_step_ms", "relative"}
    return told | {
        "figures": {name: figure.model_dump(mode="json", include=keys) for name, figure in baseline.figures.items()}
    }


def _table(*titles: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, title in enumerate(titles):
        table.add_column(title, overflow="fold", justify="left" if number == 0 else "right")
    return table


def _minute(baseline: Baseline) -> str:
    return baseline.saved_at[:16].replace("T", " ")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))
