import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

import zoo
from zoo import (
    DuplicateModelError,
    UnknownModelError,
    ZooError,
    create_model,
    list_models,
    model_info,
    register_model,
)
from zoo.registry import create_meta_model, representative_models, split_options

NEW_FILE = """
from torch import nn
from zoo.registry import register_model

@register_model
def foonet(num_classes=10, input_size=32):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
"""
USE_IT = """
import json, sys
from zoo import architectures
architectures.__path__.append(sys.argv[1])
from bench.cli.card_table import render_card
from bench.counting.card import describe, list_rows
from zoo import create_model, list_models, model_info
assert "foonet" in list_models()
assert create_model("foonet", 5)[3].out_features == 5
assert model_info("foonet").family == "foonet"
card = describe("foonet")
render_card(card)
json.dumps(card.to_dict())
print(card.params, [row["params"] for row in list_rows("foonet")], card.receptive_field)
"""


def test_a_new_architecture_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "foonet.py").write_text(NEW_FILE)
    done = subprocess.run([sys.executable, "-c", USE_IT, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "162 [162] 3"


def test_names_match_wildcards_and_are_sorted() -> None:
    names = list_models("resnet*")
    assert names == sorted(names)
    assert {"resnet18", "resnet20"} <= set(names)
    assert set(list_models(["vgg1?", "lenet5"])) == {"vgg11", "vgg13", "vgg16", "vgg19", "lenet5"}
    assert list_models("nothing*") == []


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UnknownModelError, match=r"no architecture is named 'resnet81'.*Did you mean.*'resnet18'"):
        create_model("resnet81")


def test_one_name_belongs_to_one_builder() -> None:
    def resnet18(num_classes: int = 10, input_size: int = 32) -> nn.Module:
        return nn.Linear(num_classes, input_size)

    with pytest.raises(DuplicateModelError, match="'resnet18'"):
        register_model(resnet18)
    assert model_info("resnet18").builder is not resnet18


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"input_size": -1}, "input_size=-1"),
        ({"in_chans": 0}, "in_chans=0"),
        ({"output_strid": 8}, "takes no argument 'output_strid'. Did you mean 'output_stride'"),
        ({"drop_rate": 2}, "cannot be built with drop_rate=2"),
        ({"drop_rate": "much"}, "cannot be built with drop_rate=much"),
        ({"output_stride": 7}, "output_stride=7 is not possible: expected 8, 16 or 32"),
    ],
)
def test_impossible_arguments_are_named(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ZooError, match=message):
        create_model("deeplab_resnet18", **arguments)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("simple_cnn,batch_norm=no", "batch_norm=no is not possible.*true or false"),
        ("vgg16,batch_norm=1", "batch_norm=1 is not possible.*true or false"),
        ("simple_cnn,drop_rate=true", "drop_rate=True is not possible.*a number"),
        ("mobilenet_v1,width=-1", "width=-1 is not possible"),
        ("vgg16,width=0", "width=0 is not possible"),
        ("resnet20,shortcut=projection,shortcut_padding=both", "shortcut_padding is of shortcut=zero_pad"),
        ("vgg16_bn,drop_rate=0.3", "cannot be built with drop_rate=0.3: the head for small images has no dropout"),
        ("alexnet_2012,drop_rate=0.3", "cannot be built with drop_rate=0.3: the head for small images has no dropout"),
        ("resnet18,num_classes=5", "num_classes is no option"),
        ("torchvision/resnet18,weights=DEFAULT", "ask for pretrained"),
    ],
)
def test_an_option_that_would_say_something_else_or_nothing_is_refused(name: str, message: str) -> None:
    with pytest.raises(ZooError, match=message):
        create_model(name)


def test_no_setting_is_an_option_of_a_name() -> None:
    with pytest.raises(ZooError, match=r"input_size is no option in the name of 'resnet18'.*--input-size"):
        model_info("resnet18,input_size=32")


@pytest.mark.parametrize("word", ["False", "false", "FALSE"])
def test_false_is_false_however_it_is_written(word: str) -> None:
    layers = create_model(f"simple_cnn,batch_norm={word}").modules()
    assert not [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]


