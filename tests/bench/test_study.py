"""Studies as files: what ships can be run as it stands, and what is wrong in one is named."""

import re
from pathlib import Path

import pytest

from bench.config import load_plan
from bench.errors import ConfigError
from bench.identity import flatten
from bench.runs.resolve import model_options, resolve_models
from bench.study import Study, list_studies, load_study
from reports.data.metrics import METRICS

GUIDE = Path(__file__).parents[2] / "docs" / "studies.md"

TABLE = {
    "title": "Mirrors",
    "claim": "Mirrors help",
    "source": "a paper",
    "cost": "seconds",
    "plan": {"models": ["lenet5"], "seeds": [0, 1], "data": "digits", "budget": {"epochs": 3}},
    "variants": {"without": {"recipe": {"flip": False}}, "with": {"recipe": {"flip": True}}},
    "comparisons": [{"claim": "They help", "better": "with", "than": "without", "margin": 0.0}],
}


def study(**changes) -> Study:
    return Study.model_validate({"name": "mirrors"} | TABLE | changes)


@pytest.mark.parametrize("name", list_studies())
def test_a_study_that_ships_compares_what_can_be_built_and_measured(name):
    shipped = load_study(name)
    plans = {variant: shipped.plan_of(variant) for variant in shipped.variants}
    for plan in plans.values():
        (model,) = resolve_models(plan.models)
        model_options(model, plan.recipe)
        assert plan.name == f"study-{name}"
        assert plan.budget is not None
    hashes = [str(flatten(plan.model_dump(exclude={"recipe": {"name"}}))) for plan in plans.values()]
    assert len(set(hashes)) == len(hashes)
    for comparison in shipped.comparisons:
        assert METRICS[comparison.metric].better is not None


def test_a_plan_that_ships_is_built_on_and_overrides_come_last():
    plan = load_study("dilation").plan_of("output stride 8", {"seeds": (7,), "budget": {"seconds": 5.0}})
    base = load_plan("dilation")
    assert (plan.recipe.lr, plan.input_size) == (base.recipe.lr, base.input_size)
    assert plan.models == ("fcn_resnet18,output_stride=8",)
    assert plan.seeds == (7,)
    assert plan.budget.model_dump(exclude_none=True) == {"seconds": 5.0}
    assert plan.recipe.name == "output stride 8"


def test_a_variant_may_have_another_recipe_than_the_plan_with_changes_of_its_own():
    plain = study(plan=TABLE["plan"] | {"recipe": {"base": "steady", "lr": 0.5}})
    other = {"recipe": {"base": "classic", "flip": False}}
    replaced = study(plan=plain.plan, variants=TABLE["variants"] | {"with": other}).plan_of("with").recipe
    assert plain.plan_of("with").recipe.lr == 0.5
    assert (replaced.lr, replaced.optimizer, replaced.flip) == (None, "sgd", False)
    assert replaced.name == "with"


def test_a_variant_that_begins_with_weights_gets_them_with_its_overrides():
    shipped = load_study("transfer")
    assert shipped.gives_weights("pretraining")
    assert shipped.begins_with("scratch") is None
    assert not shipped.plan_of("scratch").pretrained
    assert shipped.plan_of("fine-tuned", {"pretrained": "a.safetensors"}).pretrained == "a.safetensors"
    classes = {variant: set(shipped.plan_of(variant).classes) for variant in shipped.variants}
    assert classes["scratch"] == classes["fine-tuned"]
    assert not classes["scratch"] & classes["pretraining"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"comparisons": [{**TABLE["comparisons"][0], "better": "wth"}]},
            "names 'wth'; the variants are without, with",
        ),
        ({"comparisons": [{**TABLE["comparisons"][0], "ratio": True}]}, "a factor above 0"),
        ({"variants": {"a": {"begins_with": "b"}, "b": {}}}, "no variant before it"),
        ({"variants": {"with": {}}}, "at least 2"),
        ({"comparisons": []}, "at least 1"),
    ],
)
def test_a_study_that_decides_nothing_is_refused(changes, expected):
    if "variants" in changes:
        changes = {"comparisons": [{**TABLE["comparisons"][0], "better": "a", "than": "b"}]} | changes
    with pytest.raises(ValueError, match=expected):
        study(**changes)


def test_an_unknown_study_and_an_unknown_key_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no study is named 'dilatation'\. Did you mean 'dilation'"):
        load_study("dilatation")
    text = 'title = "t"\nclaim = "c"\nsource = "s"\ncost = "c"\nclaims = 1\n'
    text += '[plan]\nmodels = ["lenet5", "resnet20"]\n[variants.a]\n[variants.b]\n'
    text += '[[comparisons]]\nclaim = "c"\nbetter = "a"\nthan = "b"\nmargin = 0\n'
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"no key 'claims'\. Did you mean 'claim'"):
        load_study(str(path))
    path.write_text(text.replace("claims = 1\n", ""))
    with pytest.raises(ConfigError, match="the variant 'a' has several models"):
        load_study(str(path))


def test_the_study_of_the_guide_is_one(tmp_path):
    (text,) = re.findall(r"^```toml\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    path = tmp_path / "mirrors.toml"
    path.write_text(text)
    assert list(load_study(str(path)).variants) == ["without", "with"]
    for name in list_studies():
        assert f"| `{name}` |" in GUIDE.read_text(encoding="utf-8")
