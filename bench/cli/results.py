"""Commands on what plans have left in their results folders: report, figures, verify, export, watch."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live

from bench.cli.options import JsonOption, ResultsOption, SeveralResultsOption
from bench.cli.tables import create_console, print_json
from bench.errors import ConfigError, RecordError, did_you_mean

FAILED = 1
WATCH_EVERY_SECONDS = 0.5


class ExportFormat(StrEnum):
    """What `zoobench export` writes."""

    PARQUET = "parquet"
    CSV = "csv"
    SQLITE = "sqlite"
    PYTEST_BENCHMARK = "pytest-benchmark"


class PictureFormat(StrEnum):
    """What `zoobench figures` writes."""

    PNG = "png"
    SVG = "svg"


class Theme(StrEnum):
    """On which ground a figure is drawn."""

    LIGHT = "light"
    DARK = "dark"


PlanArgument = Annotated[str | None, typer.Argument(metavar="PLAN", help="A plan's name; all plans if omitted.")]


def report(
    plan: PlanArgument = None,
    results: SeveralResultsOption = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where it is written; DIR/report if omitted.")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Draw only this architecture's page.")] = None,
    latex: Annotated[bool, typer.Option("--latex", help="Also write the leaderboard as LaTeX.")] = False,
    beside: Annotated[
        list[Path] | None,
        typer.Option(metavar="CSV", help="Show timm's published results beside ours: a file of its results folder."),
    ] = None,
) -> None:
    """Draw a plan's report: a page, tables and figures. Without PLAN, one for each plan, and an index.

    The report goes into the plan's results folder, the index into the folder above. Several --results, such as those
    of a plan's shards, are drawn as one report, in the first of them.
    """
    from bench.records import own_or_inner_plans, plan_name
    from reports.pages.architecture import write_architecture_report
    from reports.report import report_folder, write_report, write_reports

    folders = _results_folders(plan, results)
    plans = own_or_inner_plans(folders)
    if model is not None and latex:
        raise ConfigError("--latex is for the leaderboard, not for the page of one --model: leave one of them out.")
    if model is not None and beside:
        raise ConfigError(
            "--beside is for the page that compares models, not for one of --model: leave one of them out."
        )
    if model is not None:
        if len(plans) != 1 and len(folders) == 1:
            raise ConfigError(
                f"--model needs one plan. Name it: {', '.join(map(plan_name, plans)) or 'there is none'}."
            )
        written = [write_architecture_report(plans, model, out or report_folder(plans[0]))]
    elif plans == folders or len(folders) > 1:
        written = write_report(plans, out or report_folder(folders[0]), latex=latex, beside=beside or ())
    else:
        written = write_reports(folders[0], out, latex=latex, beside=beside or ())
    for path in written:
        print(path)


def verify(
    page: Annotated[str, typer.Argument(metavar="PAGE", help="The index.html of a report, or a plan's name.")],
    results: Annotated[
        str | None, typer.Option(metavar="DIR", help="Also check the page against the records in this results folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute every number that a report's page shows, and name those that do not match.

    Of a plan, all pages of its report are checked, also against the plan's records.

    Exit status: 0 everything matches, 1 something does not, 2 bad input.
    """
    from reports.pages.verify import verify_page, verify_report

    path = Path(page)
    if not path.is_file() and path.suffix != ".html":
        folder = _results_folder(page, None)
        verified = verify_report(Path(folder) / "report", results or folder)
    else:
        verified = verify_page(path, results)
    if as_json:
        print_json(
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
        print(f"{verified.checked:,} tags and texts compared, {len(verified.problems)} do not match.")
    if not verified.ok:
        raise typer.Exit(FAILED)


def export(
    plan: PlanArgument = None,
    results: SeveralResultsOption = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the tables.")] = Path("export"),
    formats: Annotated[list[ExportFormat] | None, typer.Option("--format", help="All tables if omitted.")] = None,
) -> None:
    """Write the records as tables (Parquet, CSV, SQLite), or their timed blocks for pytest-benchmark."""
    from reports.export import export_runs

    folders = _results_folders(plan, results)
    for path in export_runs(folders, out, [each.value for each in formats]) if formats else export_runs(folders, out):
        print(path)


def figures(
    plan: Annotated[
        str | None, typer.Argument(metavar="PLAN", help="A plan's name; needed if there are several.")
    ] = None,
    results: SeveralResultsOption = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the pictures.")] = Path("figures"),
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Those of this architecture's page.")] = None,
    formats: Annotated[list[PictureFormat] | None, typer.Option("--format", help="Both if omitted.")] = None,
    themes: Annotated[list[Theme] | None, typer.Option("--theme", help="Both if omitted.")] = None,
) -> None:
    """Write the figures of a plan's report as PNG and SVG, light and dark, with their captions: for a slide."""
    from reports.export_figures import FORMATS, THEMES, export_figures

    written = export_figures(
        _one_plan(_results_folders(plan, results)),
        out,
        model=model,
        formats=[each.value for each in formats] if formats else FORMATS,
        themes=[each.value for each in themes] if themes else THEMES,
    )
    for path in written:
        print(path)


def watch(
    plan: Annotated[str | None, typer.Argument(metavar="PLAN", help="A plan's name; the latest if omitted.")] = None,
    results: ResultsOption = None,
    once: Annotated[bool, typer.Option(help="Print the state once and exit.")] = False,
) -> None:
    """Watch a plan that runs elsewhere: what is done, what is running, and its curves."""
    from bench.records import ROOT
    from bench.runs.observers.live import latest_live, read_live, render_live

    folder = latest_live(ROOT) if plan is None and results is None else _results_folder(plan, results)
    console = create_console()
    state = read_live(folder)
    if once or not console.is_terminal:
        console.print(render_live(state))
        return
    with Live(render_live(state), console=console, auto_refresh=False) as view:
        while not state.ended:
            time.sleep(WATCH_EVERY_SECONDS)
            state = read_live(folder)
            view.update(render_live(state), refresh=True)


def _one_plan(folders: list[str]) -> list[str]:
    """Refuse a folder of several plans: their figures have the same names."""
    from bench.records import own_or_inner_plans, plan_name

    plans = own_or_inner_plans(folders)
    if plans != folders and len(plans) > 1:
        raise ConfigError(
            f"the figures of one plan at a time can be written. Name it: {', '.join(map(plan_name, plans))}."
        )
    return plans


def _results_folders(plan: str | None, results: list[str] | None) -> list[str]:
    return [_results_folder(plan, each) for each in results] if results else [_results_folder(plan, None)]


def _results_folder(plan: str | None, results: str | None) -> str:
    """The results folder of a plan, by its name or path; else the one that is named; else that of all plans."""
    from bench.records import ROOT, check_exists, plan_folders, plan_name

    if plan is not None and results is not None:
        raise ConfigError(f"PLAN and --results exclude each other: {plan!r} is in {ROOT}/{plan}. Give one of them.")
    folder = ROOT if results is None else results.rstrip("/") or "/"
    if plan is not None:
        folder = f"{ROOT}/{plan}"
        if folder not in plan_folders(ROOT):
            folder = plan.rstrip("/")
            if folder not in plan_folders(folder):
                names = [plan_name(each) for each in plan_folders(ROOT)]
                raise RecordError(
                    f"there are no results of a plan {plan!r}.{did_you_mean(plan, names)} "
                    f"Those with results: {', '.join(names) or 'none'}; name another folder with --results DIR."
                )
    check_exists(folder)
    return folder
