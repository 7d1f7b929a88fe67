"""What the README, the guides and CONTRIBUTING show is run, or at least understood by the parser."""

import json
import os
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
import typer
from gate_experiment import read_rows, render_short

from bench.cli.app import app
from bench.config import list_plans, list_recipes
from bench.records import read_records
from reports.data.report_data import load_report_data
from reports.data.statistics import welch_interval
from reports.export_figures import export_figures

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [README, *(file.read_text() for file in sorted((ROOT / "docs").glob("*.md")))]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


COMMANDS = list(
    dict.fromkeys(
        line.partition(" #")[0].strip()
        for page in PAGES
        for block in blocks(page, "console")
        for line in block.splitlines()
        if line.startswith("zoobench ")
    )
)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_understood(command):
    _, name, *arguments = shlex.split(command)
    group = typer.main.get_command(app)
    context = group.commands[name].make_context(name, arguments)
    if name == "run":
        assert context.params["plan"] in [*list_plans(), "my_plan.toml"]


def test_readme_shows_commands_and_names_every_plan_and_recipe():
    assert len(COMMANDS) >= 5
    for name in [*list_plans(), *list_recipes()]:
        assert f"`{name}`" in README


PRINTED = [block.rstrip().splitlines() for page in PAGES for block in blocks(page, "text")]
"""What the pages show as printed: a command and its output, or an output alone."""
SAME_EVERYWHERE = ("describe", "list")
"""Commands whose whole output is a matter of counting."""


def printed_by(command: str) -> list[str]:
    (shown,) = (lines[1:] for lines in PRINTED if lines[0] == f"$ zoobench {command}")
    return shown


def test_every_printed_output_is_checked_by_a_test_below():
    commands = [lines[0].removeprefix("$ zoobench ").split()[0] for lines in PRINTED]
    assert sorted(set(commands) - set(SAME_EVERYWHERE)) == ["bisect", "compare", "simple_cnn"]
    assert len(commands) == len(set(commands))


@pytest.mark.parametrize(
    "lines",
    [lines for lines in PRINTED if lines[0].startswith(tuple(f"$ zoobench {name}" for name in SAME_EVERYWHERE))],
    ids=lambda lines: lines[0],
)
def test_what_a_command_prints_is_what_it_prints(lines):
    arguments = shlex.split(lines[0].removeprefix("$ zoobench "))
    done = subprocess.run(
        [sys.executable, "-m", "zoobench", *arguments], capture_output=True, text=True, env=os.environ | {"COLUMNS": ""}
    )
    assert lines[1:] == [line.rstrip() for line in done.stdout.splitlines()]


def test_the_differences_that_bisect_prints_are_those_of_that_change():
    """The commit of the guide, made here: a 1×1 convolution before SimpleCNN's stages, named `more`."""
    from torch import nn

    from bench.counting.complexity import count_complexity
    from bench.gate.exact import Counts, find_differences
    from zoo import create_model

    class Mixed(type(create_model("simple_cnn"))):
        def forward(self, x):
            return super().forward(self.more(x))

    def counts(model):
        counted = count_complexity(model, (3, 32, 32))
        return Counts.of({**vars(counted), "layers": [vars(layer) for layer in counted.layers]})

    model = create_model("simple_cnn", num_classes=10, input_size=32)
    before = counts(model)
    model.more, model.__class__ = nn.Conv2d(3, 3, 1), Mixed
    lines = printed_by("bisect v1 --models simple_cnn --exact")
    assert lines[-5:] == [f"simple_cnn: {difference}" for difference in find_differences(before, counts(model))]
    said = [line for line in lines if re.match(r"[0-9a-f]{12}  (good|bad) ", line)]
    first_bad = next(line for line in said if "Mix the colours first" in line)
    assert f"The first bad commit is {first_bad[:12]} 2026-11-26 Mix the colours first" in lines


def test_the_table_that_compare_prints_has_its_setting_and_columns():
    from bench.gate.result import CompareOptions
    from bench.gate.statistics.verdicts import Verdict
    from bench.gate.summary import COLUMNS
    from bench.gate.timing.subject import Setting

    setting, headings, _, row = printed_by("compare resnet18 resnet18,runtime=onnxruntime")
    assert setting == f"Timed: {Setting(device='cpu')}. Batch: 1. Tolerance: {100 * CompareOptions().tolerance:g}%."
    assert headings.split() == list(COLUMNS[:-1])
    assert row.split()[1] in list(Verdict)


