"""Sphinx: the guides beside this file, and a reference that each build makes anew from ``--help`` and docstrings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

import zoobench
from bench.cli.app import app

HERE = Path(__file__).parent
project, author, release = "zoobench", "the developers of zoobench", zoobench.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"zoobench {release}"
exclude_patterns = ["_build"]
default_role = "code"  # a name in single backticks, as docstrings have them
autodoc_typehints = "description"
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3


def commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command with its full name."""
    for each, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, f"{name} {each}")
        else:
            yield f"{name} {each}", command


def describe(name: str, command: Any) -> str:
    """A section of the reference: usage, what it does, its options."""
    context = command.make_context(name, [], resilient_parsing=True)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    lines = [f"## {name}", "", f"```text\n{usage}\n```", "", (command.help or "").strip(), ""]
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            lines += [f"`{record[0].strip()}`", f": {' '.join(record[1].split())}", ""]
    return "\n".join(lines)


def write_reference() -> None:
    """The pages that are generated; they are written where Sphinx reads, and ignored by git."""
    folder = HERE / "_generated"
    folder.mkdir(exist_ok=True)
    sections = [describe(*each) for each in commands(typer.main.get_command(app), "zoobench")]
    (folder / "commands.md").write_text("# Commands\n\n" + "\n".join(sections), encoding="utf-8")
    lines = ["# Python", ""]
    for name in sorted({*zoobench.__all__} - {"__version__", "main"}):
        kind = "autoclass" if isinstance(getattr(zoobench, name), type) else "autofunction"
        members = ["   :members:"] if kind == "autoclass" else []
        lines += ["```{eval-rst}", f".. {kind}:: zoobench.{name}", *members, "```", ""]
    (folder / "python.md").write_text("\n".join(lines), encoding="utf-8")


write_reference()
