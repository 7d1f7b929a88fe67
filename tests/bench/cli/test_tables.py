"""What commands print at 60, 80 and 200 columns, and in a pipe: every number whole, no line too long."""

import fcntl
import functools
import json
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.cli.app import app
from bench.cli.card_table import render_rows
from bench.cli.tables import UNLIMITED, create_console
from bench.counting import card
from reports.data.metrics import MISSING, scaled_count

ROOT = Path(__file__).parents[3]
WIDTHS = (60, 80, 200)


def printed(*arguments: str, columns: int | None) -> list[str]:
    environment = {"COLUMNS": str(columns) if columns else None}
    result = CliRunner().invoke(app, arguments, env=environment, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [line.rstrip() for line in result.stdout.splitlines()]


@pytest.fixture(scope="module", autouse=True)
def _counted_once():
    """A width changes what is printed, not what is counted."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("describe", "list_rows"):
            patch.setattr(card, name, functools.cache(getattr(card, name)))
        yield


@pytest.fixture(scope="module")
def rows():
    return {row["name"]: row for row in card.list_rows(canonical=False)}


@pytest.mark.parametrize("columns", [*WIDTHS, None])
def test_the_list_has_every_count_of_every_model_in_its_line(rows, columns) -> None:
    lines = printed("list", columns=columns)
    assert not any("…" in line for line in lines)
    assert columns is None or max(map(len, lines)) <= columns
    for name, row in rows.items():
        (line,) = (line for line in lines if line.split(" ")[0] == name)
        for key in ("params", "macs", "published_params"):
            if row[key] is not None:
                assert f"  {scaled_count(row[key])}" in line


@pytest.mark.parametrize("columns", [60, None])
def test_a_wide_list_has_exact_counts_and_all_columns(rows, columns) -> None:
    lines = printed("list", "--wide", columns=columns)
    for name, row in rows.items():
        (line,) = (line for line in lines if line.split(" ")[0] == name)
        assert f"  {row['params']:,}  " in line
        assert f"  {row['macs']:,}  " in line
        assert row["family"] in line


@pytest.mark.parametrize(
    ("pattern", "headings"),
    [
        ("timm/resnet18*", ["model", "family"]),
        ("torchvision/resnet18", ["model", "family", "params published", "MACs published"]),
        ("alexnet", ["model", "family", "year", "params 32×32", "MACs 32×32", "params published", "MACs published"]),
    ],
)
def test_the_list_has_no_column_that_nothing_fills(pattern, headings) -> None:
    table = render_rows(card.list_rows(pattern, canonical=False))
    assert [column.title.replace("\n", " ") for column in table.columns] == headings
    for at in range(len(headings)):
        assert any(row[at].plain != MISSING for row in table._rows)
    for word in ("published", "32×32"):
        assert (word in table.caption) == (word in " ".join(headings))


@pytest.mark.parametrize("columns", [*WIDTHS, None])
@pytest.mark.parametrize("model", ["resnet50", "deeplabv3_resnet101"])
def test_a_card_has_the_counts_of_every_layer_in_its_line(model, columns) -> None:
    lines = printed("describe", model, columns=columns)
    assert not any("…" in line for line in lines)
    assert columns is None or max(map(len, lines)) <= columns
    described = card.describe(model, None, None)  # as the command asks
    for exact in (described.params, described.macs, described.activations):
        assert any(f"{exact:,}" in line for line in lines)
    for stage in described.stages(2):
        (line,) = (line for line in lines if line.startswith(f"{stage.name} "))
        assert re.search(rf" {scaled_count(stage.params)} +{scaled_count(stage.macs)} ", line)
        assert "×".join(map(str, stage.output_shape)) in line


@pytest.mark.parametrize("columns", WIDTHS)
def test_throughput_and_doctor_fit(columns) -> None:
    quick = ("--seconds", "0.05", "--batch-size", "4", "--batch-sizes", "1,8", "--threads", "1", "--precision", "50%")
    for command in (("throughput", "lenet5", *quick), ("doctor",)):
        lines = printed(*command, columns=columns)
        assert max(map(len, lines)) <= columns
        assert not any("…" in line for line in lines)


def test_a_terminal_is_asked_for_its_width_and_a_pipe_has_none(monkeypatch) -> None:
    command = [sys.executable, "-m", "bench.cli.app", "describe", "resnet18"]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"TERM": "xterm"}
    terminal, child = os.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    process = subprocess.Popen(command, stdout=child, stdin=child, cwd=ROOT, env=environment)
    os.close(child)
    chunks = []
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # how Linux reports that the other end is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(terminal)
    assert process.wait() == 0
    shown = re.sub(r"\x1b\[[0-9;]*m", "", b"".join(chunks).decode()).splitlines()
    assert 50 < max(map(len, shown)) <= 60

    piped = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True).stdout
    assert max(map(len, piped.splitlines())) > 100
    assert "\x1b" not in piped


def test_columns_decides_also_in_a_pipe(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "77")
    assert create_console().width == 77
    assert create_console(wide=True).width == UNLIMITED
    monkeypatch.delenv("COLUMNS")
    assert create_console().width == UNLIMITED


def test_json_has_exact_counts() -> None:
    (row,) = json.loads("\n".join(printed("list", "alexnet", "--json", columns=60)))
    assert isinstance(row["macs"], int)
    assert row["canonical_macs"] == pytest.approx(1e9 * row["canonical_gmacs"])
