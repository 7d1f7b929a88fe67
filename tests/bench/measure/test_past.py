"""Baselines against code: what is kept, and each way in which past and present do not fit, with its exit code."""

import json
import re
import subprocess
import sys

import pytest

from bench.baselines import UnlikeBaselineError, load_baseline, load_figures, save_baseline
from bench.errors import UserError
from bench.measure.compare import CompareOptions
from bench.measure.compare_summary import comparison_to_dict, render_markdown
from bench.measure.duet import Setting
from bench.measure.past import compare_baselines, compare_with_baseline, load_past, measure_baseline
from bench.measure.sessions import changed_detail

SHORT = CompareOptions((), Setting(input_size=16), budget_seconds=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Baselines, of which ``main`` is a real one of lenet5 in the installed zoo."""
    path = tmp_path_factory.mktemp("baselines")
    options = CompareOptions(("lenet5",), Setting(), budget_seconds=4)
    measure_baseline("main", None, options, path)
    return path


def edited(folder, name, **changes):
    """A copy of ``main`` with other entries; ``__`` goes a level deeper."""
    content = json.loads((folder / "main.json").read_text()) | {"name": name}
    for key, value in changes.items():
        *path, last = key.split("__")
        at = content
        for part in path:
            at = at[part]
        at[last] = value
    (folder / f"{name}.json").write_text(json.dumps(content))
    return name


def command(folder, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "bench.cli", *arguments, "--baselines", str(folder)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done


def test_a_baseline_keeps_both_absolute_and_relative_times_and_where_they_are_from(folder):
    baseline = load_baseline(folder, "main")
    figure = baseline.figures["lenet5"]
    assert figure.counts.params == 62_006
    assert figure.relative == pytest.approx(figure.step_ms / figure.reference_step_ms, rel=0.5)
    assert baseline.environment["threads"] == 1
    assert {"cpu", "cores", "torch", "device", "process"} <= baseline.environment.keys()
    assert len(baseline.commit.rstrip("+")) == 40
    for pair in figure.samples:
        # Each lane fills a block of its own, however long its steps are.
        assert pair.steps[0] * pair.step_seconds[0] == pytest.approx(pair.steps[1] * pair.step_seconds[1], rel=0.6)


def test_the_past_of_a_repository_that_changed(repository, tmp_path, monkeypatch):
    """An extra layer, a name that went, one that came, and a model that stayed as it was."""
    monkeypatch.chdir(repository.path)
    repository.replace("zoo/__init__.py", '"wide": 16', '"wide": 16, "gone": 4')
    repository.commit("more models")
    options = CompareOptions(("small", "wide", "gone"), Setting(input_size=16), 1)
    saved = measure_baseline("before", "git:HEAD", options, tmp_path)
    assert saved.baseline.commit == repository.git("rev-parse", "HEAD")
    repository.replace("zoo/__init__.py", '"gone": 4', '"came": 4')
    repository.replace(
        "zoo/__init__.py", "return Net(", 'net = Net(num_classes, BUILDERS[name])\n    return nn.Sequential(net, '
        'nn.Linear(10, 10)) if name == "wide" else Net('
    )  # fmt: skip
    comparison = compare_with_baseline(load_figures(tmp_path, "before"), ".", SHORT)
    results = {result.model: result for result in comparison.results}
    assert {name: results[name].status for name in ("wide", "gone")} == {"wide": "changed", "gone": "missing"}
    assert "Linear" in str(results["wide"].differences)
    assert results["small"].timing.pairs
    assert comparison.exit_code() == 12
    assert comparison.exit_code(["changed"]) == 15
    told = comparison_to_dict(comparison)
    assert json.loads(json.dumps(told, allow_nan=False))["base"]["commit"] == saved.baseline.commit
    small = next(result for result in told["results"] if result["model"] == "small")
    assert small["step_ms"][0] == saved.baseline.figures["small"].step_ms
    assert len(small["reference_step_ms"]) == 2
    assert "baseline:before" in render_markdown(comparison)
    assert repository.worktrees() == [str(repository.path)]

    (came,) = compare_with_baseline(saved.baseline, ".", CompareOptions(("came",), Setting(input_size=16))).results
    assert came.status == "new"
    with pytest.raises(UserError, match="no architecture is named 'smal'"):
        compare_with_baseline(saved.baseline, ".", CompareOptions(("smal",), Setting(input_size=16), 1))


def test_an_unlike_machine_is_13_with_each_difference_and_forcing_it_is_loud(folder):
    name = edited(folder, "elsewhere", environment__cpu="Other CPU", environment__torch="1.0")
    done = command(folder, "compare", f"baseline:{name}", "lenet5", "--threads", "2")
    assert done.returncode == 13
    flat = " ".join(done.stdout.split())
    for told in ("cpu Other CPU → ", "torch 1.0 → ", "threads 1 → 2", "--force"):
        assert told in flat
    assert "round 1" not in done.stderr
    options = CompareOptions((), Setting(), budget_seconds=1, force=True)
    forced = compare_with_baseline(load_figures(folder, name), "lenet5", options)
    assert forced.exit_code() != 13
    assert "cpu Other CPU → " in render_markdown(forced)
    assert "Measured all the same, as --force asks" in render_markdown(forced)
    assert comparison_to_dict(forced)["environment_differences"]


def test_changed_counts_are_15_and_say_whether_it_may_be_the_counting(folder):
    edited(folder, "fewer", figures__lenet5__counts__params=62_005)
    done = command(folder, "compare", "baseline:fewer", "lenet5")
    assert done.returncode == 15
    assert "params 62,005 → 62,006" in done.stdout
    assert "how zoobench counts" not in done.stdout
    edited(folder, "counted", figures__lenet5__counts__params=62_005, counter="0" * 16)
    assert "how zoobench counts" in changed_detail(load_figures(folder, "counted"))


def test_an_empty_baseline_is_14_and_says_so(folder):
    edited(folder, "empty", figures={})
    done = command(folder, "compare", "baseline:empty", ".")
    assert done.returncode == 14
    assert "is empty" in done.stderr
    assert done.stdout == ""


def test_a_model_that_the_baseline_lacks_is_12(folder):
    done = command(folder, "compare", "baseline:main", "simple_cnn")
    assert done.returncode == 12
    assert "baseline:main has no figure of this name" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("ask", "code", "told"),
    [
        (lambda folder: load_past("baseline:mein", ".", folder), 2, "Did you mean 'main'?"),
        (lambda folder: load_past(".", "baseline:main", folder), 2, "The past comes first"),
        (lambda folder: measure_baseline("main", None, SHORT, folder), 2, "--overwrite"),
        (lambda folder: measure_baseline("../main", None, SHORT, folder), 2, "no name of a baseline"),
        (lambda folder: compare_with_baseline(load_baseline(folder, "main"), ".", SHORT), 13, "not the same work"),
    ],
)
def test_what_cannot_be_is_told(folder, ask, code, told):
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        ask(folder)
    assert caught.value.exit_code == code


def test_another_input_size_than_the_baselines_is_13_on_the_command_line(folder):
    done = command(folder, "compare", "baseline:main", ".", "--input-size", "64")
    assert done.returncode == 13
    assert "--input-size 32" in done.stderr
    assert done.stdout == ""


def test_another_reference_workload_is_refused(folder):
    name = edited(folder, "old", reference="convolutions-and-products-0")
    with pytest.raises(UnlikeBaselineError, match="no common measure") as caught:
        compare_with_baseline(load_figures(folder, name), "lenet5", CompareOptions((), force=True))
    assert caught.value.exit_code == 13


def test_list_and_show(folder):
    edited(folder, "torn")
    (folder / "torn.json").write_text('{"schema_version": 1')
    listed = command(folder, "baseline", "list", "--json")
    assert "main" in [each["name"] for each in json.loads(listed.stdout)]
    assert "torn.json' is damaged" in listed.stderr
    shown = command(folder, "baseline", "show", "main", "--json")
    assert json.loads(shown.stdout) == json.loads((folder / "main.json").read_text())


def test_two_baselines_are_compared_without_measuring(folder):
    """Synthetic: every block of the network in ``slow`` takes 30% longer, in eight pairs on either side."""
    baseline = load_baseline(folder, "main")
    figure = baseline.figures["lenet5"]
    pair = figure.pairs[0]

    def pairs_of(slower):
        for number in range(8):
            factor = slower * (1 + 0.004 * (number % 4))
            yield pair.model_copy(update={"quads": tuple(
                quad.model_copy(update={"flags": (), "blocks": tuple(
                    (lane, seconds, seconds, 0)
                    for lane in (0, 1, 1, 0)
                    for seconds in [pair.steps[lane] * (factor if lane else 1.0)]
                )}) for quad in pair.quads
            )})  # fmt: skip

    for name, slower in (("even", 1.0), ("slow", 1.3)):
        figures = {"lenet5": figure.model_copy(update={"pairs": tuple(pairs_of(slower))})}
        save_baseline(folder, baseline.model_copy(update={"name": name, "figures": figures}))
    done = command(folder, "compare", "baseline:even", "baseline:slow", "--json")
    assert done.returncode == 10, done.stderr
    told = json.loads(done.stdout)
    assert told["tolerance"] == 0.1
    (result,) = told["results"]
    assert result["change"] == pytest.approx(0.3, abs=0.01)
    assert result["low"] < 0.3 < result["high"]
    same = compare_baselines(load_baseline(folder, "even"), load_baseline(folder, "even"), CompareOptions(()))
    assert [each.status for each in same.results] == ["unchanged"]
    other = load_baseline(folder, edited(folder, "other", environment__cores=64))
    assert compare_baselines(baseline, other, CompareOptions(())).exit_code() == 13
