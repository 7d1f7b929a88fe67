"""`zoobench throughput` as a user meets it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cli_measure import parse_share
from bench.errors import ConfigError

ROOT = Path(__file__).parents[2]


def throughput(*arguments):
    command = [sys.executable, "-m", "bench.cli", "throughput", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"COLUMNS": "120"})


def test_the_table_says_what_was_measured_how_precisely_and_why_it_stopped():
    process = throughput("lenet5", "--seconds", "0.1", "--batch-size", "4", "--batch-sizes", "1,8", "--threads", "1")
    assert process.returncode == 0, process.stderr
    for part in ("inference", "training", "sweep", "best", "latency p50", "latency p99", "GMAC/s of", "95% interval"):
        assert part in process.stdout
    assert "time over" in process.stdout or "precision reached" in process.stdout
    assert "CPU threads: 1" in process.stdout


def test_json_has_the_raw_samples_and_the_settings():
    arguments = ("--seconds", "0.1", "--batch-size", "4", "--mode", "infer", "--dtype", "bfloat16")
    process = throughput("simple_cnn", *arguments, "--no-channels-last", "--precision", "5%", "--json")
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert (found["model"], found["dtype"], found["channels_last"]) == ("simple_cnn", "bfloat16", False)
    assert found["measure"]["precision"] == 0.05
    assert found["metrics"]["throughput_batch_size"] == 4
    assert len(found["samples"]["infer_block_seconds"]) >= 3
    assert len(found["samples"]["latency_seconds"]) >= 3
    assert "train_throughput_img_per_s" not in found["metrics"]
    assert found["environment"]["versions"]["torch"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lenet5", "--precision", "wide"], "--precision 'wide'"),
        (["lenet5", "--batch-sizes", "1,x"], "--batch-sizes '1,x'"),
    ],
)
def test_bad_input_is_one_paragraph_and_status_2(arguments, said):
    process = throughput(*arguments)
    assert process.returncode == 2
    assert said in process.stderr
    assert process.stderr.count("\n") == 1


def test_a_share_is_a_percentage_or_a_fraction():
    assert parse_share("1%", "--precision") == parse_share("0.01", "--precision") == 0.01
    for wrong in ("", "%", "0", "-1%", "nan", "150%"):
        with pytest.raises(ConfigError, match="--precision"):
            parse_share(wrong, "--precision")
