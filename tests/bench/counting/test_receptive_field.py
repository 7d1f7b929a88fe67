from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bench.counting.receptive_field import ReceptiveField, count_receptive_field, probe_receptive_field
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


class Network(nn.Module):
    """A forward pass written as a function of the image and of the layers."""

    def __init__(self, run: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.run, self.layers = run, nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> Any:
        return self.run(x, *self.layers)


def conv(in_chans: int = 3, out_chans: int = 4, kernel: int = 3) -> nn.Module:
    return nn.Conv2d(in_chans, out_chans, kernel, padding=kernel // 2)


def space_to_depth(x: torch.Tensor, block: int = 4) -> torch.Tensor:
    count, chans, height, width = x.shape
    x = x.view(count, chans, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(count, chans * block**2, height // block, width // block)


def through_windows(x: torch.Tensor, side: int = 8) -> torch.Tensor:
    """Cut into windows, doubled, and put together again."""
    count, chans, height, width = x.shape
    x = x.view(count, chans, height // side, side, width // side, side)
    windows = x.permute(0, 2, 4, 3, 5, 1).reshape(-1, side**2, chans) * 2
    x = windows.view(count, height // side, width // side, side, side, chans).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(count, chans, height, width)


def through_tokens(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    return layer(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])


def by_slices(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[..., row::2, column::2] for row in (0, 1) for column in (0, 1)], 1)


REARRANGED: dict[str, tuple[nn.Module, int, float]] = {
    "space to depth": (Network(lambda x, a, b: b(space_to_depth(a(x))), conv(out_chans=3), conv(48)), 14, 4),
    "pixel unshuffle": (nn.Sequential(conv(out_chans=3), nn.PixelUnshuffle(2), conv(12)), 8, 2),
    "pixel shuffle": (nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), nn.PixelShuffle(2), conv(4)), 8, 2),
    "slices": (Network(lambda x, a: a(by_slices(x)), conv(12)), 6, 2),
    "unfold": (
        Network(lambda x, a: a(F.unfold(x, 3, padding=1, stride=2).view(len(x), 27, 32, 32)), conv(27)), 7, 2,
    ),
    "unfold of a tensor": (
        Network(
            lambda x, a: a(x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 1, 4, 5, 2, 3).reshape(len(x), 48, 16, 16)),
            conv(48),
        ), 12, 4,
    ),
    "power-average pooling": (nn.Sequential(conv(out_chans=3), nn.LPPool2d(2, 3, stride=2)), 5, 2),
    "flip": (Network(lambda x, a, b: b(a(x).flip(-1)), conv(), conv(4, 4, 5)), 7, 1),
    "roll": (Network(lambda x, a, b: b(a(x).roll((2, 2), (2, 3))), conv(), conv(4, 4, 5)), 7, 1),
    "transposed image": (Network(lambda x, a: a(x.mT), nn.Conv2d(3, 4, (1, 5), padding=(0, 2))), 5, 1),
    "nearest": (nn.Sequential(nn.Conv2d(3, 3, 4, stride=4), nn.Upsample(scale_factor=2), conv()), 8, 2),
    "tokens": (Network(lambda x, a, b, c: c(through_tokens(a(x), b)), conv(), nn.Linear(4, 4), conv(4)), 5, 1),
    "windows": (Network(lambda x, a, b: b(through_windows(a(x))), conv(), conv(4)), 5, 1),
    "chunks": (Network(lambda x, a, b: b(torch.cat(a(x).chunk(2, 1)[::-1], 1)), conv(), conv(4)), 5, 1),
    "reflection": (nn.Conv2d(3, 4, 5, padding=2, padding_mode="reflect"), 5, 1),
    "same": (nn.Conv2d(3, 4, (3, 5), padding="same", dilation=2), 9, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", REARRANGED)
def test_maps_that_are_rearranged_are_traced_as_the_gradient_is(name: str) -> None:
    model, size, stride = REARRANGED[name]
    field = count_receptive_field(model, (3, 64, 64))
    assert (field.size, field.stride, field.whole_input) == (size, stride, False)
    assert probe_receptive_field(model, (3, 64, 64)).size == size


def test_interpolation_between_pixels_is_an_upper_bound() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 4, stride=4), nn.Upsample(scale_factor=2, mode="bilinear"), conv())
    size = count_receptive_field(model, (3, 64, 64)).size
    assert size is not None
    assert probe_receptive_field(model, (3, 64, 64)).size <= size <= 16


UNTRACEABLE: dict[str, nn.Module] = {
    "deformable": Network(
        lambda x, a, b: b(x, a(x)), conv(out_chans=18), torchvision.ops.DeformConv2d(3, 4, 3, padding=1)
    ),
    "sampled": Network(lambda x, a: F.grid_sample(a(x), x[:, :2].permute(0, 2, 3, 1)), conv()),
    "through NumPy": Network(lambda x, a: a(torch.from_numpy(x.numpy())), conv()),
}


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_what_cannot_be_traced_is_not_known(name: str) -> None:
    field = count_receptive_field(UNTRACEABLE[name], (3, 32, 32))
    assert (field.size, field.stride, field.whole_input) == (None, None, False)


def test_an_image_that_is_flattened_is_seen_whole() -> None:
    field = count_receptive_field(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)), (3, 32, 32))
    assert (field.size, field.whole_input) == (32, True)


def test_attention_over_all_positions_is_flagged() -> None:
    def run(x: torch.Tensor, patches: nn.Module, attention: nn.Module) -> torch.Tensor:
        tokens = patches(x).flatten(2).transpose(1, 2)
        return attention(tokens, tokens, tokens)[0].mean(1)

    model = Network(run, nn.Conv2d(3, 8, 8, stride=8), nn.MultiheadAttention(8, 2, batch_first=True))
    field = count_receptive_field(model, (3, 64, 64))
    assert (field.size, field.stride, field.whole_input) == (8, 8, True)
    patches, attention = (next(each for each in field.layers if each.name == f"layers.{i}") for i in (0, 1))
    assert (patches.whole_input, attention.whole_input) == (False, True)


def test_space_to_depth_as_the_stem_of_a_published_network() -> None:
    field = count_receptive_field(on_meta("timm/tresnet_m", 224), (3, 224, 224))
    # Its stem: blocks of 4×4 pixels, then a 3×3 convolution over them.
    assert layer_size(field, "body.s2d") == (4, 4)
    assert layer_size(field, "body.conv1") == (12, 4)
    assert field.size is not None
    assert field.size > 224
    assert field.stride == 32


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
