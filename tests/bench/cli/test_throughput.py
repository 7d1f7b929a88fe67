"""`zoobench throughput` as a user meets it."""

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cli.throughput import parse_share
from bench.errors import ConfigError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def throughput(zoobench_here):
    return functools.partial(zoobench_here, "throughput")


def test_the_table_says_what_was_measured_and_how_precisely():
    arguments = ("--seconds", "0.1", "--batch-size", "4", "--batch-sizes", "1,8", "--threads", "1")
    command = [sys.executable, "-m", "zoobench", "throughput", "lenet5", *arguments]
    command += ["--dtype", "float32", "--channels-last"]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"COLUMNS": "120"})
    assert process.returncode == 0, process.stderr
    for part in (
        "inference",
        "training",
        "best batch size",
        "latency p50",
        "GMAC/s",
        "of the machine's peak of",
        "95% interval",
    ):
        assert part in process.stdout
    assert re.search(r"inference .* (not )?reached", process.stdout)
    assert "lenet5: 32×32 px, 10 classes\nfloat32, channels_last, 1 CPU thread, on " in process.stdout
    assert [int(batch) for batch in re.findall(r"^(?:inference|training) +(\d+)", process.stdout, re.MULTILINE)] == [
        4, 4, 1, 8,
    ]  # fmt: skip


def test_json_has_the_raw_samples_and_the_settings(throughput):
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


def test_what_is_not_named_is_chosen_as_a_run_chooses(throughput):
    arguments = ("--seconds", "0.1", "--batch-size", "4", "--mode", "infer", "--no-channels-last", "--json")
    found = json.loads(throughput("lenet5", *arguments).stdout)
    tuning = found["environment"]["tuning"]
    assert set(tuning["images_per_s"]) == {"float32, contiguous", "bfloat16, contiguous"}
    assert found["dtype"] == ("bfloat16 autocast" if tuning["form"]["autocast"] else "float32")
    assert (found["channels_last"], tuning["form"]["channels_last"]) == (False, False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lenet5", "--precision", "wide"], "--precision 'wide'"),
        (["lenet5", "--batch-sizes", "1,x"], "--batch-sizes '1,x'"),
        (["lenet5", "--runtime", "openvino", "--mode", "both"], "runs inference only"),
        (["lenet5,runtime=openvin"], "Did you mean 'openvino'"),
        (["lenet5,runtime=openvino", "--compile"], "'openvino' and 'compile' are both given"),
    ],
)
def test_bad_input_is_one_paragraph_and_status_2(throughput, arguments, said):
    process = throughput(*arguments)
    assert process.returncode == 2
    assert said in process.stderr
    assert process.stderr.count("\n") == 1


def test_a_share_is_a_percentage_or_a_fraction():
    assert parse_share("1%", "--precision") == parse_share("0.01", "--precision") == 0.01
    for wrong in ("", "%", "0", "-1%", "nan", "150%"):
        with pytest.raises(ConfigError, match="--precision"):
            parse_share(wrong, "--precision")


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is an extra")
def test_another_runtime_is_timed_in_inference_and_its_outputs_checked(throughput):
    arguments = ("--seconds", "0.1", "--batch-size", "4", "--threads", "1", "--device", "cpu")
    process = throughput("simple_cnn,runtime=onnxruntime", *arguments)
    assert process.returncode == 0, process.stderr
    assert "float32, ONNX Runtime, 1 CPU thread, on " in process.stdout
    assert "inference" in process.stdout
    assert "training" not in process.stdout
    assert re.search(r"outputs: within \S+ of eager mode's", process.stdout)
    process = throughput("simple_cnn", "--runtime", "onnxruntime", *arguments, "--json")
    found = json.loads(process.stdout)
    assert (found["model"], found["runtime"]) == ("simple_cnn", "onnxruntime")
    assert 0 <= found["metrics"]["runtime_output_difference"] < 1e-3


def test_images_that_a_network_cannot_take_are_one_paragraph(throughput):
    process = throughput("alexnet", "--input-size", "8")
    assert process.returncode == 2
    assert "AlexNet cannot take input of shape 3×8×8" in process.stderr
    assert "--input-size" in process.stderr
    assert "Traceback" not in process.stderr
