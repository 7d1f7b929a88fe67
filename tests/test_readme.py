"""What the README and CONTRIBUTING show is run, or at least understood by the parser."""

import re
import shlex
from pathlib import Path

import duckdb
import pytest
import typer

from bench.cli import app
from bench.config import list_plans, list_recipes
from bench.records import read_records

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


COMMANDS = [
    line.partition(" #")[0].strip()
    for block in blocks(README, "console")
    for line in block.splitlines()
    if line.startswith("zoobench ")
]


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


@pytest.mark.parametrize("code", blocks(README, "python"))
def test_python_example_runs(code, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("query", blocks(README, "sql"))
def test_query_runs_on_the_published_records(query, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = {(model, seeds) for model, seeds, _ in duckdb.sql(query).fetchall()}
    completed = [record.config["model"] for record in read_records("results")[0] if record.status == "completed"]
    assert found == {(model, completed.count(model)) for model in completed}


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
