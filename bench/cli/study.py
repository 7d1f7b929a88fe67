"""`zoobench study`: a published claim put to the test. Like `bench.cli.app`: parses and prints."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from bench.cli.options import (
    DeviceOption,
    ForceOption,
    JsonOption,
    LimitTestOption,
    LimitTrainOption,
    MeasureAgainOption,
    OptionalThreadsOption,
    ResultsOption,
)
from bench.cli.tables import Column, TerminalTable, create_console, print_json
from bench.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from bench.study import Study

INTERRUPTED = 130
FAILED = 1


def study(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A study that ships, or a TOML file; lists them if omitted.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="digits, cifar10, parquet:PATH, folder:PATH or mosaic:DATA.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(envvar="ZOOBENCH_DATA", help="Where archives and relative data paths are.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="'0,1,2' or '0-4'.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Budget of every variant in epochs, in place of its own.")] = None,
    limit_train: LimitTrainOption = None,
    limit_test: LimitTestOption = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Begin with these weights in place of those that the study trains or downloads."
        ),
    ] = None,
    device: DeviceOption = "auto",
    threads: OptionalThreadsOption = None,
    results: ResultsOption = None,
    force: ForceOption = False,
    measure_again: MeasureAgainOption = False,
    as_json: JsonOption = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print as Markdown; without NAME, what all studies have found.")
    ] = False,
) -> None:
    """Put a published claim to the test: run a few variants of a plan, and say whether they support it here.

    Records and the page go to results/study-NAME; the same command again does only what is missing. Without NAME, the
    studies that ship and what those in results have found.

    Exit status: 0 all runs completed or diverged, whatever the verdict, 1 some failed, 2 bad input, 130 interrupted.
    """
    if as_json and as_markdown:
        raise ConfigError("--json and --markdown would both be printed: give one of them.")
    if name is None:
        _print_studies(results, as_json=as_json, as_markdown=as_markdown)
        return
    from bench.config import parse_seeds
    from bench.records import ROOT
    from bench.runs.study import run_study
    from bench.study import load_study

    loaded = load_study(name)
    _check_metrics(loaded)
    options: dict[str, Any] = {
        "data": data,
        "seeds": None if seeds is None else parse_seeds(seeds),
        "budget": None if epochs is None else {"epochs": epochs},
        "limit_train": limit_train,
        "limit_test": limit_test,
        "device": None if device == "auto" else device,
        "threads": threads,
    }
    folder = results or f"{ROOT}/study-{loaded.name}"
    outcomes = run_study(
        loaded,
        folder,
        {key: value for key, value in options.items() if value is not None},
        weights=None if weights is None else str(weights),
        observers=functools.partial(_observers, folder),
        data_dir=data_dir,
        force=force,
        measure_again=measure_again,
        command="zoobench " + shlex.join(sys.argv[1:]),
    )
    snapshot = _snapshot(folder)
    _print_findings(snapshot, as_json=as_json, as_markdown=as_markdown)
    failures = [record for outcome in outcomes for record in outcome.records if record.status == "failed"]
    for record in failures:
        if record.error is not None:
            print(f"zoobench: {record.run_id} failed: {record.error.kind}: {record.error.message}", file=sys.stderr)
    if outcomes[-1].interrupted:
        again = "begins anew (--force, --measure-again)" if force or measure_again else "goes on from here"
        print(f"zoobench: interrupted; the same command {again}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    _write_report(folder, quiet=as_json or as_markdown)
    if failures:
        raise typer.Exit(FAILED)


def _check_metrics(loaded: Study) -> None:
    """That records hold what the comparisons look at, and that one of its ends is better than the other."""
    from reports.data.metrics import METRICS

    possible = [key for key, metric in METRICS.items() if metric.better is not None]
    for comparison in loaded.comparisons:
        if comparison.metric not in possible:
            raise ConfigError(
                f"study {loaded.name!r}: {comparison.metric!r} is no metric of which more or less is better."
                f"{did_you_mean(comparison.metric, possible)} Those are {', '.join(possible)}."
            )


def _observers(folder: str, variant: str) -> Sequence[Any]:
    from bench.runs.observers.display import create_display
    from bench.runs.observers.live import LiveLog

    console = create_console(stderr=True)
    console.print(Text(variant, "bold"))
    return [create_display(console), LiveLog(folder)]


def _snapshot(folder: str) -> Any:
    from reports.data.report_data import load_report_data
    from reports.pages.study import take_study_snapshot

    return take_study_snapshot(load_report_data(folder))


def _print_studies(root: str | None, *, as_json: bool, as_markdown: bool) -> None:
    from bench.records import ROOT, plan_folders
    from bench.study import list_studies, load_study
    from reports.data.study import load_study as find_study
    from reports.pages.study import findings_as_dict, findings_as_markdown

    folders = [folder for folder in plan_folders(root or ROOT) if find_study(folder) is not None]
    found = {each["study"]["name"]: each for each in map(_snapshot, folders)}
    if as_markdown:
        print(findings_as_markdown(list(found.values())))
        return
    findings = {name: findings_as_dict(snapshot) for name, snapshot in found.items()}
    studies = [load_study(name) for name in list_studies()]
    if as_json:
        kept = {"name", "title", "claim", "source", "cost"}
        print_json([each.model_dump(include=kept) | {"found": findings.get(each.name)} for each in studies])
        return
    table = TerminalTable(
        [Column("study"), Column("claim"), Column("cost", optional=1), Column("found here")],
        caption="Run one with zoobench study NAME. Found here: the verdict of its records in results.",
    )
    for each in studies:
        verdict = findings[each.name]["verdict"] if each.name in findings else None
        table.add_row(each.name, each.claim, each.cost, verdict)
    create_console().print(table)


def _print_findings(snapshot: Any, *, as_json: bool, as_markdown: bool) -> None:
    from reports.pages.study import findings_as_dict, findings_as_markdown

    if as_json:
        print_json(findings_as_dict(snapshot))
    elif as_markdown:
        print(findings_as_markdown([snapshot]))
    else:
        create_console().print(_render(snapshot))


def _render(snapshot: Any) -> RenderableType:
    from reports.data.metrics import metric
    from reports.data.study import overall
    from reports.pages.study import comparison_row, findings_of, part_text, variant_rows

    content, findings = findings_of(snapshot)
    keys, rows = variant_rows(snapshot)
    reached = TerminalTable(
        [Column("variant"), *(Column(metric(key).axis, "number") for key in keys), Column("runs", "number")],
        f"{content.title}: mean over seeds ± half its 95% interval",
    )
    for row in rows:
        reached.add_row(row.name, *row.cells, row.done)
    decided = TerminalTable(
        [Column("claim"), *(Column(title, "number") for title in ("effect", "95% interval", "margin")), Column("here")]
    )
    for finding in findings:
        shown = comparison_row(finding, content)
        decided.add_row(shown.claim, shown.effect, shown.interval, shown.margin, shown.verdict)
    lines = [f"Claim: {content.claim}.", f"Here: {overall(findings)}.", part_text(snapshot)]
    return Group(reached, Text(), decided, Text(), *map(Text, lines))


def _write_report(folder: str, *, quiet: bool) -> None:
    from bench.records import is_local
    from reports.report import report_folder, write_report

    if is_local(folder):
        written = write_report(folder, report_folder(folder))
        if not quiet:
            print(f"Report: {written[0]}")
    elif not quiet:
        print(f"Report: draw it with zoobench report --results {folder} --out DIR")
