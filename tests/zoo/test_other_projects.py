"""Checkpoints as other projects write them give those projects' logits, or a refusal: never other numbers.

The networks of other zoos are written from their published descriptions, with random weights and statistics.
"""

import re
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from other_networks import OtherResNet, assert_same, logits, randomize, saved, scramble
from torch import nn

from zoo import ZooError, create_model, loaded_weights


def akamaster(head: str = "linear") -> nn.Module:
    return randomize(OtherResNet((16, 32, 64), 3, "shortcut", projection=False, head=head))


def kuangliu() -> nn.Module:
    return randomize(OtherResNet((64, 128, 256, 512), 2, "shortcut", projection=True))


def test_akamasters_resnet20(tmp_path: Path) -> None:
    theirs = nn.DataParallel(akamaster())
    path = saved({"state_dict": theirs.state_dict(), "best_prec1": 91.7}, tmp_path)
    model = create_model("resnet20", pretrained=path)
    assert_same(model, theirs.module)
    report = loaded_weights(model)
    assert report is not None
    assert (report.by_position, report.fresh, report.dropped) == (False, (), ())
    assert "shortcut_padding=both was taken" in report.summary()
    assert (logits(create_model("resnet20,shortcut_padding=end", pretrained=path)) - logits(theirs)).abs().max() > 0.01


def test_where_the_file_does_not_tell_the_padding_a_note_says_so(tmp_path: Path) -> None:
    theirs = akamaster(head="linear")
    path = saved(theirs.state_dict(), tmp_path)  # the names alone, which others give to networks that pad at the end
    assert "need shortcut_padding=both" in loaded_weights(create_model("resnet20", pretrained=path)).summary()
    chosen = create_model("resnet20,shortcut_padding=both", pretrained=path)
    assert_same(chosen, theirs)
    assert loaded_weights(chosen).notes == ("the head 'fc' was found under the name 'linear'",)


def test_kuangliu_resnet18(tmp_path: Path) -> None:
    theirs = nn.DataParallel(kuangliu())
    model = create_model("resnet18", pretrained=saved({"net": theirs.state_dict(), "acc": 95.4, "epoch": 3}, tmp_path))
    assert_same(model, theirs.module)
    report = loaded_weights(model)
    assert report.by_position
    assert "122 tensors" in report.summary()
    assert "by position" in report.summary()


