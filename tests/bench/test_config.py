import itertools
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.config import (
    Budget,
    Plan,
    Rates,
    list_plans,
    list_recipes,
    load_plan,
    load_recipe,
    parse_override,
    parse_seeds,
)
from bench.errors import ConfigError

RESOLVED = {
    "data_sha256": "0" * 64,
    "input_size": 32,
    "device": "cpu",
    "threads": 2,
    "autocast": False,
    "channels_last": True,
}


@pytest.mark.parametrize("budget", [{"epochs": 3}, None])
def test_small_images_in_all_epochs_are_refused(budget):
    recipe = {"base": "fast", "small_size": 24, "small_epochs": 3, "epochs": 3}
    with pytest.raises(ConfigError, match=r"none of the size that is tested: set recipe\.small_epochs to less"):
        load_plan("quick", {"recipe": recipe, "budget": budget})
    assert load_plan("quick", {"recipe": recipe, "budget": {"epochs": 4}}).recipe.small_epochs == 3
    assert load_plan("speedrun").recipe.small_epochs


def expand(plan: Plan, models=("lenet5",)):
    return plan.expand(models=dict.fromkeys(models, Rates(0.1, 5e-4)), **RESOLVED)


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


def test_models_of_one_seed_are_run_with_the_first():
    plan = load_plan("quick", {"seeds": [3, 4]})
    runs = plan.expand(models=dict.fromkeys(["a", "b"], Rates(0.1, 5e-4)), one_seed=["b"], **RESOLVED)
    assert [(run.model, run.seed) for run in runs] == [("a", 3), ("b", 3), ("a", 4)]


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


def test_a_plan_says_what_is_different_on_a_gpu_and_overrides_hold_for_both():
    plan = load_plan("cifar10")
    assert (plan.recipe.name, plan.recipe.batch_size) == ("steady", 32)
    assert (plan.gpu.recipe.name, plan.gpu.recipe.batch_size) == ("fast-512", 512)
    assert plan.gpu.measure.batch_sizes == (1, 32, 128, 512, 2048)
    assert (plan.gpu.models, plan.gpu.seeds, plan.gpu.budget) == (plan.models, plan.seeds, plan.budget)
    assert plan.gpu.gpu is None
    chosen = load_plan("cifar10", {"recipe": "classic", "recipe.batch_size": 64, "measure.seconds": 1.0, "seeds": [7]})
    for each in (chosen, chosen.gpu):
        assert (each.recipe.name, each.recipe.batch_size) == ("classic", 64)
        assert (each.measure.seconds, each.seeds) == (1.0, (7,))
    assert chosen.measure.batch_sizes != chosen.gpu.measure.batch_sizes
    assert load_plan("cifar10", {"gpu.measure.batch_size": 9}).gpu.measure.batch_size == 9


def test_a_wrong_key_for_a_gpu_is_named(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('models = ["lenet5"]\n[gpu]\nmesure = 3\n')
    with pytest.raises(ConfigError, match=r"no key 'gpu\.mesure'\. Did you mean 'measure'"):
        load_plan(str(path))
    path.write_text('models = ["lenet5"]\ngpu = 3\n')
    with pytest.raises(ConfigError, match="gpu = 3 is not possible"):
        load_plan(str(path))
