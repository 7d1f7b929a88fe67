"""The segmentation networks: what the output stride changes, and what it must not."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet50
from torchvision.models.segmentation import FCN
from torchvision.models.segmentation.fcn import FCNHead as ReferenceHead

from bench.counting.complexity import count_macs
from zoo import ZooError, create_model

STRIDES = (8, 16, 32)
SEGMENTERS = ["fcn_resnet18", "fcn_resnet50", "deeplabv3_resnet18", "deeplabv3_resnet50"]


def on_meta(name: str, input_size: int = 96, **options: object) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, 11, input_size, **options)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_the_output_stride_changes_the_map_and_no_parameter(name: str) -> None:
    shapes, sides, macs = [], [], []
    for stride in STRIDES:
        model = on_meta(name, output_stride=stride).eval()
        shapes.append({key: tuple(value.shape) for key, value in model.state_dict().items()})
        sides.append(model.backbone(torch.empty(1, 3, 96, 96, device="meta"))["layer4"].shape[-1])
        macs.append(count_macs(model, (3, 96, 96)))
    assert shapes[0] == shapes[1] == shapes[2]
    assert sides == [12, 6, 3]
    assert macs[0] > macs[1] > macs[2]


@pytest.mark.parametrize(("stride", "dilate"), [(16, [False, False, True]), (32, [False, False, False])])
def test_other_output_strides_of_fcn_resnet50_are_torchvision_s_too(stride: int, dilate: list[bool]) -> None:
    torch.manual_seed(0)
    ours = create_model("fcn_resnet50", 5, 96, output_stride=stride, aux_loss=False).eval()
    backbone = nn.Sequential()
    for name, child in resnet50(replace_stride_with_dilation=dilate).named_children():
        if name not in ("avgpool", "fc"):
            backbone.add_module(name, child)
    reference = FCN(_Named(backbone), ReferenceHead(2048, 5)).eval()
    state = {key.replace("backbone.", "backbone.layers."): value for key, value in ours.state_dict().items()}
    reference.load_state_dict(state)
    images = torch.randn(1, 3, 97, 97)
    with torch.no_grad():
        torch.testing.assert_close(ours(images)["out"], reference(images)["out"], atol=1e-5, rtol=0)


class _Named(nn.Module):
    """What torchvision's FCN wants of a backbone."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": self.layers(x)}


@pytest.mark.parametrize("name", ["fcn_resnet18", "deeplabv3_resnet18"])
@pytest.mark.parametrize("input_size", [32, 96])
def test_logits_are_at_the_images_size_and_the_auxiliary_head_is_an_option(name: str, input_size: int) -> None:
    images = torch.empty(2, 3, input_size, input_size, device="meta")
    assert {key: map_.shape for key, map_ in on_meta(name, input_size)(images).items()} == {
        "out": (2, 11, input_size, input_size)
    }
    both = on_meta(name, input_size, aux_loss=True)(images)
    assert both.keys() == {"out", "aux"}
    assert both["aux"].shape == both["out"].shape


def test_an_impossible_output_stride_is_named() -> None:
    with pytest.raises(ZooError, match="output_stride=4"):
        on_meta("fcn_resnet18", output_stride=4)


def test_the_rates_of_resnet50_halve_when_the_stride_doubles_as_in_the_paper() -> None:
    for stride, rates in ((8, [12, 24, 36]), (16, [6, 12, 18])):
        branches = on_meta("deeplabv3_resnet50", 520, output_stride=stride).classifier[0].convs
        assert [branch[0].dilation[0] for branch in branches[1:4]] == rates


@pytest.mark.parametrize("name", [*SEGMENTERS, "deeplab_resnet18"])
def test_a_recipe_without_dropout_leaves_none(name: str) -> None:
    def rates(**options: object) -> set[float]:
        return {module.p for module in on_meta(name, **options).modules() if isinstance(module, nn.Dropout)}

    assert rates() <= {0.1, 0.5}
    assert rates(drop_rate=0.0) == {0.0}
