"""The command line: parses and prints, decides nothing. torch is imported only by the commands that need it."""

from __future__ import annotations

import json
import shlex
import sys
import time
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.live import Live

from bench import cli_baseline, cli_gate, cli_measure
from bench.errors import ConfigError, UserError

INTERRUPTED = 130
WATCH_EVERY_SECONDS = 0.5
FAILED = 1

app = typer.Typer(
    name="zoobench",
    help="Benchmark CNN architectures: exact counts, fair training, measured throughput, reports.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class ExportFormat(StrEnum):
    """What `zoobench export` writes."""

    PARQUET = "parquet"
    CSV = "csv"
    SQLITE = "sqlite"
    PYTEST_BENCHMARK = "pytest-benchmark"


ResultsOption = Annotated[str, typer.Option("--results", help="Folder (or fsspec URL) of the records.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_command(
    pattern: Annotated[str, typer.Argument(help="A name or wildcard: 'resnet*', 'timm/vit_*'.")] = "*",
    as_json: JsonOption = False,
) -> None:
    """List architectures with their counts."""
    from bench.card import list_rows, render_rows

    rows = list_rows(pattern)
    if not rows:
        _no_match(pattern)
    _print_json(rows) if as_json else Console().print(render_rows(rows))


@app.command()
def describe(
    model: Annotated[str, typer.Argument(help="A registered name, timm/NAME or torchvision/NAME.")],
    input_size: Annotated[int | None, typer.Option(min=1, help="Pixels; the canonical size if not given.")] = None,
    num_classes: Annotated[int | None, typer.Option(min=1, help="Classes; the canonical number if not given.")] = None,
    depth: Annotated[int, typer.Option(min=1, help="How deep the layer table goes.")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Print an architecture's card: counts, layers, receptive field."""
    from bench import card

    described = card.describe(model, input_size, num_classes)
    _print_json(described.to_dict()) if as_json else Console().print(card.render_card(described, depth))


@app.command()
def run(
    plan: Annotated[str, typer.Argument(help="A plan that ships (quick, cifar10, …) or the path of a TOML file.")],
    models: Annotated[
        str | None,
        typer.Option(help="Names or wildcards, by commas; NAME,OPTION=VALUE sets an option."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="digits, cifar10, parquet:PATH, folder:PATH or mosaic:DATA.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(envvar="ZOOBENCH_DATA", help="Where archives and relative data paths are.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe that ships, or the path of a TOML file.")] = None,
    seeds: Annotated[str | None, typer.Option(help="'0,1,2' or '0-4'.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Budget in epochs, in place of the plan's.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Budget in seconds of training a model.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override: --set recipe.lr=0.05.")
    ] = None,
    limit_train: Annotated[int | None, typer.Option(help="Use at most that many training images.")] = None,
    limit_test: Annotated[int | None, typer.Option(help="Use at most that many test images.")] = None,
    results: ResultsOption = "results",
    force: Annotated[bool, typer.Option(help="Repeat runs that are done already.")] = False,
    tracker: Annotated[str | None, typer.Option(help="tensorboard: write scalars for it as well.")] = None,
    save_weights: Annotated[bool, typer.Option("--save-weights", help="Keep them in RESULTS/weights.")] = False,
    checkpoint_every: Annotated[float, typer.Option(min=0, help="Seconds between checkpoints of training.")] = 60.0,
) -> None:
    """Train and measure a plan's models, and rank them.

    Exit status: 0 all runs completed, 1 some failed or diverged, 2 bad input, 130 interrupted.
    """
    from bench.config import load_plan, parse_models, parse_override, parse_seeds

    if epochs is not None and seconds is not None:
        raise ConfigError("--epochs and --seconds exclude each other: a budget is one of them.")
    options: dict[str, Any] = {
        "models": None if models is None else parse_models(models),
        "seeds": None if seeds is None else parse_seeds(seeds),
        "budget": {"epochs": epochs} if epochs is not None else {"seconds": seconds} if seconds is not None else None,
        "data": data,
        "device": device,
        "threads": threads,
        "recipe": recipe,
        "limit_train": limit_train,
        "limit_test": limit_test,
    }
    overrides = {name: value for name, value in options.items() if value is not None}
    overrides |= dict(parse_override(assignment) for assignment in assignments or [])
    settings = {
        "data_dir": data_dir,
        "force": force,
        "checkpoint_seconds": checkpoint_every,
        "save_weights": save_weights,
    }
    _run(load_plan(plan, overrides), results, tracker, settings)


def _run(plan: Any, results: str, tracker: str | None, settings: dict[str, Any]) -> None:
    from bench.display import create_display
    from bench.live import LiveLog
    from bench.runner import Displays, run_plan
    from bench.trackers import create_tracker

    trackers = [create_tracker(tracker, results)] if tracker is not None else []
    display = Displays(create_display(Console(stderr=True)), LiveLog(results), *trackers)
    try:
        command = "zoobench " + shlex.join(sys.argv[1:])
        outcome = run_plan(plan, results, display, command=command, **settings)
    finally:
        display.close()
    _print_outcome(outcome, results)


@app.command()
def report(
    results: ResultsOption = "results",
    out: Annotated[Path | None, typer.Option(help="Folder of the report; RESULTS/report if not given.")] = None,
    model: Annotated[str | None, typer.Option(help="Draw this architecture's page alone.")] = None,
    latex: Annotated[bool, typer.Option("--latex", help="Write the leaderboard as LaTeX as well.")] = False,
) -> None:
    """Draw the report of a results folder: a page, tables and figures; or the page of one architecture."""
    from bench.records import check_exists, is_local
    from reports.architecture import write_architecture_report
    from reports.report import write_report

    check_exists(results)
    folder = out if out is not None else Path(results) / "report" if is_local(results) else Path("report")
    written = (
        write_report(results, folder, latex=latex)
        if model is None
        else [write_architecture_report(results, model, folder)]
    )
    for path in written:
        print(path)


@app.command()
def verify(
    page: Annotated[Path, typer.Argument(help="The index.html of a report.")],
    results: Annotated[str | None, typer.Option(help="Hold the page against these records as well.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute every number that a report's page shows, and name those that do not match.

    Exit status: 0 everything matches, 1 something does not.
    """
    from reports.verify import verify_page

    verified = verify_page(page, results)
    if as_json:
        _print_json(
            {
                "ok": verified.ok,
                "checked": verified.checked,
                "problems": list(verified.problems),
                "notes": list(verified.notes),
            }
        )
    else:
        for problem in verified.problems:
            print(f"does not match: {problem}")
        for note in verified.notes:
            print(f"note: {note}")
        print(f"{verified.checked:,} numbers checked, {len(verified.problems)} do not match.")
    if not verified.ok:
        raise typer.Exit(FAILED)


@app.command()
def export(
    results: ResultsOption = "results",
    out: Annotated[Path, typer.Option(help="Folder of the tables.")] = Path("export"),
    formats: Annotated[list[ExportFormat] | None, typer.Option("--format", help="All tables if not given.")] = None,
) -> None:
    """Write all records as tables (Parquet, CSV, SQLite), or their timed blocks for pytest-benchmark."""
    from bench.records import check_exists
    from reports.export import export_runs

    check_exists(results)
    for path in export_runs(results, out, [each.value for each in formats]) if formats else export_runs(results, out):
        print(path)


app.command()(cli_gate.compare)
app.add_typer(cli_baseline.app, name="baseline")
app.command()(cli_measure.throughput)
app.command()(cli_measure.history)


@app.command()
def watch(
    results: ResultsOption = "results",
    once: Annotated[bool, typer.Option(help="Print the state once and end.")] = False,
) -> None:
    """Watch a plan that runs elsewhere: what is done, what runs, and its curves."""
    from bench.live import read_live, render_live

    console = Console()
    state = read_live(results)
    if once or not console.is_terminal:
        console.print(render_live(state))
        return
    with Live(render_live(state), console=console, auto_refresh=False) as view:
        while not state.ended:
            time.sleep(WATCH_EVERY_SECONDS)
            state = read_live(results)
            view.update(render_live(state), refresh=True)


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Say what is here: versions, device, threads; and what is missing and how to get it."""
    from bench.doctor import examine, render

    findings = examine()
    _print_json(findings) if as_json else Console().print(render(findings))


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        from importlib.metadata import version as version_of

        print(f"zoobench {version_of('zoobench')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def _print_outcome(outcome: Any, results: str) -> None:
    from bench.records import is_local
    from reports.report import write_report
    from reports.tables import leaderboard, load_runs, render_leaderboard

    runs = load_runs(results)
    of_plan = runs[runs["run_id"].isin([record.run_id for record in outcome.records])]
    if len(of_plan):
        Console().print(render_leaderboard(leaderboard(of_plan)))
    statuses = [record.status for record in outcome.records]
    counted = [f"{statuses.count(status)} {status}" for status in ("completed", "diverged", "failed")]
    print(f"Runs: {', '.join(counted)}; {outcome.skipped} of them were done before.")
    for record in outcome.records:
        if record.error is not None:
            print(f"  {record.run_id} failed: {record.error.kind}: {record.error.message}")
    print(f"Records: {results.rstrip('/')}/runs")
    if outcome.interrupted:
        print(
            f"Interrupted; left: {', '.join(run.run_id for run in outcome.left)}. The same command goes on from here."
        )
        raise typer.Exit(INTERRUPTED)
    if is_local(results):
        written = write_report(results, Path(results) / "report")
        print(f"Report: {written[0]}, with its tables and figures beside it")
    else:
        print(f"Report: draw it with zoobench report --results {results} --out DIR")
    if any(status != "completed" for status in statuses):
        raise typer.Exit(FAILED)


def _no_match(pattern: str) -> NoReturn:
    from zoo import list_models
    from zoo.registry import UnknownModelError, did_you_mean

    raise UnknownModelError(f"no architecture matches {pattern!r}.{did_you_mean(pattern, list_models())}")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))


def _is_user_error(error: Exception) -> bool:
    """Whether the message is all that the user needs; the zoo's errors count only if the zoo was imported at all."""
    registry = sys.modules.get("zoo.registry")
    return isinstance(error, UserError) or (registry is not None and isinstance(error, registry.ZooError))


def main() -> None:
    """Run the command line; exit with its status."""
    warnings.simplefilter("ignore", FutureWarning)  # of libraries, to their developers
    warnings.showwarning = lambda message, *_, **__: print(f"zoobench: warning: {message}", file=sys.stderr)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        if not _is_user_error(error):
            raise
        print(f"zoobench: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", UserError.exit_code))


if __name__ == "__main__":
    main()
