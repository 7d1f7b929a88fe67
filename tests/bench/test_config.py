import itertools
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.config import (
    Budget,
    Plan,
    list_plans,
    list_recipes,
    load_plan,
    load_recipe,
    parse_override,
    parse_seeds,
)
from bench.errors import ConfigError

RESOLVED = {"data_sha256": "0" * 64, "device": "cpu", "threads": 2, "autocast": False, "channels_last": True}


def expand(plan: Plan, models=("lenet5",)):
    return plan.expand(models=models, **RESOLVED)


@pytest.mark.parametrize("name", list_plans())
def test_shipped_plan_expands(name):
    plan = load_plan(name)
    assert len(expand(plan, ["a", "b"])) == 2 * len(plan.seeds)
    assert plan.description


@pytest.mark.parametrize("name", list_recipes())
def test_shipped_recipe_has_its_file_name(name):
    assert load_recipe(name).name == name


def test_runs_are_models_times_seeds_each_with_its_own_id():
    plan = load_plan("quick", {"seeds": [3, 4]})
    runs = expand(plan, ["a", "b", "timm/c"])
    assert {(run.model, run.seed) for run in runs} == set(itertools.product(["a", "b", "timm/c"], [3, 4]))
    assert len({run.run_id for run in runs}) == 6
    assert all("/" not in run.run_id for run in runs)


def test_run_id_depends_on_every_setting_and_on_nothing_else():
    plan = load_plan("quick")
    base = expand(plan)[0]
    assert expand(load_plan("quick"))[0].run_id == base.run_id
    changes = [
        {"recipe.lr": 0.5},
        {"seeds": [1]},
        {"budget": {"epochs": 2}},
        {"measure.seconds": 3.0},
        {"val_fraction": 0.2},
    ]
    changed = {expand(load_plan("quick", change))[0].run_id for change in changes}
    assert len(changed) == len(changes)
    assert base.run_id not in changed


def test_override_lays_over_a_named_recipe():
    plan = load_plan("cifar10", {"recipe.lr": 0.5})
    assert plan.recipe.lr == 0.5
    assert plan.recipe.optimizer == load_recipe("baseline").optimizer == "adamw"


def test_override_of_the_recipe_itself_comes_before_its_keys():
    plan = load_plan("cifar10", {"recipe.batch_size": 64, "recipe": "classic"})
    assert (plan.recipe.name, plan.recipe.batch_size, plan.recipe.optimizer) == ("classic", 64, "sgd")


def test_budget_of_the_recipe_holds_where_the_plan_has_none(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('models = ["lenet5"]\nrecipe = "classic"\n')
    plan = load_plan(str(path))
    assert plan.name == "mine"
    assert expand(plan)[0].budget == Budget(epochs=200)


def test_recipe_may_build_on_another(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('models = ["lenet5"]\nrecipe = { base = "classic", lr = 0.02 }\n')
    recipe = load_plan(str(path)).recipe
    assert (recipe.lr, recipe.optimizer, recipe.epochs) == (0.02, "sgd", 200)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("models = [", "not valid TOML"),
        ('modles = ["lenet5"]', "Did you mean 'models'?"),
        ('models = ["lenet5"]\n[recipe]\nlearning_rat = 1', "no key 'recipe.learning_rat'"),
        ('models = ["lenet5"]\n[recipe]\nbatchsize = 1', "Did you mean 'batch_size'?"),
        ('models = ["lenet5"]\n[budget]\nepochs = 0', "budget.epochs = 0"),
        ('models = ["lenet5"]\n[budget]\nepochs = 1\nseconds = 2.0', "exactly one"),
        ('models = ["lenet5"]\n[budget]\n', "exactly one"),
        ('models = ["lenet5"]\n[budget]\nseconds = nan', "budget.seconds = nan"),
        ("models = []", "models = []"),
        ('models = ["lenet5"]\nval_fraction = 1.0', "val_fraction = 1.0"),
        ('models = ["lenet5"]\ndevice = "gpu"', "device = 'gpu'"),
        ('models = ["lenet5"]\nrecipe = "classik"', "Did you mean 'classic'?"),
        ('models = ["lenet5"]\nrecipe = 3', "neither a recipe's name nor a table"),
        ("seeds = [1]", "lacks the key 'models'"),
    ],
)
def test_bad_plan_is_told_by_name_and_key(tmp_path, text, expected):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_plan(str(path))
    message = str(raised.value)
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["quik", "no/such/plan.toml", "nothing_like_it"])
def test_unknown_plan_is_told_with_those_that_ship(name):
    with pytest.raises(ConfigError, match="quick"):
        load_plan(name)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("recipe.lr=0.05", ("recipe.lr", 0.05)),
        ("recipe.lr=1e-3", ("recipe.lr", 1e-3)),
        ("recipe.flip=false", ("recipe.flip", False)),
        ("data=digits", ("data", "digits")),
        ("models=['a', 'b']", ("models", ["a", "b"])),
        ("data=parquet:a=b", ("data", "parquet:a=b")),
    ],
)
def test_override_values_are_toml_or_words(assignment, expected):
    assert parse_override(assignment) == expected


@pytest.mark.parametrize("assignment", ["recipe.lr", "=3", ""])
def test_override_without_key_or_value_is_refused(assignment):
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_override(assignment)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_override_reads_numbers_as_toml_does(number):
    assert parse_override(f"x={number!r}")[1] == tomllib.loads(f"x = {number!r}")["x"] == number


@pytest.mark.parametrize(("text", "expected"), [("0", (0,)), ("0,2,5", (0, 2, 5)), ("0-2,7", (0, 1, 2, 7))])
def test_seeds(text, expected):
    assert parse_seeds(text) == expected


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "1,,2", "1.5"])
def test_bad_seeds(text):
    with pytest.raises(ConfigError, match="--seeds"):
        parse_seeds(text)
