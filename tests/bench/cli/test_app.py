"""The command line as a user meets it: exit status, one paragraph for an error, nothing lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.records import read_records

ROOT = Path(__file__).parents[3]


def zoobench(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "zoobench", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "120"} | environment,
    )


def test_an_error_of_a_real_process_is_the_same():
    process = zoobench("run", "quick", "--models", "resnet19")
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (2, "", 1)
    assert "Did you mean 'resnet18'" in process.stderr


def test_help_imports_no_torch():
    code = (
        "import sys; sys.argv = ['zoobench', '--help']\n"
        "from zoobench import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'zoo', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    for command in ("list", "describe", "run", "report", "doctor"):
        assert command in process.stdout


def test_version():
    assert zoobench("--version").stdout.startswith("zoobench 0.")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "quick", "--models", "resnet19"], ["'resnet19'", "Did you mean 'resnet18'"]),
        (["run", "quick", "--models", "timm/resnet19x"], ["'resnet19x'", "timm"]),
        (["run", "quick", "--models", "zzz*"], ["'zzz*'", "zoobench list"]),
        (["run", "quik"], ["'quik'", "Did you mean 'quick'?"]),
        (["study", "depthwize"], ["'depthwize'", "Did you mean 'depthwise'?"]),
        (["run", "quick", "--set", "recipe.learning_rte=1"], ["recipe.learning_rte", "Possible here"]),
        (["run", "quick", "--set", "recipe.lrr=1"], ["'recipe.lrr'", "Did you mean 'lr'?"]),
        (["run", "quick", "--set", "sedes=[1]"], ["'sedes'", "Did you mean 'seeds'?"]),
        (["run", "quick", "--set", "novalue"], ["novalue", "KEY=VALUE"]),
        (["run", "quick", "--epochs", "-1"], ["epochs = -1", "greater than or equal to 1"]),
        (["run", "quick", "--seconds", "0"], ["seconds = 0", "greater than 0"]),
        (["run", "quick", "--epochs", "1", "--seconds", "1"], ["exclude each other"]),
        (["run", "quick", "--seeds", "one"], ["--seeds 'one'"]),
        (["run", "quick", "--models", ","], ["models"]),
        (["run", "quick", "--recipe", "classik"], ["Did you mean 'classic'?"]),
        (["run", "quick", "--limit-train", "0"], ["limit_train = 0"]),
        (["run", "quick", "--data", "parquet:/no/such/folder"], ["/no/such/folder", "does not exist"]),
        (["run", "quick", "--data", "folder:/no/such/folder"], ["/no/such/folder", "does not exist"]),
        (["run", "quick", "--data", "mnist"], ["'mnist'", "parquet:PATH"]),
        (["run", "quick", "--device", "tpu"], ["'tpu'"]),
        (["run", "quick", "--device", "cuda:99"], ["cuda:99", "--device cpu"]),
        (["run", "quick", "--results", "/proc/nothing"], ["/proc/nothing", "--results DIR"]),
        (["list", "resnt18"], ["'resnt18'", "Did you mean 'resnet18'"]),
        (["describe", "vgg17"], ["'vgg17'", "Did you mean"]),
        (["report", "--results", "/no/such/results"], ["/no/such/results"]),
        (["report", "--results", "results/cifar10_30s", "--model", "lenet5", "--latex"], ["--latex", "--model"]),
        (["throughput", "lenet5", "--mode", "train", "--batch-sizes", "1,8"], ["--batch-sizes", "--mode train"]),
        (["throughput", "lenet5", "--device", "gpu"], ["--device 'gpu'", "expected auto, cpu, cuda"]),
        (["throughput", "lenet5", "--device", "cuda:x"], ["--device 'cuda:x'", "expected auto, cpu, cuda"]),
        (["throughput", "lenet5", "--seconds", "inf"], ["zoobench throughput", "seconds"]),
        (["compare", "lenet5", "lenet5", "--as-run", "--device", "cuda:x"], ["--device 'cuda:x'"]),
        (["study", "--json", "--markdown"], ["--json", "--markdown"]),
        (["compare", "resnet18", "resnet34", "--models", "vgg*"], ["'resnet34'", "--models 'vgg*'", "git:REV"]),
        (["baseline", "save", "x", "resnet34", "--models", "vgg*"], ["'resnet34'", "--models 'vgg*'"]),
        (["baseline", "save", "x", "resnet34", "--baselines", "README.md/x"], ["README.md/x", "--baselines"]),
        (["compare", "lenet5", "lenet5", "--out", "results"], ["results cannot be written"]),
        (["compare", "lenet5", "lenet5", "--out", "/no/such/file"], ["/no/such", "does not exist"]),
    ],
)
def test_bad_input_gets_one_paragraph_and_status_2(zoobench_here, arguments, expected):
    process = zoobench_here(*arguments)
    assert process.returncode == 2, process.stderr
    assert process.stdout == ""
    assert "Traceback" not in process.stderr
    assert process.stderr.count("\n") == 1
    for text in expected:
        assert text in process.stderr


def test_a_plan_that_is_not_toml_and_one_that_is_not_a_file(zoobench_here, tmp_path):
    (tmp_path / "plan.toml").write_text("models = lenet5")
    process = zoobench_here("run", tmp_path / "plan.toml")
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)
    assert "not valid TOML" in process.stderr
    assert "plan.toml" in process.stderr
    (tmp_path / "folder.toml").mkdir()
    process = zoobench_here("run", tmp_path / "folder.toml")
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)


def test_a_truncated_shard_on_the_command_line(cifar10_jpeg, tmp_path):
    for shard in cifar10_jpeg.glob("*.parquet"):
        (tmp_path / shard.name).write_bytes(shard.read_bytes()[: 10**6])
    process = zoobench("run", "quick", "--data", f"parquet:{tmp_path}", "--results", tmp_path / "results")
    assert process.returncode == 2
    *progress, message = process.stderr.splitlines()
    assert all(line.startswith("parquet:") for line in progress)
    assert "truncated" in message
    assert ".parquet" in message


def test_unknown_options_and_commands_are_refused_by_the_parser(zoobench_here):
    assert zoobench_here("run", "quick", "--modles", "x").returncode == 2
    assert zoobench_here("rnu").returncode == 2


def test_run_prints_the_leaderboard_and_where_everything_is(tmp_path, zoobench_here):
    arguments = ["run", "quick", "--models", "lenet5,simple_cnn", "--seconds", "0.5"]
    arguments += ["--set", "measure.seconds=0.2", "--results", tmp_path]
    first = zoobench_here(*arguments)
    assert first.returncode == 0, first.stderr
    for text in ("lenet5", "simple_cnn", f"{tmp_path}/runs", f"{tmp_path}/report", "2 completed"):
        assert text in first.stdout
    assert (tmp_path / "report" / "leaderboard.csv").read_text().count("\n") == 3
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}

    second = zoobench_here(*arguments, "--save-weights")
    assert second.returncode == 0
    assert "trained before, without keeping the weights. --save-weights with --force" in second.stderr
    assert first.stdout.split("Runs:")[0] == second.stdout.split("Runs:")[0]
    assert "begins" not in second.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()} == times

    report = zoobench_here("report", "--results", tmp_path, "--out", tmp_path / "again", "--latex")
    assert report.returncode == 0
    assert all(Path(line).exists() for line in report.stdout.splitlines())
    assert "leaderboard.tex" in report.stdout

    card = zoobench_here("report", "--results", tmp_path, "--model", "lenet5")
    assert Path(card.stdout.strip()).read_text().count("lenet5") > 1
    assert zoobench_here("report", "--results", tmp_path, "--model", "lenet6").returncode == 2

    watched = zoobench_here("watch", "--results", tmp_path)
    assert "2 of 2 runs done; ended" in watched.stdout

    exported = zoobench_here("export", "--results", tmp_path, "--out", tmp_path / "tables", "--format", "sqlite")
    assert [Path(line).name for line in exported.stdout.splitlines()] == ["zoobench.sqlite"]

    page = tmp_path / "report" / "index.html"
    assert zoobench_here("verify", page, "--results", tmp_path).returncode == 0
    page.write_text(page.read_text().replace(">0.0620", ">0.0621", 1))
    verified = zoobench_here("verify", page, "--results", tmp_path)
    assert verified.returncode == 1
    assert "0.0621" in verified.stdout
    assert zoobench_here("verify", tmp_path / "report" / "leaderboard.md").returncode == 2


def test_run_on_real_images_learns(cifar10_jpeg, tmp_path, zoobench_here):
    cheaply = ("seconds=0.05", "batch_size=8", "batch_sizes=[]", "repeats=3", "probes=false")
    process = zoobench_here(
        *("run", "cifar10", "--data", f"parquet:{cifar10_jpeg}", "--models", "lenet5", "--seeds", "0"),
        *("--epochs", "1", "--limit-train", "5000", "--limit-test", "2000", "--results", tmp_path),
        *("--set", "autocast=false", "--set", "channels_last=true"),
        *(part for each in cheaply for part in ("--set", f"measure.{each}")),
    )
    assert process.returncode == 0, process.stderr
    records, _ = read_records(tmp_path)
    for record in records:
        assert record.metrics["test_top1"] > 0.2  # chance is 0.1 with a standard deviation of 0.007
        assert record.environment["data"]["name"] == "parquet:cifar10-jpeg"
        assert record.environment["data"]["classes"][:2] == ["airplane", "automobile"]


def test_list_and_describe_as_json(zoobench_here):
    rows = json.loads(zoobench_here("list", "lenet5*", "--json").stdout)
    assert [row["name"] for row in rows] == ["lenet5", "lenet5_1998"]
    assert rows[0]["params"] == 62_006
    card = json.loads(zoobench_here("describe", "simple_cnn", "--json").stdout)
    assert {"params", "macs", "flops", "activations", "receptive_field", "layers"} <= card.keys()
    assert card["params"] == 94_986


def test_list_and_describe_as_tables(zoobench_here):
    assert "94.99 k" in zoobench_here("list", "simple_cnn").stdout
    assert "94,986" in zoobench_here("list", "simple_cnn", "--wide").stdout
    described = zoobench_here("describe", "resnet18").stdout
    assert "11,689,512" in described
    assert "He et al. 2015" in described


def test_doctor_names_versions_threads_and_what_is_missing(zoobench_here):
    findings = json.loads(zoobench("doctor", "--json").stdout)
    assert findings["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert findings["threads"] == torch.get_num_threads()
    assert ("GPU" in findings["missing"]) == (not torch.cuda.is_available())
    text = zoobench_here("doctor").stdout
    assert "torch" in text
    assert "cache" in text


NEW_ARCHITECTURE = '''
"""FooNet: one convolution."""
from torch import nn
from zoo.registry import register_model


@register_model(paper="nobody 2026", year=2026)
def foonet(num_classes: int = 10, input_size: int = 32) -> nn.Module:
    features = 8 * ((input_size - 3) // 4 + 1) ** 2
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(features, num_classes))
'''


def test_a_new_architecture_is_one_new_file(tmp_path):
    """In a copy of the project: it is listed, benchmarked by `quick` and tested by the suite."""
    for folder in ("zoo", "bench", "reports", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("zoobench.py", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path)
    (tmp_path / "zoo" / "architectures" / "foonet.py").write_text(NEW_ARCHITECTURE)

    def there(*arguments):
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)

    listed = there("-m", "zoobench", "list", "foo*", "--json")
    assert json.loads(listed.stdout)[0]["params"] == 8 * 28 + 8 * 64 * 10 + 10
    chosen = there("-c", "from bench.runs.resolve import resolve_models; print(resolve_models(['@representative']))")
    assert "'foonet'" in chosen.stdout
    run = there(
        *(
            "-m",
            "zoobench",
            "run",
            "quick",
            "--models",
            "foonet",
            "--seconds",
            "0.3",
            "--set",
            "measure.seconds=0.2",
            "--set",
            "measure.probes=false",
        ),
        *("--results", tmp_path / "results"),
    )
    assert run.returncode == 0, run.stderr
    assert "foonet" in run.stdout
    tested = there("-m", "pytest", "tests/zoo/test_architectures.py", "-q", "-k", "foonet")
    assert tested.returncode == 0, tested.stdout
    assert " passed" in tested.stdout


def test_interrupting_the_data_set_leaves_no_traceback(cifar10_jpeg, tmp_path):
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "zoobench",
            "run",
            "quick",
            "--data",
            f"parquet:{cifar10_jpeg}",
            "--results",
            tmp_path,
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"ZOOBENCH_CACHE": str(tmp_path / "cache")},
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "runs").exists() and time.monotonic() < deadline:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