class Separable(nn.Module):
    def __init__(self, chans: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(chans, chans, 3, stride, 1, groups=chans, bias=False)
        self.bn1 = nn.BatchNorm2d(chans)
        self.conv2 = nn.Conv2d(chans, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class OtherMobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        widths = [64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
        halves = {1, 3, 5, 11}
        pairs = enumerate(zip([32, *widths], widths, strict=False))
        self.layers = nn.Sequential(*(Separable(*pair, 2 if index in halves else 1) for index, pair in pairs))
        self.linear = nn.Linear(1024, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.layers(F.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


def test_kuangliu_mobilenet(tmp_path: Path) -> None:
    theirs = randomize(OtherMobileNet())
    path = saved({"net": theirs.state_dict()}, tmp_path)
    assert_same(create_model("mobilenet_v1,act=relu", pretrained=path), theirs)
    with pytest.raises(ZooError, match=r"act=rely is not possible.*Did you mean 'relu"):
        create_model("mobilenet_v1,act=rely")


def test_chenyaofos_resnet20_needs_projections_and_the_error_says_how(tmp_path: Path) -> None:
    theirs = randomize(OtherResNet((16, 32, 64), 3, "downsample", projection=True, head="fc"))
    path = saved(theirs.state_dict(), tmp_path)
    with pytest.raises(ZooError, match="shortcut=projection"):
        create_model("resnet20", pretrained=path)
    assert_same(create_model("resnet20,shortcut=projection", pretrained=path), theirs)


def lukemelas(name: str) -> str:
    """Names of EfficientNet-PyTorch for timm's; blocks are numbered through."""
    starts = [0, 1, 3, 5, 8, 11, 15]
    name = re.sub(r"^blocks\.(\d)\.(\d)\.", lambda m: f"_blocks.{starts[int(m[1])] + int(m[2])}.", name)
    block = re.match(r"_blocks\.(\d+)\.", name)
    if block and block[1] == "0":
        words = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    elif block:
        words = {"conv_pwl": "_project_conv", "conv_pw": "_expand_conv", "conv_dw": "_depthwise_conv"}
        words |= {"bn1": "_bn0", "bn2": "_bn1", "bn3": "_bn2"}
    else:
        words = {
            "conv_stem": "_conv_stem",
            "bn1": "_bn0",
            "conv_head": "_conv_head",
            "bn2": "_bn1",
            "classifier": "_fc",
        }
    return re.sub(r"\w+", lambda m: words.get(m[0], m[0]), name)


def test_an_efficientnet_of_lukemelas_goes_into_timms(tmp_path: Path) -> None:
    theirs = randomize(timm.create_model("tf_efficientnet_lite0", num_classes=10))
    renamed = {lukemelas(name): tensor for name, tensor in theirs.state_dict().items()}
    assert not renamed.keys() & theirs.state_dict().keys()
    model = create_model("timm/tf_efficientnet_lite0", 10, 96, pretrained=saved(renamed, tmp_path))
    assert_same(model, theirs, 96)
    assert "296 tensors" in loaded_weights(model).summary()
    assert loaded_weights(model).by_position
    five = create_model("timm/tf_efficientnet_lite0", 5, 96, pretrained=saved(renamed, tmp_path))
    assert loaded_weights(five).fresh == ("classifier.weight", "classifier.bias")
    assert set(loaded_weights(five).dropped) == {"_fc.weight", "_fc.bias"}


@pytest.mark.parametrize(("name", "size", "extra"), [("inception_v3", 96, 14), ("googlenet", 64, 20)])
def test_auxiliary_heads_are_dropped_and_official_weights_transform_their_input(
    name: str, size: int, extra: int, tmp_path: Path
) -> None:
    make = getattr(torchvision.models, name)
    theirs = randomize(make(weights=None, init_weights=False, aux_logits=True, transform_input=True))
    path = saved(theirs.state_dict(), tmp_path)
    model = create_model(f"torchvision/{name}", 1000, size, pretrained=path)
    assert_same(model, theirs, size)
    auxiliary = [key for key in theirs.state_dict() if key.lower().startswith("aux")]
    assert set(loaded_weights(model).dropped) == set(auxiliary)
    assert len(auxiliary) == extra
    assert "transform_input=true was taken" in loaded_weights(model).summary()
    theirs.transform_input = False
    assert_same(create_model(f"torchvision/{name},transform_input=false", 1000, size, pretrained=path), theirs, size)
    few = create_model(f"torchvision/{name}", 10, size, pretrained=path)
    assert few.transform_input
    assert loaded_weights(few).fresh == ("fc.weight", "fc.bias")


def test_lraspp_is_built_and_has_two_heads(tmp_path: Path) -> None:
    theirs = randomize(torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=4))
    path = saved({"model": theirs.state_dict()}, tmp_path)
    assert_same(create_model("torchvision/lraspp_mobilenet_v3_large", 4, 64, pretrained=path), theirs, 64)
    other = create_model("torchvision/lraspp_mobilenet_v3_large", 6, 64, pretrained=path)
    assert len(loaded_weights(other).fresh) == 4


TORCHVISION = {
    "resnet34": ("resnet34", 64),
    "vgg11_bn": ("vgg11_bn", 32),
    "mobilenet_v2": ("mobilenet_v2", 64),
    "torchvision/squeezenet1_1": ("squeezenet1_1", 64),
    "torchvision/densenet121": ("densenet121", 64),
    "torchvision/shufflenet_v2_x0_5": ("shufflenet_v2_x0_5", 64),
    "torchvision/googlenet": ("googlenet", 64),
    "torchvision/mnasnet0_5": ("mnasnet0_5", 64),
    "torchvision/vit_b_32": ("vit_b_32", 224),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_weights_under_names_that_say_nothing(name: str, tmp_path: Path) -> None:
    """Loaded by position where the network is one sequence of layers, refused where branches could be swapped."""
    reference, size = TORCHVISION[name]
    theirs = randomize(torchvision.models.get_model(reference, weights=None, num_classes=10, **OPTIONS.get(name, {})))
    path = saved(scramble(theirs.state_dict()), tmp_path)
    input_size = size if "/" in name else 224
    if name in SEQUENCES:
        model = create_model(name, 10, input_size, pretrained=path)
        assert loaded_weights(model).by_position
        assert_same(model, theirs, size)
    else:
        with pytest.raises(ZooError, match=r"By position they (are ambiguous|do not fit)"):
            create_model(name, 10, input_size, pretrained=path)


OPTIONS = {"torchvision/googlenet": {"aux_logits": False, "init_weights": False}}

SEQUENCES = {
    "vgg11_bn",
    "mobilenet_v2",
    "torchvision/mnasnet0_5",
    "torchvision/densenet121",
    "torchvision/squeezenet1_1",
}


def test_parallel_branches_of_equal_shape_are_refused_by_position(tmp_path: Path) -> None:
    """In ResNet-50's first block the shortcut and the last convolution have the same shape."""
    theirs = randomize(torchvision.models.resnet50(num_classes=10))
    path = saved(scramble(theirs.state_dict()), tmp_path)
    with pytest.raises(ZooError, match=r"ambiguous: .*'layer1.0.(conv3|bn3)' and 'layer1.0.downsample"):
        create_model("resnet50", 10, 96, pretrained=path)
    named = {name.replace("downsample", "skip").replace("bn", "norm"): t for name, t in theirs.state_dict().items()}
    assert_same(create_model("resnet50", 10, 96, pretrained=saved(named, tmp_path)), theirs, 96)
