"""`zoobench history`: how a metric changed over time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from bench.cli.options import JsonOption
from bench.cli.tables import Column, TerminalTable, create_console, print_json
from bench.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd


def history(
    model: Annotated[str, typer.Argument(help="Model name, as in the records.")],
    results: Annotated[
        list[str] | None,
        typer.Option("--results", metavar="DIR", help="Folder of records; repeatable. results if omitted."),
    ] = None,
    metric: Annotated[str, typer.Option(metavar="KEY", help="Metric to follow.")] = "throughput_img_per_s",
    alpha: Annotated[
        float,
        typer.Option(
            min=0.002, max=0.5, metavar="P", help="Highest probability of finding a step where there is none."
        ),
    ] = 0.05,
    undisturbed: Annotated[bool, typer.Option("--undisturbed", help="Leave disturbed records out.")] = False,
    figure: Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw it, as .svg, .png or .pdf.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the steps in a model's records over time, and the commit at which each begins."""
    from reports.data.change_points import MIN_SERIES
    from reports.data.history import find_steps, load_points
    from reports.figures.history import plot_history

    if figure is not None and figure.suffix not in (".svg", ".png", ".pdf"):
        raise ConfigError(
            f"--figure {str(figure)!r} is not a kind of figure. Expected a file name that ends in .svg, .png or .pdf."
        )
    points = load_points(results or ["results"], model, metric, undisturbed=undisturbed)
    steps = find_steps(points, metric, alpha)
    if figure is not None:
        try:
            figure.parent.mkdir(parents=True, exist_ok=True)
            plot_history(points, steps, metric, f"{model}: {metric}").savefig(figure)
        except OSError as error:
            raise ConfigError(
                f"--figure {str(figure)!r} cannot be written: {error.strerror or error}. Name another file."
            ) from error
    if as_json:
        series = [
            {
                "series": name,
                "searched": len(own) >= MIN_SERIES,
                "steps": _rows(steps[steps.series == name]),
                "points": _rows(own),
            }
            for name, own in points.groupby("series", sort=False)
        ]
        print_json({"model": model, "metric": metric, "alpha": alpha, "series": series})
        return
    console = create_console()
    for name, own in points.groupby("series", sort=False):
        console.print(_render_series(str(name), own, steps[steps.series == name], metric, MIN_SERIES))
    if figure is not None:
        print(f"Figure: {figure}")


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The table's rows for JSON: ISO dates, null for what is missing, without the series' name."""
    text = frame.drop(columns="series").to_json(orient="records", date_format="iso", double_precision=15)
    rows: list[dict[str, Any]] = json.loads(text)
    return rows


def _render_series(name: str, own: pd.DataFrame, steps: pd.DataFrame, metric: str, least: int) -> RenderableType:
    from reports.data.history import change_text
    from reports.data.metrics import counted

    begun, ended = (f"{own.started_at.iloc[end]:%Y-%m-%d %H:%M}" for end in (0, -1))
    disturbed = int(own.disturbed.sum())
    title = f"{name}: {counted(len(own), 'record')} from {begun} to {ended}, {disturbed} of them disturbed"
    if steps.empty:
        why = "no step" if len(own) >= least else f"fewer than {least} records: not searched for steps"
        return Group(Text(title), Text(f"  {why}"))
    columns = [
        Column("since"),
        Column("commit"),
        Column("after", optional=2),
        Column("change [95%]", "number"),
        Column(""),
        Column("records", optional=1),
        Column("also changed"),
    ]
    table = TerminalTable(columns)
    for _, step in steps.iterrows():
        better = {True: "better", False: "worse", None: ""}[step.better]
        table.add_row(
            f"{step.started_at:%Y-%m-%d %H:%M}", step["commit"][:10] or "none", step.commit_before[:10] or "none",
            change_text(step, metric), better, f"{step.before}, then {step.after}", step.also_changed or "",
        )  # fmt: skip
    return Group(Text(title), table)
