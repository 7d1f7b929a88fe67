"""`zoobench evaluate` at the terminal: what it prints, and its exit status."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import zoo
from bench.cli.app import app
from bench.errors import ConfigError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    torch.save({"net": zoo.create_model("simple_cnn").state_dict()}, tmp_path / "checkpoint.pth")
    return tmp_path / "checkpoint.pth"


def evaluate(weights, *arguments):
    results = weights.parent / "results"
    fixed = ["--weights", weights, "--data", "digits", "--results", results, "--threads", 1, "--limit-test", 20]
    return CliRunner().invoke(app, [str(each) for each in ("evaluate", "simple_cnn", *fixed, *arguments)])


def test_the_table_says_what_was_loaded_how_images_were_prepared_and_what_came_out(weights):
    result = evaluate(weights, "--mean", "0.5", "--std", "0.25", "--no-probes", "--corruptions")
    assert result.exit_code == 0, result.output
    (record,) = (weights.parent / "results/runs").glob("*.json")
    stored = json.loads(record.read_text())
    right = round(20 * stored["metrics"]["test_top1"])
    for expected in (
        "simple_cnn with checkpoint.pth, on digits (test)",
        "20 images of 32×32 px, normalisation given: mean 0.5, 0.5, 0.5, std 0.25, 0.25, 0.25",
        f"{right} of 20",
        "loaded by name",
        "elastic transform",
        f"{100 * stored['metrics']['corruption_top1']:.2f} %",
        str(record),
    ):
        assert expected in result.output
    rows = stored["samples"]["corruption_top1"]
    last = next(line for line in result.output.splitlines() if line.startswith("jpeg compression"))
    assert last.split()[2:] == [f"{100 * value:.2f}" for value in (*rows[-1], sum(rows[-1]) / 5)]
    assert (weights.parent / "results/report/index.html").is_file()


def test_in_a_terminal_the_phases_are_shown(weights):
    terminal, child = os.openpty()
    command = [
        sys.executable,
        "-m",
        "zoobench",
        "evaluate",
        "simple_cnn",
        "--weights",
        str(weights),
        "--data",
        "digits",
    ]
    command += [
        "--results",
        str(weights.parent),
        "--limit-test",
        "20",
        "--no-probes",
        "--normalization",
        "data",
        "--json",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=child, cwd=ROOT)
    os.close(child)
    shown = os.read(terminal, 65536).decode()
    os.close(terminal)
    assert done.returncode == 0, shown
    assert json.loads(done.stdout)["status"] == "completed"
    assert [line for line in shown.splitlines() if line in ("load", "test")] == ["load", "test"]


def test_a_network_that_fails_is_one_line_and_status_1(tmp_path):
    """At 16 pixels nothing is left for VGG-16's fifth pooling."""
    torch.save(zoo.create_model("vgg16_bn,width=0.1").state_dict(), tmp_path / "vgg.pth")
    arguments = ["vgg16_bn,width=0.1", "--weights", tmp_path / "vgg.pth", "--data", "digits", "--input-size", 16]
    arguments += ["--normalization", "data", "--results", tmp_path / "results"]
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    assert result.exit_code == 1
    (said,) = (line for line in result.stderr.splitlines() if line.startswith("zoobench:"))
    assert "the evaluation failed: RuntimeError" in said


def test_bad_input_is_the_users_error(weights):
    assert isinstance(evaluate(weights).exception, ConfigError)
    assert "normalised" in str(evaluate(weights).exception)


def test_logits_that_are_not_finite_give_status_1_and_a_record(weights):
    state = torch.load(weights)["net"]
    state["fc.bias"][:] = torch.nan
    torch.save(state, weights)
    result = evaluate(weights, "--normalization", "data", "--json")
    assert result.exit_code == 1
    assert "NaN" in result.stderr
    assert json.loads(result.stdout)["status"] == "diverged"


def test_json_is_the_record_and_nothing_else_and_a_wrong_name_is_one_line(weights):
    def zoobench(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "zoobench", "evaluate", *arguments, "--data", "digits", "--limit-test", "20"],
            capture_output=True,
            text=True,
            env=os.environ | {"COLUMNS": "120"},
            cwd=weights.parent,
        )

    process = zoobench("simple_cnn", "--weights", str(weights), "--normalization", "data", "--json", "--no-probes")
    assert process.returncode == 0, process.stderr
    record = json.loads(process.stdout)
    assert record["status"] == "completed"
    assert record["config"]["normalization"] == "data"
    assert (weights.parent / "results/evaluations/runs" / f"{record['run_id']}.json").is_file()
    assert "warning" not in process.stderr
    process = zoobench("simple_cnn", "--weights", "checkpoint.pht", "--normalization", "data")
    assert process.returncode == 2
    assert process.stderr.startswith("zoobench: --weights 'checkpoint.pht' is neither a file nor a run.")
    assert process.stderr.count("\n") == 1
