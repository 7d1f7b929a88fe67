"""`zoobench compare` as a CI job meets it: exit status, what is printed, and nothing left behind."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

from bench.cli.compare import create_options, print_table
from bench.config import Recipe
from bench.errors import UserError
from bench.gate.baselines import Baseline
from bench.gate.compare import choose_batch_size
from bench.gate.result import EXIT_CODES, FAIL_ON, CompareOptions, Comparison, ModelResult
from bench.gate.revisions import Side
from bench.gate.sources import LiveSource, match_models
from bench.gate.statistics.verdicts import Judgement, Verdict
from bench.gate.summary import comparison_to_dict, render_markdown
from bench.gate.timing.interference import Notice
from bench.gate.timing.process import WorkerProcess
from bench.gate.timing.sample import PairSample
from bench.gate.timing.subject import Setting
from bench.gate.worktrees import PREFIX

ROOT = Path(__file__).parents[3]


def command(*arguments):
    return [sys.executable, "-P", "-m", "zoobench", "compare", *map(str, arguments)]


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120", "OMP_NUM_THREADS": "1"}


def zoobench_compare(folder, *arguments):
    return subprocess.run(command(*arguments), cwd=folder, capture_output=True, text=True, env=environment())


@pytest.fixture
def clone(tmp_path, repository):
    """A clone of this repository, as it stands in its last commit."""
    path = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "--local", str(ROOT), str(path)], check=True)
    repository.path = path.resolve()
    return repository


def test_an_extra_convolution_in_a_commit_gives_15_and_its_layer(clone):
    file = "zoo/architectures/simple_cnn.py"
    clone.replace(file, "super().__init__()", "super().__init__()\n        self.more = nn.Conv2d(3, 3, 1)")
    clone.replace(file, "x = self.pool(self.stages(x))", "x = self.pool(self.stages(self.more(x)))")
    clone.commit("one more convolution")
    done = zoobench_compare(clone.path, "git:HEAD~1", "git:HEAD", "--models", "simple_cnn")
    assert done.returncode == 15, done.stderr
    assert "more: layer nothing → Conv2d" in done.stdout
    assert "round 1" not in done.stderr  # nothing was timed
    assert clone.worktrees() == [str(clone.path)]


def test_a_renamed_model_gives_12_and_both_names(clone, zoobench_here, monkeypatch):
    monkeypatch.chdir(clone.path)
    clone.replace("zoo/architectures/simple_cnn.py", "def simple_cnn(", "def plain_cnn(")
    clone.commit("another name")
    done = zoobench_here("compare", "git:HEAD~1", "git:HEAD", "--models", "*_cnn", "--json")
    assert done.returncode == 12, done.stderr
    shown = {result["model"]: result["status"] for result in json.loads(done.stdout)["results"]}
    assert shown == {"simple_cnn": "missing", "plain_cnn": "new"}


def test_two_revisions_are_timed_and_shown_in_every_form(repository, tmp_path):
    repository.replace("zoo/__init__.py", '"wide": 16', '"wide": 16, "broken": 0')
    repository.commit("a model that cannot be built: no channels")
    repository.replace(
        "zoo/__init__.py", "        return self.fc(", "        [x.clone() for _ in range(300)]\n        return self.fc("
    )
    summary, raw = tmp_path / "summary.md", tmp_path / "raw.json"
    summary.write_text("before\n")
    done = zoobench_compare(
        repository.path, "git:HEAD", ".", "--models", "small,broken", "--budget", "3", "--json",
        *("--markdown", summary, "--out", raw, "--input-size", "16", "--batch-size", "2"),
    )  # fmt: skip
    shown = json.loads(done.stdout)
    results = {result["model"]: result for result in shown["results"]}
    assert results["broken"]["status"] == "failed"
    assert results["small"]["status"] in ("regressed", "inconclusive")  # in so short a time
    assert results["small"]["change"] > 0.5
    assert results["small"]["differences"] == []  # copies are no change of what is computed
    assert results["small"]["batch_size"] == 2
    assert results["small"]["step_ms"][1] > results["small"]["step_ms"][0] > 0
    assert done.returncode == EXIT_CODES[shown["failures"][0]]
    assert shown["base"]["commit"] == repository.git("rev-parse", "HEAD")
    assert shown["setting"]["threads"] == shown["base"]["threads"] == 1
    assert shown["tolerance"] == 0.05
    pairs = json.loads(raw.read_text())["pairs"]["small"]
    blocks = [block for pair in pairs for abba in pair["abba"] for block in abba["blocks"]]
    assert len(blocks) == results["small"]["blocks"]
    assert summary.read_text().startswith("before\n### Speed: `git:HEAD` → `.`")
    assert "| `small` |" in summary.read_text()
    assert "Timed: inference, cpu, 1 thread, images of 3×16×16, 10 classes, float32." in summary.read_text()
    assert repository.worktrees() == [str(repository.path)]


def test_an_interrupted_call_leaves_nothing(repository, tmp_path):
    repository.write("README.md", "another commit")
    repository.commit("second")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        command("git:HEAD~1", "git:HEAD", "--budget", "600"),
        cwd=repository.path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment() | {"TMPDIR": str(temporary)},
    )
    for line in process.stderr:
        if line.startswith("round 1"):
            break
    assert len(list(temporary.glob("*/tree/zoo"))) == 2
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 130, said
    assert "Traceback" not in said
    assert list(temporary.glob(f"{PREFIX}*")) == []


def test_models_are_matched_by_name_on_both_sides(repository, tmp_path):
    """What represents the zoo changed, one model went and one came; and a name may be on neither side."""
    shutil.copytree(repository.path / "zoo", tmp_path / "head" / "zoo")
    repository.replace("zoo/__init__.py", '"small": 8', '"small": 8, "gone": 4')
    repository.path = tmp_path / "head"
    repository.replace("zoo/__init__.py", '"small": 8', '"small": 8, "came": 4')
    repository.replace("zoo/registry.py", '["small"]', '["wide"]')
    roots = (tmp_path / "repository", tmp_path / "head")
    with WorkerProcess(sys.executable, Setting()).wait() as worker:
        base, head = (LiveSource(Side(root.name, root=str(root)), worker, Setting()) for root in roots)
        assert match_models(base, head, ["@representative"]) == ([], ["small", "wide"])
        assert match_models(base, head, ["small,channels_last=true"]) == ([], ["small,channels_last=true"])
        both = ["small,channels_last=true", "wide,channels_last=true"]
        assert match_models(base, head, ["[sw]*,channels_last=true"]) == ([], both)
        results, both = match_models(base, head, ["*", "gone"])
        assert both == ["small", "wide"]
        assert {result.model: result.status for result in results} == {"gone": "missing", "came": "new"}
        with pytest.raises(UserError, match="no architecture is named 'smal'"):
            match_models(base, head, ["small", "smal"])
        with pytest.raises(UserError, match=r"--models zzz\*"):
            match_models(base, head, ["zzz*"])


def test_unlike_environments_give_13_before_anything_is_timed(repository, tmp_path):
    """Two virtual environments; the second has another version of a library that times depend on."""
    sides = []
    for name in ("one", "two"):
        venv.create(tmp_path / name, with_pip=False)
        (site,) = (tmp_path / name / "lib").glob("python*/site-packages")
        paths = [str(repository.path), *(path for path in sys.path if path.endswith("site-packages"))]
        (site / "ours.pth").write_text("\n".join(paths))
        sides.append(f"env:{tmp_path / name}")
    metadata = site / "timm-0.0.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: timm\nVersion: 0.0.1\n")
    done = zoobench_compare(tmp_path, *sides, "--models", "small")
    assert done.returncode == 13, done.stderr
    assert "0.0.1" in done.stdout
    assert "--force" in done.stdout
    assert "round 1" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["git:nothing", "."], "git:nothing is no revision"),
        ([".", ".", "--models", "smal"], "no architecture is named 'smal'"),
        ([".", ".", "--fail-on", "regresed"], "Did you mean 'regressed'?"),
        ([".", ".", "--out", "/no/such/folder/x.json"], "/no/such/folder"),
        ([".", ".", "--json", "--markdown", "-"], "--markdown"),
    ],
)
def test_bad_input_gets_one_paragraph_and_status_2(repository, arguments, shown, zoobench_here, monkeypatch):
    monkeypatch.chdir(repository.path)
    done = zoobench_here("compare", *arguments)
    assert done.returncode == 2, done.stderr
    assert shown in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def comparison(*statuses, differing=(), forced=False, **options):
    side = Side("git:x")
    results = tuple(ModelResult(f"net{number}", status) for number, status in enumerate(statuses))
    return Comparison(side, side, CompareOptions(force=forced, **options), ({}, {}), tuple(differing), results)


@pytest.mark.parametrize(
    ("statuses", "fail_on", "code"),
    [
        (["unchanged", "improved"], EXIT_CODES, 0),
        (["unchanged", "regressed"], EXIT_CODES, 10),
        (["inconclusive"], EXIT_CODES, 11),
        (["missing"], EXIT_CODES, 12),
        (["new"], EXIT_CODES, 12),
        (["failed"], EXIT_CODES, 14),
        ([], EXIT_CODES, 14),
        (["changed"], EXIT_CODES, 15),
        (["inconclusive", "failed", "regressed", "changed", "missing"], EXIT_CODES, 12),
        (["inconclusive", "failed", "regressed", "changed"], EXIT_CODES, 15),
        (["inconclusive", "failed", "regressed"], EXIT_CODES, 10),
        (["inconclusive", "failed"], EXIT_CODES, 14),
        (["inconclusive", "failed", "regressed", "changed", "missing"], ["regressed", "inconclusive"], 10),
        (["inconclusive"], ["regressed"], 0),
        (["regressed", "changed"], [], 0),
    ],
)
def test_exit_code_and_its_precedence(statuses, fail_on, code):
    assert comparison(*statuses).exit_code(fail_on) == code


def test_differing_environments_go_first_unless_forced():
    assert comparison(differing=["threads 1 → 2"]).exit_code() == 13
    forced = comparison("regressed", differing=["threads 1 → 2"], forced=True)
    assert forced.exit_code() == 10
    assert "threads 1 → 2. Measured all the same, as --force asks" in render_markdown(forced)


def test_batch_size_keeps_steps_short():
    sizes = [choose_batch_size(macs, Setting()) for macs in (650_000, 10_300_000, 46_000_000, 555_000_000, 4 * 10**9)]
    assert sizes == [16, 1, 1, 1, 1]
    assert choose_batch_size(4 * 10**9, Setting(mode="train")) == 2
    assert choose_batch_size(0, Setting()) == 16
    assert choose_batch_size(4 * 10**9, Setting(device="cuda")) == 128


def test_hostile_names_do_not_break_markdown_and_json_is_complete():
    shown = render_markdown(comparison("failed", models=("a",)))
    assert shown.count("\n| `net0`") == 1
    side = Side("git:`<b>|x")
    hostile = Comparison(side, side, CompareOptions(), ({}, {}), (), (ModelResult("a|b`<i>", "failed", "x\n| y |"),))
    row = next(line for line in render_markdown(hostile).splitlines() if "failed" in line)
    assert row.count("|") == 11
    assert "<" not in render_markdown(hostile)
    assert json.loads(json.dumps(comparison_to_dict(hostile), allow_nan=False))["failures"] == ["nothing"]


def test_the_worst_of_the_notices_of_one_kind_is_shown():
    shares = ("other processes used 9% of the machine's CPU time", "other processes used 67% of the machine's CPU time")
    pairs = tuple(PairSample((), (1, 1), (0.01, 0.01), 1.0, (Notice("load", each),)) for each in shares)
    side, result = Side("here"), ModelResult("net", "inconclusive", pairs=pairs)
    shown = render_markdown(Comparison(side, side, CompareOptions(), ({}, {}), (), (result,)))
    assert f"Other programs ran, 2 of 2 pairs: {shares[1]}." in shown


@pytest.mark.parametrize("status", ["inconclusive", "slower", "faster", "unchanged", "improved"])
def test_what_is_no_regression_does_not_fail_a_build_unless_it_should(status):
    assert comparison(status).exit_code() == comparison(status).exit_code(FAIL_ON) == 0
    assert comparison(status).exit_code(EXIT_CODES) == (11 if status == "inconclusive" else 0)


def judged(verdict, change, low, high):
    judgement = Judgement(Verdict(verdict), change, low, high, 0.002, 0.012, None, f"{verdict} for a reason")
    return ModelResult("timm/a_long_name_of_a_model", verdict, judgement.reason, judgement=judgement, batch_size=128)


@pytest.mark.parametrize("columns", [60, 80, 200, None])
def test_the_table_is_whole_at_any_width(columns, monkeypatch, capsys):
    """No number is cut; a pipe, which has no width, is not wrapped."""
    monkeypatch.setenv("COLUMNS", str(columns or ""))
    results = (judged("regressed", 0.092, 0.0801, 0.1033), judged("slower", 0.03, 0.0123, 0.0456))
    environment = {"machine": {"device": "cpu"}}
    side, options = Side("git:main"), CompareOptions(setting=Setting(threads=2))
    print_table(Comparison(side, side, options, (environment, environment), (), results))
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert max(map(len, lines)) <= (columns or 1000)
    for number in ("+9.2%", "+8.0% … +10.3% (99.8%)", "+3.0%", "+1.2% … +4.6% (99.8%)"):
        assert number in shown
    assert "2 threads" in " ".join(shown.split())
    assert "slower for a reason" in " ".join(shown.split())
    if columns in (200, None):
        assert any("timm/a_long_name_of_a_model" in line and "128" in line for line in lines)
        assert "Too narrow" not in shown


def test_as_run_takes_the_setting_of_training():
    given = dict.fromkeys(("threads", "mode", "input_size", "num_classes", "in_chans", "dtype"))
    options = create_options("lenet5", budget=1, batch_size=None, as_run=True, device="cpu", **given)
    assert options.setting == Setting(mode="train", threads=torch.get_num_threads(), channels_last=True)
    assert options.batch_size == Recipe().batch_size
    options = create_options("lenet5", budget=1, batch_size=8, as_run=True, device="cpu", **given | {"threads": 1})
    assert (options.setting.threads, options.batch_size) == (1, 8)


def test_a_baseline_of_a_processor_is_compared_there_whatever_else_the_machine_has():
    past = Baseline(
        name="main", source="measured", saved_at="2026-01-02T03:04:05+00:00", side=".", entries={},
        environment={"machine": {"device": "cpu"}, "threads": 2},
    )  # fmt: skip
    for device, expected in (("auto", "cpu"), ("mps", "mps")):
        options = create_options(None, budget=1, batch_size=None, as_run=False, past=past, device=device)
        assert (options.setting.device, options.setting.threads) == (expected, 2)


@pytest.mark.parametrize("setting", [{"mode": "inferr"}, {"dtype": "float23"}, {"threads": 0}, {"input_size": -1}])
def test_a_setting_that_cannot_be_is_refused(setting):
    with pytest.raises(UserError, match="is not possible"):
        Setting(**setting)


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is an extra")
def test_a_runtime_is_compared_and_one_that_computes_something_else_is_changed(repository, zoobench_here, monkeypatch):
    monkeypatch.chdir(repository.path)
    exporting = "x = x * (1 + torch.onnx.is_in_onnx_export() * 0.1 * (self.conv.weight.shape[0] == 16))"
    repository.replace("zoo/__init__.py", "        return self.fc(", f"        {exporting}\n        return self.fc(")
    repository.commit("wide is another network when it is exported")
    models = "small,runtime=onnxruntime,wide,runtime=onnxruntime"
    done = zoobench_here(
        "compare", "git:HEAD", ".", "--models", models, "--budget", "4", "--json", "--input-size", "16"
    )
    shown = {result["model"]: result for result in json.loads(done.stdout)["results"]}
    assert len(shown) == 2, done.stderr
    assert shown["small,runtime=onnxruntime"]["pairs"] >= 1
    assert shown["wide,runtime=onnxruntime"]["status"] == "changed"
    assert "differ from those of eager mode" in shown["wide,runtime=onnxruntime"]["detail"]
    assert done.returncode == 15
    done = zoobench_here("compare", "git:HEAD", ".", "--models", models, "--mode", "train")
    assert done.returncode == 2
    assert "runs inference only" in done.stderr
