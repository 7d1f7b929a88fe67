"""Baselines against code: what is kept, and each way in which past and present do not fit, with its exit code."""

import dataclasses
import json
import re

import pytest
import torch

from bench.errors import UserError
from bench.gate.against_baseline import load_sides
from bench.gate.baselines import UnlikeBaselineError, load_baseline, load_entries, save_baseline
from bench.gate.compare import compare, save
from bench.gate.result import CompareOptions
from bench.gate.summary import comparison_to_dict, render_markdown
from bench.gate.timing.sample import Abba, Block
from bench.gate.timing.subject import Setting
from bench.machine import incomparable, known_facts

SHORT = CompareOptions((), Setting(input_size=16), budget_seconds=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Baselines, of which ``main`` is a real one of lenet5 in the installed zoo."""
    path = tmp_path_factory.mktemp("baselines")
    options = CompareOptions(("lenet5",), Setting(), budget_seconds=4)
    save("main", None, options, path)
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


@pytest.fixture
def command(zoobench_here):
    def run(folder, *arguments, columns=""):
        done = zoobench_here(*arguments, "--baselines", folder, columns=columns)
        assert "Traceback" not in done.stderr
        return done

    return run


def test_a_baseline_keeps_both_absolute_and_relative_times_and_where_they_are_from(folder):
    baseline = load_baseline(folder, "main")
    entry = baseline.entries["lenet5"]
    assert entry.counts.params == 62_006
    assert entry.relative == pytest.approx(entry.step_ms / entry.reference_step_ms, rel=0.5)
    assert baseline.environment["threads"] == 1
    facts = known_facts(baseline.environment)
    assert {"cpu", "cores", "torch", "device", "process", "allocator", "cpu_matmul", "deterministic"} <= facts.keys()
    assert facts["torch"] == torch.__version__
    assert len(baseline.commit.rstrip("+")) == 40
    for pair in entry.pairs:
        # Each subject fills a block of its own, however long its steps are.
        assert pair.steps[0] * pair.step_seconds[0] == pytest.approx(pair.steps[1] * pair.step_seconds[1], rel=0.6)


def test_the_past_of_a_repository_that_changed(repository, tmp_path, monkeypatch):
    """An extra layer, a name that went, one that came, and a model that stayed as it was."""
    monkeypatch.chdir(repository.path)
    repository.replace("zoo/__init__.py", '"wide": 16', '"wide": 16, "gone": 4')
    repository.commit("more models")
    options = CompareOptions(("small", "wide", "gone"), Setting(input_size=16), 1)
    saved = save("before", "git:HEAD", options, tmp_path)
    assert saved.baseline.commit == repository.git("rev-parse", "HEAD")
    repository.replace("zoo/__init__.py", '"gone": 4', '"came": 4')
    repository.replace(
        "zoo/__init__.py", "return Net(", 'net = Net(num_classes, BUILDERS[name])\n    return nn.Sequential(net, '
        'nn.Linear(10, 10)) if name == "wide" else Net('
    )  # fmt: skip
    comparison = compare(load_entries(tmp_path, "before"), ".", SHORT)
    results = {result.model: result for result in comparison.results}
    assert {name: results[name].status for name in ("wide", "gone")} == {"wide": "changed", "gone": "missing"}
    assert "Linear" in str(results["wide"].differences)
    assert results["small"].pairs
    assert comparison.exit_code() == 12
    assert comparison.exit_code(["changed"]) == 15
    shown = comparison_to_dict(comparison)
    assert json.loads(json.dumps(shown, allow_nan=False))["base"]["commit"] == saved.baseline.commit
    small = next(result for result in shown["results"] if result["model"] == "small")
    assert small["step_ms"][0] == saved.baseline.entries["small"].step_ms
    assert len(small["reference_step_ms"]) == 2
    assert "baseline:before" in render_markdown(comparison)
    assert repository.worktrees() == [str(repository.path)]

    (came,) = compare(saved.baseline, ".", CompareOptions(("came",), Setting(input_size=16))).results
    assert came.status == "new"
    with pytest.raises(UserError, match="no architecture is named 'smal'"):
        compare(saved.baseline, ".", CompareOptions(("smal",), Setting(input_size=16), 1))


def test_an_unlike_machine_is_13_with_each_difference_and_forcing_it_is_loud(command, folder):
    name = edited(folder, "elsewhere", environment__machine__cpu="Other CPU", environment__versions__torch="1.0")
    done = command(folder, "compare", f"baseline:{name}", "lenet5", "--threads", "2")
    assert done.returncode == 13
    flat = " ".join(done.stdout.split())
    for shown in ("cpu Other CPU → ", "torch 1.0 → ", "threads 1 → 2", "--force"):
        assert shown in flat
    assert "round 1" not in done.stderr
    options = CompareOptions((), Setting(), budget_seconds=1, force=True)
    forced = compare(load_entries(folder, name), "lenet5", options)
    assert forced.exit_code() != 13
    assert "cpu Other CPU → " in render_markdown(forced)
    assert "Measured all the same, as --force asks" in render_markdown(forced)
    assert comparison_to_dict(forced)["environment_differences"]


def test_changed_counts_are_15_and_say_whether_it_may_be_the_counting(command, folder):
    edited(folder, "fewer", figures__lenet5__counts__params=62_005)
    done = command(folder, "compare", "baseline:fewer", "lenet5")
    assert done.returncode == 15
    assert "params 62,005 → 62,006" in done.stdout
    assert "how zoobench counts" not in done.stdout
    edited(folder, "counted", figures__lenet5__counts__params=62_005, counter="0" * 16)
    (result,) = compare(load_entries(folder, "counted"), "lenet5", CompareOptions(())).results
    assert result.status == "changed"
    assert "how zoobench counts" in result.detail


def test_an_empty_baseline_is_14_and_says_so(command, folder):
    edited(folder, "empty", figures={})
    done = command(folder, "compare", "baseline:empty", ".")
    assert done.returncode == 14
    assert "is empty" in done.stderr
    assert done.stdout == ""


def test_a_model_that_the_baseline_lacks_is_12(command, folder):
    done = command(folder, "compare", "baseline:main", "simple_cnn")
    assert done.returncode == 12
    assert "baseline:main has no entry of this name" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("ask", "code", "shown"),
    [
        (lambda folder: load_sides("baseline:mein", ".", folder), 2, "Did you mean 'main'?"),
        (lambda folder: load_sides(".", "baseline:main", folder), 2, "The older side comes first"),
        (lambda folder: save("main", None, SHORT, folder), 2, "--overwrite"),
        (lambda folder: save("../main", None, SHORT, folder), 2, "cannot be the name of a baseline"),
        (lambda folder: compare(load_baseline(folder, "main"), ".", SHORT), 13, "not the same work"),
    ],
)
def test_what_cannot_be_is_refused(folder, ask, code, shown):
    with pytest.raises(UserError, match=re.escape(shown)) as caught:
        ask(folder)
    assert caught.value.exit_code == code


def test_another_input_size_than_the_baselines_is_13_on_the_command_line(command, folder):
    done = command(folder, "compare", "baseline:main", ".", "--input-size", "64")
    assert done.returncode == 13
    assert "images of 3×32×32" in done.stderr
    assert done.stdout == ""


def test_another_reference_workload_is_refused(folder):
    name = edited(folder, "old", reference="convolutions-and-products-0")
    with pytest.raises(UnlikeBaselineError, match="no common measure") as caught:
        compare(load_entries(folder, name), "lenet5", CompareOptions((), force=True))
    assert caught.value.exit_code == 13


def test_a_baseline_can_call_no_other_function(folder):
    operators = [{"name": "from_file.default", "arguments": ["/etc/passwd"]}]
    name = edited(folder, "hostile", figures__lenet5__workload={"operators": operators, "order": [0]})
    with pytest.raises(UserError, match=re.escape("no operators of a reference workload: from_file.default")):
        load_baseline(folder, name)


def test_list_and_show(command, folder):
    edited(folder, "torn")
    (folder / "torn.json").write_text('{"schema_version": 1')
    listed = command(folder, "baseline", "list", "--json")
    assert "main" in [each["name"] for each in json.loads(listed.stdout)]
    assert "torn.json' is damaged" in listed.stderr
    shown = command(folder, "baseline", "show", "main", "--json")
    assert json.loads(shown.stdout) == json.loads((folder / "main.json").read_text())


def test_two_baselines_are_compared_without_measuring(command, folder):
    """Synthetic: every block of the network in ``slow`` takes 30% longer, in eight pairs on either side."""
    baseline = load_baseline(folder, "main")
    entry = baseline.entries["lenet5"]
    pair = entry.pairs[0]

    def pairs_of(slower):
        for number in range(8):
            factor = slower * (1 + 0.004 * (number % 4))
            seconds = [steps * (factor if subject else 1.0) for subject, steps in enumerate(pair.steps)]
            blocks = tuple(Block(subject, seconds[subject], seconds[subject], 0) for subject in (0, 1, 1, 0))
            yield dataclasses.replace(pair, abba=tuple(Abba(blocks) for _ in pair.abba))

    for name, slower in (("even", 1.0), ("slow", 1.3)):
        entries = {"lenet5": entry.model_copy(update={"pairs": tuple(pairs_of(slower))})}
        save_baseline(folder, baseline.model_copy(update={"name": name, "entries": entries}))
    done = command(folder, "compare", "baseline:even", "baseline:slow", "--json")
    assert done.returncode == 10, done.stderr
    shown = json.loads(done.stdout)
    assert shown["tolerance"] == 0.05
    (result,) = shown["results"]
    assert result["change"] == pytest.approx(0.3, abs=0.01)
    assert result["low"] < 0.3 < result["high"]
    same = compare(load_baseline(folder, "even"), load_baseline(folder, "even"), CompareOptions(()))
    assert [each.status for each in same.results] == ["unchanged"]
    entry = entry.model_copy(update={"workload": entry.workload | {"order": entry.workload["order"][1:]}})
    shorter = baseline.model_copy(update={"entries": {"lenet5": entry}})
    (result,) = compare(baseline, shorter, CompareOptions(())).results
    assert result.status == "failed"
    assert "beside its own operators, and these differ" in result.detail
    other = load_baseline(folder, edited(folder, "other", environment__machine__cores=64))
    assert compare(baseline, other, CompareOptions(())).exit_code() == 13


def test_a_baseline_of_grey_images_is_compared_on_grey_images(command, folder):
    """What is not given is the baseline's: mode, image size, channels, number format and threads."""
    saved = command(folder, "baseline", "save", "grey", "--models", "lenet5", "--in-chans", "1", "--budget", "1")
    assert saved.returncode == 0, saved.stderr
    assert load_baseline(folder, "grey").entries["lenet5"].counts.params == 62_006 - 2 * 6 * 25
    done = command(folder, "compare", "baseline:grey", "lenet5", "--json", "--budget", "1")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["setting"]["in_chans"] == 1
    assert [each["status"] for each in shown["results"]] == ["inconclusive"]  # from one pair


def test_the_files_of_earlier_versions_are_read_and_their_names_kept(folder):
    """What is called an entry and an ABBA sequence now was a figure and a quad in files that people have."""
    content = json.loads((folder / "main.json").read_text())
    pair = content["figures"]["lenet5"]["pairs"][0]
    assert len(pair["quads"][0]["blocks"]) == 4
    for key in ("dtype", "channels_last"):
        del content["task"][key]
    tables = content["environment"]
    flat = {key: tables["machine"][key] for key in ("device", "cpu", "cores", "system")}
    flat |= {key: tables["versions"][key] for key in ("python", "torch", "torchvision", "timm")}
    flat |= {"threads": 1, "process": "its own", "processor": "x86_64", "cuda": None}
    content["environment"] = flat
    (folder / "earlier.json").write_text(json.dumps(content | {"name": "earlier"}))
    earlier, main = load_baseline(folder, "earlier"), load_baseline(folder, "main")
    assert earlier.task == main.task
    assert earlier.entries == main.entries
    assert incomparable(earlier.environment, main.environment) == ()
    assert known_facts(earlier.environment).items() <= known_facts(main.environment).items()
    for key, other in {"cpu": "another", "torch": "1.0", "threads": 2, "process": "the tests'"}.items():
        content["environment"] = flat | {key: other}
        (folder / "earlier.json").write_text(json.dumps(content | {"name": "earlier"}))
        (difference,) = incomparable(load_baseline(folder, "earlier").environment, main.environment)
        assert difference.startswith(f"{key} {other} → ")
    content["environment"] = flat | {"device": "cuda", "processor": "A GPU", "cuda": "13.0"}
    (folder / "earlier.json").write_text(json.dumps(content | {"name": "earlier"}))
    assert load_baseline(folder, "earlier").environment["machine"]["gpu"] == "A GPU"


def test_a_wildcard_in_the_name_of_an_entry_is_that_name(folder):
    name = edited(folder, "brackets")
    content = json.loads((folder / "brackets.json").read_text())
    content["figures"] = {"test_sum[10]": content["figures"]["lenet5"]}
    (folder / f"{name}.json").write_text(json.dumps(content))
    baseline = load_baseline(folder, name)
    compared = compare(baseline, baseline, CompareOptions(("test_sum[10]",)))
    assert [result.model for result in compared.results] == ["test_sum[10]"]
    with pytest.raises(UserError, match="has no entry named 'test_som'"):
        compare(baseline, baseline, CompareOptions(("test_som",)))


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_tables_keep_every_number_whole_at_any_width(command, folder, columns):
    for arguments in (("list",), ("show", "main")):
        done = command(folder, "baseline", *arguments, columns=columns)
        assert max(map(len, done.stdout.splitlines()[3 if arguments[0] == "show" else 0 :])) <= columns
        assert "…" not in done.stdout
    assert f"{load_baseline(folder, 'main').entries['lenet5'].step_ms:.3f}" in done.stdout