@pytest.mark.parametrize(("given", "rate"), [({}, 0.5), ({"drop_rate": 0.3}, 0.3), ({"drop_rate": 0.0}, 0.0)])
def test_dropout_of_the_large_heads(given: dict[str, float], rate: float) -> None:
    for name in ("vgg11", "alexnet", "alexnet_2012"):
        layers = create_meta_model(name, 10, 224, **given).modules()
        assert [layer.p for layer in layers if isinstance(layer, nn.Dropout)] == [rate, rate]
    assert create_model("vgg11", 10, 32, drop_rate=0.0)


def test_every_family_of_classifiers_is_represented_by_one_or_two() -> None:
    chosen = [model_info(name) for name in representative_models()]
    assert {info.task for info in chosen} == {"classification"}
    classifiers = [info for info in map(model_info, list_models()) if info.task == "classification"]
    families = [info.family for info in chosen]
    assert set(families) == {info.family for info in classifiers}
    assert max(map(families.count, families)) <= 2


def test_a_name_may_carry_options_of_its_builder():
    named = create_model("deeplab_resnet18,output_stride=8", input_size=64)
    given = create_model("deeplab_resnet18", input_size=64, output_stride=8)
    assert repr(named) == repr(given)
    assert split_options("x,a=1,b=0.5,c=true,d=word") == ("x", {"a": 1, "b": 0.5, "c": True, "d": "word"})
    info = model_info("vgg16,batch_norm=true")
    assert (info.name, info.family, info.published) == ("vgg16,batch_norm=true", "vgg", None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deeplab_resnet18,output_strid=8", "Did you mean 'output_stride'"),
        ("resnet18,wide", "expected NAME,OPTION=VALUE"),
        ("resnet81,x=1", "no architecture is named 'resnet81'"),
    ],
)
def test_wrong_options_in_a_name_are_refused(name, message):
    with pytest.raises(ZooError, match=message):
        model_info(name)


def test_batch_norm_is_on_or_off_where_a_family_has_both():
    def norms(name):
        return sum(isinstance(module, nn.BatchNorm2d) for module in create_model(name).modules())

    assert norms("vgg16,batch_norm=true") == norms("vgg16_bn") == 13
    assert norms("vgg16") == norms("simple_cnn,batch_norm=false") == 0
    assert norms("simple_cnn") == 3


FOREIGN = """
from torch import nn
from zoo.registry import register_model

@register_model(year=1999)
def tiny(num_classes=10, input_size=32):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))

def resnet18(num_classes=10, input_size=32):
    return nn.Linear(num_classes, input_size)

def broken(num_classes=10, input_size=32):
    raise KeyError("weights")

number = 3
print("imported")
"""
ENTRY_POINTS = """[zoobench.models]
tiny = foreign_nets:tiny
small = foreign_nets:tiny
other = foreign_nets:resnet18
another = foreign_nets:resnet18
resnet18 = foreign_nets:resnet18
broken = foreign_nets:broken
number = foreign_nets:number
absent = no_such_module:net
quits = quitting_nets:net
"""
LIST = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import zoo
    names = zoo.list_models()
try:
    zoo.create_model("broken")
    error = ""
except zoo.ZooError as raised:
    error = str(raised)
print(json.dumps({
    "names": names, "error": error, "warnings": [str(each.message) for each in caught],
    "years": [zoo.model_info(name).year for name in ("tiny", "small", "other")],
    "resnet18": type(zoo.create_model("resnet18")).__name__,
}))
"""


def test_models_of_other_packages_are_found_and_bad_ones_left_out_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "foreign_nets.py").write_text(FOREIGN)
    (tmp_path / "quitting_nets.py").write_text("raise SystemExit(1)")
    distribution = tmp_path / "foreign_nets-1.0.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign-nets\nVersion: 1.0\n")
    (distribution / "entry_points.txt").write_text(ENTRY_POINTS)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(zoo.__file__).parents[1]}"}
    done = subprocess.run(
        [sys.executable, "-c", LIST], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)  # nothing that the package prints is mixed in
    assert {"tiny", "small", "other", "another", "broken", "lenet5"} <= set(found["names"])
    assert not {"number", "absent", "quits"} & set(found["names"])
    assert found["years"] == [1999, 1999, None]
    assert found["resnet18"] == "ResNet"  # the first one keeps its name
    left_out = " ".join(found["warnings"])
    assert all(f"the model {name!r}" in left_out for name in ("resnet18", "number", "absent", "quits"))
    assert len(found["warnings"]) == 4
    assert "'broken', of another package, cannot be built (KeyError: 'weights')" in found["error"]