def test_the_table_that_evaluate_prints_names_what_it_measures():
    from bench.data.corruptions import CORRUPTIONS, SEVERITIES
    from reports.data.metrics import METRICS

    (lines,) = (lines for lines in PRINTED if lines[0].startswith("simple_cnn with"))
    table = lines[lines.index("accuracy % under       1      2      3      4      5   mean") + 2 :]
    names = [re.split(r"  +", line)[0] for line in table if line != "…"]
    assert set(names) <= {*(name.replace("_", " ") for name in CORRUPTIONS), "mean"}
    assert len(SEVERITIES) == 5
    assert {METRICS[key].in_text for key in ("test_loss", "corruption_top1", "calibration_error")} <= {
        re.split(r"  +", line)[0] for line in lines
    }


def test_the_exit_statuses_of_the_guide_are_those_of_the_gate():
    from bench.gate.result import EXIT_CODES

    table = re.findall(r"^\| (\d+) \| .* \| `(\w+)` \|$", (ROOT / "docs" / "gate.md").read_text(), re.MULTILINE)
    assert [(name, int(code)) for code, name in table if name != "none"] == list(EXIT_CODES.items())


def test_every_option_that_a_page_names_is_one():
    known = {"--throughput-save", "--throughput-strict"}  # of pytest

    def collect(command):
        known.update(option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts))
        for inner in getattr(command, "commands", {}).values():
            collect(inner)

    collect(typer.main.get_command(app))
    named = {option for page in PAGES for option in re.findall(r"`(--[a-z][a-z-]+)", page)}
    assert len(named) > 20
    assert named <= known


def test_the_readme_is_short_and_links_what_is_there():
    assert len(README.splitlines()) <= 150
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


