"""A training's identity: what is in it, what is not, and that nothing new slips in undecided."""

import pytest

from bench.config import Budget, MeasureConfig, Rates, Recipe, RunConfig, load_plan
from bench.identity import ADDED_LATER, HASHED, NOT_HASHED, flatten, training_hash

RESOLVED = {
    "data_sha256": "0" * 64,
    "input_size": 32,
    "device": "cpu",
    "threads": 2,
    "autocast": False,
    "channels_last": True,
}


def run(overrides=None, **resolved):
    plan = load_plan("cifar10", {"seeds": [0], "recipe": "classic"} | (overrides or {}))
    (config,) = plan.expand(models={"lenet5": Rates(0.05, 5e-4)}, **RESOLVED | resolved)
    return config


def fields():
    """Every option of a run, with those of its tables."""
    tables = {"recipe": Recipe, "budget": Budget, "measure": MeasureConfig}
    own = {name for name in RunConfig.model_fields if name not in tables}
    return own | {f"{table}.{name}" for table, model in tables.items() for name in model.model_fields}


def test_every_option_is_decided_on_once():
    """Whoever adds an option says in bench/identity.py whether training depends on it, and its neutral value."""
    assert set(flatten(run().model_dump(mode="json"))) == fields()
    assert fields() == HASHED | NOT_HASHED | ADDED_LATER.keys()
    assert len(fields()) == len(HASHED) + len(NOT_HASHED) + len(ADDED_LATER)


def test_the_ids_that_were_given_stay_as_they_are():
    options = dict.fromkeys(HASHED | NOT_HASHED, 1)
    assert training_hash(options) == "d77933f4ebf1e0e1cef9c015c7479f0dcab077b8ee49c4ad14d209629a952a8d"


@pytest.mark.parametrize(
    "change",
    [
        {"recipe.batch_size": 256},
        {"recipe.momentum": 0.8},
        {"recipe.mixup": 0.2},
        {"budget": {"epochs": 2}},
        {"budget": {"seconds": 30.0}},
        {"seeds": [1]},
        {"val_fraction": 0.2},
        {"limit_train": 100},
        {"classes": ["cat", "dog"]},
        {"compile": True},
        {"nproc": 2},
    ],
)
def test_what_weights_depend_on_is_in_the_id(change):
    assert run(change).run_id != run().run_id


def test_a_default_that_changes_changes_the_id():
    options = run().model_dump(mode="json")
    assert options["recipe"]["label_smoothing"] == Recipe().label_smoothing == 0.0
    options["recipe"]["label_smoothing"] = 0.1  # as if that were the default now
    assert training_hash(options) != training_hash(run().model_dump(mode="json"))


def test_the_rate_of_the_architecture_is_in_the_id_though_the_recipe_leaves_it_open():
    plan = load_plan("cifar10", {"seeds": [0], "recipe": "classic"})
    assert plan.recipe.lr is None
    runs = [plan.expand(models={"lenet5": Rates(lr, 5e-4)}, **RESOLVED)[0] for lr in (0.05, 0.1)]
    assert runs[0].run_id != runs[1].run_id


@pytest.mark.parametrize(
    "change",
    [
        {"measure.seconds": 3.0},
        {"measure.batch_sizes": [1]},
        {"measure.probes": False},
        {"recipe.name": "mine"},
        {"recipe.lr": 0.05},
    ],
)
def test_what_only_measuring_depends_on_is_not(change):
    assert run(change).run_id == run().run_id


def test_where_the_weights_lie_does_not_matter_but_what_they_are():
    here, there = (run({"pretrained": path}, pretrained_sha256="a").run_id for path in ("a.pt", "b/a.pt"))
    assert here == there
    assert run({"pretrained": "a.pt"}, pretrained_sha256="b").run_id != here


@pytest.mark.parametrize("size", ["input_size", "network_input_size"])
def test_the_size_of_images_is_in_the_id(size):
    assert run(**{size: 96}).run_id != run().run_id


def test_an_option_added_later_is_absent_at_its_neutral_value(monkeypatch):
    options = run().model_dump(mode="json")
    before = training_hash(options)
    options["recipe"]["sharpness"] = 0.0
    with pytest.raises(KeyError, match=r"recipe\.sharpness"):
        training_hash(options)
    monkeypatch.setattr("bench.identity.ADDED_LATER", ADDED_LATER | {"recipe.sharpness": 0.0})
    assert training_hash(options) == before
    options["recipe"]["sharpness"] = 0.1
    assert training_hash(options) != before
