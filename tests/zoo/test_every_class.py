"""Every class of networks of timm and torchvision, by one small member each."""

import pytest
import torch
from foreign_members import timm_members, torchvision_members
from torch import nn

from zoo import create_meta_model, model_info
from zoo.meta import device_of
from zoo.pretrained import head_names

CLASSES = 7
LIBRARIES = {"timm": (timm_members, 90), "torchvision": (torchvision_members, 19)}


@pytest.fixture(scope="module", params=LIBRARIES)
def members(request: pytest.FixtureRequest) -> dict[str, tuple[nn.Module, bool]]:
    """The networks by name, and whether they are classifiers; some of timm's are encoders that put out features."""
    find, at_least = LIBRARIES[request.param]
    names = find()
    assert len(names) >= at_least
    return {
        name: (create_meta_model(name, CLASSES, model_info(name).input_size), not network.endswith("Encoder"))
        for network, name in names.items()
    }


def test_is_built_without_memory_and_takes_an_image(members: dict[str, tuple[nn.Module, bool]]) -> None:
    for name, (model, classifies) in members.items():
        assert device_of(model).type == "meta", name
        size = model_info(name).input_size
        with torch.device("meta"), torch.no_grad():
            output = model.eval()(torch.empty(2, 3, size, size))
        output = output["out"] if isinstance(output, dict) else output
        assert output.shape[:2] == (2, CLASSES if classifies else output.shape[1]), name


def test_its_heads_are_the_layers_with_as_many_outputs_as_classes(members: dict[str, tuple[nn.Module, bool]]) -> None:
    for name, (model, classifies) in members.items():
        layers = {part: layer for part, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
        if classifies:
            assert set(head_names(model)) == {part for part, each in layers.items() if len(each.weight) == CLASSES}, (
                name
            )
