"""A study from its file to its verified page, offline: what begins with weights, what is done, what is refused."""

import contextlib
import json
import shutil

import pytest
from safetensors.torch import load_file

from bench.errors import ConfigError
from bench.events import PlanBegins
from bench.records import read_records
from bench.runs.study import run_study
from bench.study import load_study
from reports.pages.verify import verify_page
from reports.report import write_report
from zoo import ZooError

TEXT = """
title = "Halves"
claim = "Weights of the other digits help"
source = "nobody"
cost = "seconds"
[plan]
models = ["simple_cnn"]
seeds = [0, 1]
data = "digits"
classes = ["5", "6", "7", "8", "9"]
limit_train = 40
limit_test = 40
recipe = "quick"
budget = { epochs = 1 }
measure = { seconds = 0.1, batch_size = 4, probes = false }
device = "cpu"
threads = 1
autocast = false
channels_last = false
[variants.before]
classes = ["0", "1", "2", "3", "4"]
[variants.scratch]
[variants."fine-tuned"]
begins_with = "before"
recipe = "finetune"
[[comparisons]]
claim = "They help"
better = "fine-tuned"
than = "scratch"
margin = 0.0
"""


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    folder = tmp_path_factory.mktemp("halves")
    (folder / "halves.toml").write_text(TEXT)
    study = load_study(str(folder / "halves.toml"))
    results = folder / "results"
    return study, results, run_study(study, str(results), {"seeds": (3,)})


def test_the_weights_of_one_variant_are_the_beginning_of_another(halves):
    _, results, outcomes = halves
    assert [[record.status for record in outcome.records] for outcome in outcomes] == [["completed"]] * 3
    records = {record.run_id: record for record in read_records(results)[0]}
    content = json.loads((results / "study.json").read_text())
    before, scratch, tuned = (records[variant["runs"][0]] for variant in content["variants"])
    assert tuned.config["pretrained"] == str(results / "weights" / f"{before.run_id}.safetensors")
    assert not scratch.config["pretrained"]
    assert scratch.environment["data"]["classes"] == tuned.environment["data"]["classes"] == list("56789")
    assert before.environment["data"]["classes"] == list("01234")
    assert tuned.config["recipe"]["freeze_batch_norm"]
    assert content["part"] == {"seeds": [3]}


def test_the_page_says_what_was_run_and_holds_against_the_records(halves):
    _, results, _ = halves
    page = results / "report" / "index.html"
    written = write_report(results, page.parent)
    assert page in written
    assert verify_page(page, results).problems == []
    assert verify_page(page.parent / "runs.html", results).problems == []
    text = page.read_text(encoding="utf-8")
    assert '<strong data-k="verdict">undecided at this budget</strong>' in text  # one seed
    assert "3 of 3 runs done" in text
    assert "with seeds 3" in text
    changed = page.with_name("changed.html")
    changed.write_text(text.replace("undecided at this budget</strong>", "supported</strong>"), encoding="utf-8")
    assert any(problem.startswith("verdict:") for problem in verify_page(changed).problems)


def test_the_same_again_repeats_nothing_and_neither_does_a_file_of_the_same_weights(halves):
    study, results, _ = halves
    again = run_study(study, str(results), {"seeds": (3,)})
    assert [outcome.skipped for outcome in again] == [1, 1, 1]
    (weights,) = (results / "weights").iterdir()
    of_file = run_study(study, str(results), {"seeds": (3,)}, weights=str(weights))
    assert [outcome.skipped for outcome in of_file] == [1, 1]
    content = json.loads((results / "study.json").read_text())
    assert content["part"] == {"seeds": [3], "weights": weights.name}
    assert [len(variant["runs"]) for variant in content["variants"]] == [0, 1, 1]


def test_a_file_takes_the_place_of_published_weights(halves, tmp_path):
    text = TEXT.replace('[variants.before]\nclasses = ["0", "1", "2", "3", "4"]\n', "")
    text = text.replace('begins_with = "before"', "pretrained = true")
    (tmp_path / "published.toml").write_text(text)
    (weights,) = (halves[1] / "weights").iterdir()
    study = load_study(str(tmp_path / "published.toml"))
    with pytest.raises(ZooError, match="no published weights of 'simple_cnn'"):
        run_study(study, str(tmp_path / "results"), {"seeds": (3,)})
    results = str(tmp_path / "others")
    outcomes = run_study(study, results, {"seeds": (3,)}, weights=str(weights))
    assert [bool(outcome.records[0].config["pretrained"]) for outcome in outcomes] == [False, True]
    assert outcomes[1].records[0].config["pretrained"] == str(weights)


def test_weights_that_were_not_kept_are_trained_again(halves):
    study, results, _ = halves
    (weights,) = (results / "weights").iterdir()
    kept = load_file(weights)
    weights.unlink()
    again = run_study(study, str(results), {"seeds": (3,)})
    assert [outcome.skipped for outcome in again][:2] == [0, 1]
    trained = load_file(weights)
    assert trained.keys() == kept.keys()
    assert all(trained[name].equal(kept[name]) for name in kept)


def test_weights_that_nobody_begins_with_and_variants_that_are_equal_are_refused(halves, tmp_path):
    with pytest.raises(ConfigError, match="no variant of the study 'schedule' begins with weights"):
        run_study(load_study("schedule"), str(tmp_path), {}, weights="resnet20.pth")
    same = halves[0].model_copy(update={"variants": {"a": {}, "b": {}}})
    with pytest.raises(ConfigError, match="'a' and 'b' of the study 'halves' are the same run"):
        run_study(same, str(tmp_path), {})
    with pytest.raises(ConfigError, match=r"typo\.pth.*no such file"):
        run_study(halves[0], str(tmp_path), {}, weights="typo.pth")
    assert not list(tmp_path.iterdir())


def test_a_study_that_is_interrupted_keeps_what_it_knows_of_variants_not_reached(halves, tmp_path):
    study, results, _ = halves
    run_study(study, str(results), {"seeds": (3,)})
    shutil.copytree(results, tmp_path / "again")
    before = json.loads((tmp_path / "again" / "study.json").read_text())

    class Impatient:
        def on(self, event):
            if isinstance(event, PlanBegins):
                raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        run_study(
            study,
            str(tmp_path / "again"),
            {"seeds": (3,)},
            observers=lambda variant: [Impatient()] * (variant != "before"),
        )
    assert json.loads((tmp_path / "again" / "study.json").read_text()) == before