@pytest.mark.parametrize("code", dict.fromkeys(code for page in PAGES for code in blocks(page, "python")))
def test_python_example_runs_and_prints_what_its_remarks_say(code, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    exec(compile(code, "an example", "exec"), {})
    printed = capsys.readouterr().out.replace(",", "")
    for number in re.findall(r"print\(.*\)  # ([\d,]+)", code):
        assert number.replace(",", "") in printed


@pytest.mark.parametrize("query", [query for page in PAGES for query in blocks(page, "sql")])
def test_query_runs_on_the_published_records(query, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = {(model, seeds) for model, seeds, _ in duckdb.sql(query).fetchall()}
    completed = [
        record.config["model"] for record in read_records("results/cifar10_30s")[0] if record.status == "completed"
    ]
    assert found == {(model, completed.count(model)) for model in completed}


def rows_below(heading: str) -> list[list[str]]:
    """The cells of the table in docs/results.md whose header holds these words."""
    table = (ROOT / "docs" / "results.md").read_text().partition(heading)[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def with_interval(row) -> str:
    half = 50 * (row.test_top1_high - row.test_top1_low)
    return f"{100 * row.test_top1:.1f}" + (f" ± {half:.1f}" if row.seeds > 1 else "")


def three_digits(speed: float) -> str:
    return f"{float(f'{speed:.3g}'):,.0f}"


def test_the_first_results_are_those_of_the_records():
    table = load_report_data(ROOT / "results" / "cifar10_30s").table
    assert rows_below("| 30 seconds of training each") == [
        [
            row.model, with_interval(row), f"{row.params:,.0f}", f"{row.macs / 1e6:.3g} M",
            three_digits(row.train_throughput_img_per_s),
        ]
        for row in table.itertuples()
    ]  # fmt: skip


def test_the_comparison_is_that_of_the_records():
    table = load_report_data(ROOT / "results" / "cifar10_cpu").table
    assert rows_below("| 5 epochs of `fast`") == [
        [
            row.model, with_interval(row), f"{row.seeds:.0f}", f"{row.params:,.0f}", f"{row.macs / 1e6:.3g} M",
            f"{row.train_seconds:,.0f}", three_digits(row.throughput_img_per_s),
        ]
        for row in table.itertuples()
    ]  # fmt: skip


def test_what_a_recipe_buys_is_in_the_records():
    table = load_report_data(ROOT / "results" / "cifar10_recipes").table
    known = {
        (f"{row.epochs:.0f}", f"{row.train_seconds:,.0f}", with_interval(row), f"{row.seeds:.0f}")
        for row in table[table.model == "simple_cnn"].itertuples()
    }
    shown = {(row[1], row[2].partition(" ")[0], *row[3:]) for row in rows_below("| recipe | epochs")}
    assert shown == known


def test_what_bfloat16_costs_is_in_the_records():
    top1: dict[bool, list[float]] = {False: [], True: []}
    for record in read_records(ROOT / "results" / "cifar10_recipes")[0]:
        if record.config["recipe"]["name"] == "fast" and record.config["budget"]["epochs"] == 3:
            form = record.environment.get("tuning", {}).get("form", record.config)  # or named, and nothing was tried
            top1[form["autocast"]].append(record.metrics["test_top1"])
    change, low, high = (f"{100 * share:+.1f}".replace("-", "−") for share in welch_interval(top1[False], top1[True]))
    page = (ROOT / "docs" / "results.md").read_text()
    assert f"a difference of {change} points, 95% interval {low} to {high}" in page


def test_what_the_speedrun_reaches_is_in_the_records():
    (row,) = load_report_data(ROOT / "results" / "speedrun").table.itertuples()
    ratios = json.loads((ROOT / "results" / "speedrun_ratio.json").read_text())["ratios"]
    page = " ".join((ROOT / "docs" / "results.md").read_text().split())
    assert (
        f"reaches {100 * row.test_single_view_top1:.1f}% with one view of an image and {100 * row.test_top1:.1f}% with "
        f"six, after {row.train_seconds:.0f} seconds, one seed"
    ) in page
    assert f"takes {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) of the time" in page


def test_the_figures_are_those_of_the_published_report(tmp_path):
    written = {
        path.name: path.read_text()
        for path in export_figures(ROOT / "results" / "cifar10_cpu", tmp_path, formats=["svg"])
    }
    kept = sorted((ROOT / "docs" / "figures").iterdir())
    assert kept
    for path in kept:
        assert shapes(path.read_text()) == shapes(written[path.name])


def shapes(svg: str) -> list[str]:
    """What an SVG shows as text and how many marks it has: coordinates may differ in the last digit elsewhere."""
    return [*re.findall(r"<text[^>]*>([^<]*)", svg), str(svg.count("<use")), str(svg.count("<path"))]


def test_what_fine_tuning_buys_is_what_the_study_found():
    runs = load_report_data(ROOT / "results" / "study-transfer_imagenet").results.runs
    assert set(runs.groupby("recipe").seed.count()) == {3}
    found = {recipe: f"{100 * top1:.1f}%" for recipe, top1 in runs.groupby("recipe").test_top1.mean().items()}
    text = " ".join((ROOT / "docs" / "fine-tuning.md").read_text().split())
    assert (
        f"three seeds: {found['fine-tuned']} of 1,000 test images, against {found['head alone']} for the head alone "
        f"and {found['scratch']} from scratch"
    ) in text


def test_the_ablation_is_that_of_the_records():
    table = load_report_data(ROOT / "results" / "ablation").table
    shown = sorted(float(row[1]) for row in rows_below("| `fast`, 3 epochs, one thing changed"))
    assert shown == pytest.approx(sorted(100 * table.test_top1), abs=0.051)


@pytest.mark.parametrize(
    ("file", "name", "digits"), [("perf", "test_epoch_against_bare_step", 2), ("timer", "test_our_loop_agrees", 3)]
)
def test_ratios_of_speed_are_those_of_their_records(file, name, digits):
    text = " ".join((ROOT / "docs" / "results.md").read_text().split())
    measured = json.loads((ROOT / "results" / f"{file}.json").read_text())["benchmarks"]
    found = [each["extra_info"] for each in measured if each["name"].startswith(name)]
    assert len(found) >= 2
    for each in found:
        median, low, high = (f"{each[key]:.{digits}f}" for key in ("median", "low", "high"))
        assert f"{median} [{low}, {high}]" in text


def test_the_gate_s_table_is_that_of_its_experiment():
    table = (ROOT / "docs" / "gate.md").read_text().partition("<!-- experiment -->\n")[2].partition("\n\n")[0]
    assert table == render_short(read_rows(ROOT / "results" / "gate.jsonl"), (0.0, 0.02, 0.03, 0.05))


def test_the_architecture_of_contributing_builds_with_the_count_that_it_states():
    import torch

    from zoo import registry

    code = blocks((ROOT / "CONTRIBUTING.md").read_text(), "python")[0]
    try:
        exec(compile(code, "CONTRIBUTING.md", "exec"), {"__name__": "zoo.architectures.contributed"})
        model = registry.create_model("foonet", num_classes=1000, input_size=224)
        assert sum(p.numel() for p in model.parameters()) == registry.model_info("foonet").published.params
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 1000)
    finally:
        registry._builders.pop("foonet", None)
