"""The command line: parses and prints, decides nothing. torch is imported only by the commands that need it."""

from __future__ import annotations

import importlib.metadata
import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from bench.cli import baseline, bisect, compare, evaluate, history, study, throughput
from bench.cli import results as results_of_plans
from bench.cli.options import (
    CanonicalInputSizeOption,
    CanonicalNumClassesOption,
    ExecutorName,
    ForceOption,
    JsonOption,
    LimitTestOption,
    LimitTrainOption,
    MeasureAgainOption,
    ModelArgument,
    ResultsOption,
    WideOption,
)
from bench.cli.tables import create_console, print_json
from bench.collector import without_collector
from bench.errors import ConfigError, UserError

INTERRUPTED = 130
FAILED = 1

app = typer.Typer(
    name="zoobench",
    help="Benchmark CNN architectures: exact counts, fair training, measured throughput, reports.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("list")
@without_collector()
def list_command(
    pattern: Annotated[str, typer.Argument(help="A name or wildcard: 'resnet*', 'timm/vit_*'.")] = "*",
    wide: WideOption = False,
    as_json: JsonOption = False,
) -> None:
    """List architectures with their parameter and MAC counts."""
    from bench.cli.card_table import render_rows
    from bench.counting.card import list_rows

    rows = list_rows(pattern, canonical=as_json)
    if not rows:
        _no_match(pattern)
    print_json(rows) if as_json else create_console(wide=wide).print(render_rows(rows, exact=wide))


@app.command()
@without_collector()
def describe(
    model: ModelArgument,
    input_size: CanonicalInputSizeOption = None,
    num_classes: CanonicalNumClassesOption = None,
    depth: Annotated[int, typer.Option(min=1, help="Depth to which layers are listed.")] = 2,
    wide: WideOption = False,
    as_json: JsonOption = False,
) -> None:
    """Describe an architecture: counts, layers, receptive field."""
    from bench.cli.card_table import render_card
    from bench.counting.card import describe as describe_model

    card = describe_model(model, input_size, num_classes)
    print_json(card.to_dict()) if as_json else create_console(wide=wide).print(render_card(card, depth, exact=wide))


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
    label_column: Annotated[
        str | None, typer.Option(help="Which column of Parquet files holds the labels, if there are several.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads, of each process.")] = None,
    nproc: Annotated[
        int | None, typer.Option(min=1, help="Processes that train a network together, each on a device of its own.")
    ] = None,
    nodes: Annotated[
        int, typer.Option(min=1, help="Machines that these are spread over, each with this same command.")
    ] = 1,
    rendezvous: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where the machines meet: a free port of one of them.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe that ships, or the path of a TOML file.")] = None,
    seeds: Annotated[str | None, typer.Option(help="'0,1,2' or '0-4'.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Budget in epochs, in place of the plan's.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Budget in seconds of training a model.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override: --set recipe.lr=0.05.")
    ] = None,
    limit_train: LimitTrainOption = None,
    limit_test: LimitTestOption = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Do only the I-th of N parts of the plan, of about equal cost.")
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, metavar="N", help="Runs at once on this machine; threads are divided among them.")
    ] = 1,
    executor: Annotated[
        ExecutorName, typer.Option(help="Where runs are done: in processes here, or as tasks of Ray.")
    ] = ExecutorName.LOCAL,
    address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="The Ray cluster; a Ray of this machine if omitted.")
    ] = None,
    results: ResultsOption = None,
    force: ForceOption = False,
    measure_again: MeasureAgainOption = False,
    tracker: Annotated[str | None, typer.Option(help="tensorboard: write scalars for it as well.")] = None,
    save_weights: Annotated[bool, typer.Option("--save-weights", help="Keep them in RESULTS/weights.")] = False,
    checkpoint_every: Annotated[float, typer.Option(min=0, help="Seconds between checkpoints of training.")] = 60.0,
) -> None:
    """Train and measure a plan's models, and rank them.

    Exit status: 0 all runs completed, 1 some failed or diverged, 2 bad input, 17 a record could not be written, 130
    interrupted, 143 ended by SIGTERM.
    """
    from bench.config import load_plan, parse_models, parse_override, parse_seeds
    from bench.records import ROOT
    from bench.runs.executors import LocalExecutor
    from bench.runs.parallel_executor import ParallelExecutor
    from bench.runs.ray_executor import RayExecutor
    from bench.runs.shards import parse_shard

    if epochs is not None and seconds is not None:
        raise ConfigError("--epochs and --seconds exclude each other: a budget is one of them.")
    options: dict[str, Any] = {
        "models": None if models is None else parse_models(models),
        "seeds": None if seeds is None else parse_seeds(seeds),
        "budget": {"epochs": epochs} if epochs is not None else {"seconds": seconds} if seconds is not None else None,
        "data": data,
        "label_column": label_column,
        "device": device,
        "threads": threads,
        "nproc": nproc,
        "recipe": recipe,
        "limit_train": limit_train,
        "limit_test": limit_test,
    }
    overrides = {name: value for name, value in options.items() if value is not None}
    overrides |= dict(parse_override(assignment) for assignment in assignments or [])
    if address is not None and executor is not ExecutorName.RAY:
        raise ConfigError("--address names a Ray cluster: it needs --executor ray.")
    if jobs > 1 and executor is ExecutorName.RAY:
        raise ConfigError(
            "--jobs is for this machine alone: with --executor ray the cluster says how many run at once."
        )
    if (nodes > 1) != (rendezvous is not None):
        raise ConfigError(
            "--nodes and --rendezvous belong together: --nodes 2 --rendezvous HOST:29400, on each of them."
        )
    if nodes > 1 and (jobs > 1 or force or measure_again or shard is not None or executor is ExecutorName.RAY):
        raise ConfigError(
            "--nodes lets several machines do each run together; --jobs, --force, --measure-again, --shard and "
            "--executor ray are not possible with it. Name another folder with --results to do runs anew."
        )
    here = ParallelExecutor(jobs) if jobs > 1 else LocalExecutor(nodes=nodes, rendezvous=rendezvous or "")
    settings = {
        "executor": RayExecutor(address) if executor is ExecutorName.RAY else here,
        "shard": None if shard is None else parse_shard(shard),
        "data_dir": data_dir,
        "force": force,
        "measure_again": measure_again,
        "checkpoint_seconds": checkpoint_every,
        "save_weights": save_weights,
    }
    loaded = load_plan(plan, overrides)
    _run(loaded, results or f"{ROOT}/{loaded.name}", tracker, settings)


