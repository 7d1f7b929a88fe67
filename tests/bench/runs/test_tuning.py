"""What a plan leaves at auto: decided once for all seeds, kept, and followed by what is measured."""

import json

import pytest

from bench.config import Budget, Rates, load_plan
from bench.records import read_records
from bench.runs.runner import run_plan
from bench.runs.tuning import _expectation
from bench.training.tuner import Form, Tuning

MEASURE = {"seconds": 0.1, "batch_size": 4, "probes": False}


def run(results, **overrides):
    plan = load_plan("quick", {"models": ["lenet5"], "budget": {"epochs": 1}, "limit_train": 40, "limit_test": 20,
                               "measure": MEASURE, "threads": 1} | overrides)  # fmt: skip
    outcome = run_plan(plan, str(results))
    assert all(record.error is None for record in outcome.records), outcome.records[0].error
    return outcome.records


def kept(results):
    (path,) = (results / "tuning").glob("*.json")
    return path, json.loads(path.read_text())


def test_a_choice_is_kept_for_all_seeds_with_the_machine_it_was_made_on(tmp_path):
    first, second = run(tmp_path, seeds=[0, 1])
    _, stored = kept(tmp_path)
    assert stored["machine"]["device"] == "cpu"
    for record in (first, second):
        assert record.config["autocast"] == "auto"
        assert record.environment["tuning"] == stored["tuning"]
    assert "too short to be tuned" in stored["tuning"]["reason"]


def test_a_kept_choice_is_followed_in_training_and_measuring(tmp_path):
    run(tmp_path / "float32", seeds=[0])
    run(tmp_path / "bfloat16", seeds=[0])
    path, stored = kept(tmp_path / "bfloat16")
    chosen = Tuning(Form(autocast=True, channels_last=False), {"float32, channels_last": 1.0}).to_dict()
    path.write_text(json.dumps(stored | {"tuning": chosen}))
    (record,) = run(tmp_path / "bfloat16", seeds=[1])
    (named,) = run(tmp_path / "named", seeds=[1], autocast=True, channels_last=False)
    assert record.environment["tuning"]["form"] == {"autocast": True, "channels_last": False, "compile": False}
    assert record.metrics["weights_sha256"] == named.metrics["weights_sha256"]
    (plain,) = run(tmp_path / "float32", seeds=[1])
    assert plain.metrics["weights_sha256"] != record.metrics["weights_sha256"]
    # Measured again, it is measured in the form that it was trained in.
    (again,) = run(tmp_path / "bfloat16", seeds=[1], measure=MEASURE | {"seconds": 0.2})
    assert again.environment["tuning"] == record.environment["tuning"]
    assert again.metrics["weights_sha256"] == record.metrics["weights_sha256"]
    assert len(read_records(str(tmp_path / "bfloat16"))[0]) == 2


def test_naming_the_choices_leaves_nothing_to_time(tmp_path):
    (record,) = run(tmp_path, autocast=False, channels_last=True)
    assert record.environment["tuning"]["reason"] == "every choice was named"
    assert not (tmp_path / "tuning").exists()


@pytest.mark.parametrize("option", ["autocast", "channels_last", "compile"])
def test_auto_is_an_identity_of_its_own(option):
    plan = load_plan("quick", {"models": ["lenet5"]})
    resolved = {"data_sha256": "0" * 64, "input_size": 32, "device": "cpu", "threads": 1}
    ids = set()
    for value in (True, False, "auto"):
        choices = {"autocast": False, "channels_last": True} | {option: value}
        choices.pop("compile", None)
        named = plan.model_copy(update={option: value})
        (config,) = named.expand(models={"lenet5": Rates(0.1, 0.0)}, **resolved, **choices)
        ids.add(config.run_id)
    assert len(ids) == 3


def test_a_training_is_expected_to_take_what_its_budget_says():
    assert _expectation(Budget(seconds=20.0), 100, 7)(0.5) == 20
    assert _expectation(Budget(epochs=3), 100, 7)(0.5) == 150
    assert _expectation(Budget(macs=2100.0), 100, 7)(0.5) == 50
