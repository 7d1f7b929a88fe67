"""What is said before a plan's first run on a GPU is the table in the plan's header, and marked as not measured."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import zoo
from bench.cli.app import app
from bench.config import load_plan
from bench.events import PlanBegins
from bench.records import RunRecord
from bench.runs import expectation, resolve
from bench.runs.expectation import Cost, Expectation, step_cost

PLAN = Path(expectation.__file__).parents[1] / "plans" / "cifar10.toml"
STEPS, BATCH_SIZE, EPOCHS = 87, 512, 30
ROW = re.compile(r"^#   (\w+) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+) +(\d+) s +(\S+)$", re.MULTILINE)
TABLE = {row[0]: row[1:] for row in ROW.findall(PLAN.read_text(encoding="utf-8"))}


def test_the_table_has_every_model_of_the_plan():
    assert TABLE.keys() == set(resolve.resolve_models(load_plan("cifar10").models))
    published = {model: row[-1] for model, row in TABLE.items() if row[-1] != "-"}
    assert load_plan("cifar10").published_top1 == load_plan("cifar10").gpu.published_top1 == published


@pytest.mark.parametrize("name", TABLE)
def test_the_table_in_the_plan_is_what_the_arithmetic_gives(name):
    cost = Cost(*(STEPS * each for each in step_cost(zoo.create_meta_model(name, 10, 32), 32, BATCH_SIZE)))
    *seconds, epoch, training = map(float, TABLE[name][:5])
    assert [round(each, 2) for each in cost] == pytest.approx(seconds, abs=0.011)
    assert cost.seconds == pytest.approx(epoch, abs=0.011)
    assert EPOCHS * cost.seconds == pytest.approx(training, abs=0.6)


def test_the_table_ends_with_the_sum_of_three_seeds():
    total = sum(float(row[4]) for row in TABLE.values()) * 3 / 60
    (said,) = re.findall(r"all, three seeds +([\d.]+) minutes", PLAN.read_text(encoding="utf-8"))
    assert float(said) == pytest.approx(total, abs=0.1)


@pytest.fixture
def runs(monkeypatch):
    """The plan's runs for a GPU, of two models and two seeds, on images that need no download."""
    monkeypatch.setattr(resolve, "resolve_device", lambda name: "cuda")
    monkeypatch.setattr(resolve, "multiplies_bfloat16", lambda device: True)
    plan = load_plan("cifar10", {"models": ["lenet5", "resnet20"], "data": "digits", "seeds": [0, 1]})
    return plan, resolve.resolve_plan(plan, data_dir=None)


def said(plan, runs, done=()):
    lines = []
    Expectation(plan, None, lines.append).on(PlanBegins(tuple(runs), tuple(done)))
    return lines


def test_before_the_first_run_on_a_gpu_each_network_has_its_minutes_and_accuracy(runs):
    plan, all_runs = runs
    first, *rest = said(plan, all_runs)
    assert "NOT YET MEASURED" in first
    assert "for 4 runs" in first
    assert [line.split(":")[0].strip() for line in rest] == ["lenet5", "resnet20"]
    assert all(re.search(r"\d+\.\d minutes a run", line) for line in rest)
    assert rest[0].endswith("and 67.5% top-1, as others publish")


def test_runs_that_are_done_or_on_a_processor_are_not_foretold(runs):
    plan, all_runs = runs
    done = [
        RunRecord(run_id=run.run_id, status="completed", config={}, environment={})
        for run in all_runs
        if run.model == "lenet5"
    ]
    first, only = said(plan, all_runs, done)
    assert "for 2 runs" in first
    assert only.strip().startswith("resnet20")
    assert said(plan, [run.model_copy(update={"device": "cpu"}) for run in all_runs]) == []


def test_a_budget_says_itself_how_long_it_takes(runs):
    plan, (run, *_) = runs
    seconds = run.budget.model_copy(update={"epochs": None, "seconds": 90.0})
    (_, line) = said(plan, [run.model_copy(update={"budget": seconds})])
    assert "1.5 minutes a run" in line


def test_the_command_says_it_before_its_first_run(runs, tmp_path):
    plan = ["cifar10", "--data", "digits", "--models", "lenet5", "--seeds", "0"]
    output = CliRunner().invoke(app, ["run", *plan, "--results", str(tmp_path)]).output
    assert "NOT YET MEASURED" in output
    assert output.index("NOT YET MEASURED") < output.index("lenet5 seed 0: begins")