def _run(plan: Any, results: str, tracker: str | None, settings: dict[str, Any]) -> None:
    from bench.events import Observer
    from bench.runs.expectation import Expectation
    from bench.runs.observers.display import create_display
    from bench.runs.observers.live import LiveLog
    from bench.runs.observers.tensorboard import create_tracker
    from bench.runs.ray_executor import RayExecutor
    from bench.runs.runner import run_plan

    trackers = [create_tracker(tracker, results)] if tracker is not None else []
    observers: list[Observer] = [create_display(create_console(stderr=True)), LiveLog(results), *trackers]
    if not isinstance(settings["executor"], RayExecutor):  # whose machines, not this one, have the data
        observers.append(Expectation(plan, settings["data_dir"], lambda line: print(line, file=sys.stderr)))
    command = "zoobench " + shlex.join(sys.argv[1:])
    outcome = run_plan(plan, results, observers, command=command, **settings)
    if settings["save_weights"]:
        _warn_of_missing_weights(outcome, results)
    _print_outcome(outcome, results, anew=settings["force"] or settings["measure_again"])


app.command()(study.study)
app.command()(compare.compare)
app.command()(bisect.bisect)
app.add_typer(baseline.app, name="baseline")
app.command()(evaluate.evaluate)
app.command()(throughput.throughput)
app.command()(history.history)
for name in ("report", "figures", "verify", "export", "watch"):
    app.command()(getattr(results_of_plans, name))


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Report versions, device, threads and folders, and what is missing."""
    from bench.cli.doctor import examine, render

    findings = examine()
    print_json(findings) if as_json else create_console().print(render(findings))


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        print(f"zoobench {importlib.metadata.version('zoobench')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def _print_outcome(outcome: Any, results: str, *, anew: bool) -> None:
    from bench.records import is_local
    from reports.data.leaderboard import leaderboard, load_runs, render_leaderboard
    from reports.data.predictions import compare_images
    from reports.report import write_report

    runs, records = load_runs(results), outcome.records
    of_plan = runs[runs["run_id"].isin([record.run_id for record in records])]
    if len(of_plan):
        create_console().print(render_leaderboard(leaderboard(of_plan, compare_images(results, of_plan))))
    statuses = [record.status for record in records]
    counted = [f"{statuses.count(status)} {status}" for status in ("completed", "diverged", "failed")]
    again = f", {outcome.measured_again} trained before and measured again" if outcome.measured_again else ""
    print(f"Runs: {', '.join(counted)}; {outcome.skipped} of them were done before{again}.")
    for record in records:
        if record.error is not None:
            print(f"  {record.run_id} failed: {record.error.kind}: {record.error.message}")
    print(f"Records: {results.rstrip('/')}/runs")
    if outcome.interrupted:
        again = (
            "The same command begins anew: --force and --measure-again repeat what is done. To go on, name the models "
            "and seeds that are left."
            if anew
            else "The same command goes on from here."
        )
        print(f"Interrupted; left: {', '.join(run.run_id for run in outcome.left)}. {again}")
        raise typer.Exit(INTERRUPTED)
    if is_local(results):
        written = write_report(results, Path(results) / "report")
        print(f"Report: {written[0]}, with its tables and figures beside it")
    else:
        print(f"Report: draw it with zoobench report --results {results} --out DIR")
    if any(status != "completed" for status in statuses):
        raise typer.Exit(FAILED)


def _warn_of_missing_weights(outcome: Any, results: str) -> None:
    from bench.records import find_stored

    completed = [record.run_id for record in outcome.records if record.status == "completed"]
    if lacking := [run_id for run_id in completed if find_stored(results, "weights", run_id) is None]:
        warnings.warn(
            f"{', '.join(lacking)}: trained before, without keeping the weights. --save-weights with --force trains "
            "them anew.",
            stacklevel=2,
        )


def _no_match(pattern: str) -> NoReturn:
    from zoo import list_models
    from zoo.info import UnknownModelError, did_you_mean

    raise UnknownModelError(f"no architecture matches {pattern!r}.{did_you_mean(pattern, list_models())}")


def _is_user_error(error: Exception) -> bool:
    """Whether the message is all that the user needs; the zoo's errors count only if the zoo was imported at all."""
    registry = sys.modules.get("zoo.registry")
    return isinstance(error, UserError) or (registry is not None and isinstance(error, registry.ZooError))


def main() -> None:
    """Run the command line; exit with its status."""
    warnings.simplefilter("ignore", FutureWarning)  # of libraries, to their developers
    warnings.showwarning = lambda message, *_, **__: print(f"zoobench: warning: {message}", file=sys.stderr)
    try:
        app(prog_name="zoobench")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        if not _is_user_error(error):
            raise
        print(f"zoobench: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", UserError.exit_code))


if __name__ == "__main__":
    main()
