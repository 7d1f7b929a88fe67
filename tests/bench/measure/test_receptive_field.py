import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bench.measure.receptive_field import ReceptiveField, count_receptive_field, probe_receptive_field
from zoo import create_model


def layer_size(field: ReceptiveField, name: str) -> tuple[int, float]:
    return next((layer.size, layer.stride) for layer in field.layers if layer.name == name)


def on_meta(name: str, input_size: int, num_classes: int = 10) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, num_classes, input_size)


def test_three_3x3_convolutions_see_seven_pixels() -> None:
    three = nn.Sequential(*(nn.Conv2d(3, 3, 3) for _ in range(3)))
    assert count_receptive_field(three, (3, 32, 32)) == count_receptive_field(three, (3, 64, 64))
    field = count_receptive_field(three, (3, 32, 32))
    assert (field.size, field.stride, field.whole_input) == (7, 1, False)
    assert [layer.size for layer in field.layers] == [3, 5, 7, 7]  # the last is the whole Sequential
    assert probe_receptive_field(three, (3, 32, 32)).size == 7


@pytest.mark.parametrize("name", ["vgg16", "torchvision/vgg16"])
def test_vgg16_s_last_pooling_sees_212_pixels(name: str) -> None:
    field = count_receptive_field(on_meta(name, 224), (3, 224, 224))
    assert layer_size(field, "features.30") == (212, 32)
    assert (field.size, field.stride) == (212, 32)


@pytest.mark.parametrize("name", ["resnet50", "torchvision/resnet50"])
def test_resnet50_s_last_map_sees_427_pixels(name: str) -> None:
    field = count_receptive_field(on_meta(name, 224), (3, 224, 224))
    assert layer_size(field, "layer4") == (427, 32)
    assert (field.size, field.whole_input) == (427, True)
    assert layer_size(field, "fc")[0] == 224  # pooled: the whole image, and no more than that


# Published in Araujo, Norris, Sim 2019, "Computing receptive fields of convolutional neural networks", Distill.
@pytest.mark.parametrize(
    ("name", "size"), [("torchvision/alexnet", 195), ("mobilenet_v1", 315), ("torchvision/vgg16", 212)]
)
def test_published_receptive_fields(name: str, size: int) -> None:
    assert count_receptive_field(on_meta(name, 224), (3, 224, 224)).size == size


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("mobilenet_v1_025", "stages.3"),
        ("mobilenet_v2", "features.6"),
        ("deeplab_resnet18", "backbone.layer3"),
        ("resnet20", "layer3"),
        ("plain20", "layer3"),
        ("vgg11", "features.15"),
        ("lenet5_1998", "s4"),
        ("alexnet", "features.8"),
    ],
)
def test_gradient_probe_confirms_the_composition(name: str, layer: str) -> None:
    shape = (3, 160, 160)
    model = create_model(name, 10, 64)
    probed = probe_receptive_field(model, shape, layer)
    assert not probed.clipped
    assert probed.size == layer_size(count_receptive_field(model, shape), layer)[0]


def test_resnet50_is_confirmed_by_gradient() -> None:
    probed = probe_receptive_field(torchvision.models.resnet50(), (3, 481, 481), "layer4")
    assert (probed.size, probed.clipped) == (427, False)


def test_a_field_larger_than_the_image_is_clipped() -> None:
    probed = probe_receptive_field(create_model("vgg11"), (3, 64, 64), "features")
    assert probed.clipped
    assert probed.size <= 64


Step = tuple[str, int, int, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["conv", "max", "average"]),
        st.integers(1, 4),  # kernel
        st.integers(1, 2),  # stride
        st.integers(0, 1),  # padding
        st.integers(1, 3),  # dilation, of convolutions
    ),
    min_size=1,
    max_size=4,
)


def build(step: Step) -> nn.Module:
    kind, kernel, stride, padding, dilation = step
    if kind == "conv":
        return nn.Sequential(nn.Conv2d(1, 1, kernel, stride, padding, dilation), nn.ReLU())
    pool = nn.MaxPool2d if kind == "max" else nn.AvgPool2d
    return pool(kernel, stride, min(padding, kernel // 2))


@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_chains_follow_the_recurrence_and_the_gradient(steps: list[Step]) -> None:
    size, jump = 1, 1
    for kind, kernel, stride, _, dilation in steps:
        size += (kernel - 1) * (dilation if kind == "conv" else 1) * jump
        jump *= stride
    model = nn.Sequential(*map(build, steps))
    shape = (1, 160, 160)
    field = count_receptive_field(model, shape)
    assert (field.size, field.stride) == (size, jump)
    assert probe_receptive_field(model, shape).size == size


class Branches(nn.Module):
    def __init__(self, join: str) -> None:
        super().__init__()
        self.small = nn.Conv2d(3, 4, 1)
        self.large = nn.Conv2d(3, 4, 7, padding=3)
        self.join = join

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        small, large = self.small(x), self.large(x)
        return small + large if self.join == "add" else torch.cat([small, large], dim=1)


@pytest.mark.parametrize("join", ["add", "cat"])
def test_branches_take_the_maximum(join: str) -> None:
    assert count_receptive_field(Branches(join), (3, 32, 32)).size == 7


class Gate(nn.Module):
    """Squeeze-and-excitation: all positions act on each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return x * x.mean((2, 3), keepdim=True).sigmoid()


def test_what_mixes_all_positions_is_flagged() -> None:
    gated = count_receptive_field(Gate(), (3, 32, 32))
    assert (gated.size, gated.whole_input) == (3, True)
    assert probe_receptive_field(Gate(), (3, 32, 32)).size == 32
    local = count_receptive_field(nn.Conv2d(3, 4, 3), (3, 32, 32))
    assert (local.size, local.whole_input) == (3, False)


class Permuted(nn.Module):
    """A linear layer over the channels of a map whose channels come last, as in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 5)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return out


def test_a_linear_layer_over_channels_sees_no_more_pixels() -> None:
    field = count_receptive_field(Permuted(), (3, 32, 32))
    assert (field.size, field.whole_input) == (5, False)


def test_upsampling_halves_the_stride() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.Upsample(scale_factor=2, mode="nearest"))
    field = count_receptive_field(model, (3, 32, 32))
    assert (field.size, field.stride) == (4, 2)
    transposed = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.ConvTranspose2d(4, 4, 2, stride=2))
    assert count_receptive_field(transposed, (3, 32, 32)).stride == 2


def test_shuffled_channels_keep_their_place() -> None:
    field = count_receptive_field(on_meta("torchvision/shufflenet_v2_x0_5", 224), (3, 224, 224))
    assert field.stride == 32
    assert not next(layer for layer in field.layers if layer.name == "stage4").whole_input or field.size > 224


def test_the_model_is_left_as_it_was() -> None:
    model = create_model("resnet20").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    count_receptive_field(model, (3, 32, 32))
    probe_receptive_field(model, (3, 96, 96), "layer1")
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_wrong_layers_and_inputs_are_named() -> None:
    with pytest.raises(ValueError, match="no layer 'layer9'"):
        probe_receptive_field(create_model("resnet20"), (3, 32, 32), "layer9")
    with pytest.raises(ValueError, match="is no map"):
        probe_receptive_field(create_model("resnet20"), (3, 32, 32), "fc")
    with pytest.raises(ValueError, match="cannot take input of shape 5×32×32"):
        count_receptive_field(create_model("resnet20"), (5, 32, 32))
