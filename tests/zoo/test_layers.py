"""The building blocks, and the identities that textbooks state of convolutions, on real layers."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bench.counting.complexity import count_complexity, count_params
from bench.counting.receptive_field import count_receptive_field, probe_receptive_field
from zoo.layers import (
    ASPP,
    BasicBlock,
    Bottleneck,
    ConvNormAct,
    DepthwiseSeparableConv,
    ImagePooling,
    Shortcut,
    ZeroPadShortcut,
)

C = 12


def test_two_3x3_see_what_one_5x5_sees_with_fewer_weights() -> None:
    two = nn.Sequential(nn.Conv2d(C, C, 3, bias=False), nn.Conv2d(C, C, 3, bias=False))
    one = nn.Conv2d(C, C, 5, bias=False)
    assert count_params(two) == 18 * C**2
    assert count_params(one) == 25 * C**2
    shape = (C, 16, 16)
    assert count_receptive_field(two, shape).size == count_receptive_field(one, shape).size == 5
    assert two(torch.zeros(1, *shape)).shape == one(torch.zeros(1, *shape)).shape


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_depthwise_separable_against_standard(kernel_size: int) -> None:
    separable = DepthwiseSeparableConv(C, C, kernel_size, act=None)
    standard = nn.Conv2d(C, C, kernel_size, padding=kernel_size // 2, bias=False)
    assert count_params(separable) == kernel_size**2 * C + C**2
    assert count_params(standard) == kernel_size**2 * C**2
    macs = [count_complexity(layer, (C, 8, 8)).macs for layer in (separable, standard)]
    assert macs == [64 * count_params(separable), 64 * count_params(standard)]


def test_depthwise_separable_is_a_standard_convolution_of_rank_one() -> None:
    separable = DepthwiseSeparableConv(4, 6, act=None)
    kernel = torch.einsum("oi,ikl->oikl", separable.pointwise.weight[:, :, 0, 0], separable.depthwise.weight[:, 0])
    images = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(separable(images), F.conv2d(images, kernel, padding=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dilation", "covers"), [(1, 3), (2, 5), (4, 9)])
def test_dilated_3x3_covers_a_larger_square(dilation: int, covers: int) -> None:
    layer = ConvNormAct(3, 4, kernel_size=3, dilation=dilation)
    assert count_receptive_field(layer, (3, 32, 32)).size == covers
    assert probe_receptive_field(layer, (3, 32, 32)).size == covers
    assert count_params(layer) == count_params(ConvNormAct(3, 4, kernel_size=3))


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 20),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 4),
    padding=st.integers(0, 4),
    dilation=st.integers(1, 3),
)
def test_output_size(height: int, kernel: int, stride: int, padding: int, dilation: int) -> None:
    reach = dilation * (kernel - 1) + 1
    layer = nn.Conv2d(1, 1, kernel, stride, padding, dilation, device="meta")
    image = torch.empty(1, 1, height, height, device="meta")
    if height + 2 * padding < reach:
        with pytest.raises(RuntimeError):
            layer(image)
    else:
        assert layer(image).shape[-1] == (height - reach + 2 * padding) // stride + 1


@settings(max_examples=25, deadline=None)
@given(
    kernel=st.sampled_from([1, 2, 3]),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_convolution_is_its_definition(kernel: int, stride: int, padding: int, dilation: int, seed: int) -> None:
    torch.manual_seed(seed)
    image, weight = torch.randn(2, 6, 6, dtype=torch.float64), torch.randn(3, 2, kernel, kernel, dtype=torch.float64)
    padded = F.pad(image, [padding] * 4)
    got = F.conv2d(image[None], weight, stride=stride, padding=padding, dilation=dilation)[0]
    for out, i, j in itertools.product(range(3), range(got.shape[1]), range(got.shape[2])):
        total = sum(
            float(weight[out, c, u, v] * padded[c, i * stride + u * dilation, j * stride + v * dilation])
            for c, u, v in itertools.product(range(2), range(kernel), range(kernel))
        )
        assert float(got[out, i, j]) == pytest.approx(total, abs=1e-9)


def test_weight_gradient_is_the_cross_correlation_of_input_and_output_gradient() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3, bias=False).double()
    images = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    out = layer(images)
    upstream = torch.randn_like(out)
    out.backward(upstream)
    # Images and channels change roles: the batch is summed over, as channels are in a convolution.
    correlation = F.conv2d(images.transpose(0, 1), upstream.transpose(0, 1)).transpose(0, 1)
    torch.testing.assert_close(layer.weight.grad, correlation)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [7, 8])
def test_conv_norm_act_keeps_the_size_or_divides_it_rounding_up(size: int, stride: int) -> None:
    for kernel_size, dilation in itertools.product((1, 3, 5), (1, 2)):
        layer = ConvNormAct(3, 4, kernel_size, stride, dilation)
        assert layer(torch.rand(2, 3, size, size)).shape == (2, 4, -(-size // stride), -(-size // stride))
    assert not any(isinstance(part, nn.ReLU) for part in ConvNormAct(3, 4, act=None))


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_block_projects_only_where_shapes_differ(block: type[BasicBlock] | type[Bottleneck]) -> None:
    chans = 8 * block.expansion
    assert block(chans, 8).downsample is None
    for changed in (block(chans, 16), block(chans, 8, stride=2)):
        assert isinstance(changed.downsample, ConvNormAct)
        assert changed.downsample[0].kernel_size == (1, 1)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_block_with_a_silent_last_norm_is_the_identity(block: type[BasicBlock] | type[Bottleneck]) -> None:
    chans = 4 * block.expansion
    layer = block(chans, 4)
    nn.init.zeros_(list(layer.children())[-1].weight if block is BasicBlock else layer.bn3.weight)
    images = torch.rand(2, chans, 6, 6)  # not negative: the last ReLU leaves it
    torch.testing.assert_close(layer(images), images)


@pytest.mark.parametrize("shortcut", ["zero_pad", "none"])
def test_block_without_projection_has_the_weights_of_its_convolutions_alone(shortcut: Shortcut) -> None:
    layer = BasicBlock(4, 8, stride=2, shortcut=shortcut)
    assert count_params(layer) == 9 * 4 * 8 + 9 * 8 * 8 + 4 * 8
    assert layer(torch.rand(2, 4, 8, 8)).shape == (2, 8, 4, 4)


def test_plain_block_adds_nothing() -> None:
    layer = BasicBlock(4, 4, shortcut="none")
    nn.init.zeros_(layer.bn2.weight)
    assert layer(torch.rand(2, 4, 6, 6)).abs().sum() == 0


def test_zero_pad_shortcut_takes_every_second_pixel_and_zero_channels() -> None:
    images = torch.rand(2, 3, 8, 8)
    out = ZeroPadShortcut(3, 5, stride=2)(images)
    assert torch.equal(out[:, :3], images[:, :, ::2, ::2])
    assert out[:, 3:].abs().sum() == 0


def test_dilated_block_keeps_the_map() -> None:
    for block in (BasicBlock, Bottleneck):
        layer = block(16, 16, dilation=2)
        assert layer(torch.rand(2, 16, 9, 9)).shape[-2:] == (9, 9)
        dilated = [m.dilation for m in layer.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert set(dilated) == {(2, 2)}


def test_image_pooling_is_constant_over_the_map() -> None:
    layer = ImagePooling(3, 4).eval()
    out = layer(torch.rand(2, 3, 5, 7))
    assert out.shape == (2, 4, 5, 7)
    torch.testing.assert_close(out, out[:, :, :1, :1].expand_as(out))


def test_aspp_rates_beyond_the_map_degenerate_to_1x1() -> None:
    torch.manual_seed(0)
    layer = ASPP(3, rates=(9,), out_chans=4).eval()
    branch = layer.convs[1]
    image = torch.rand(1, 3, 8, 8)
    centre = F.conv2d(image, branch[0].weight[:, :, 1:2, 1:2])
    torch.testing.assert_close(branch[0](image), centre)
    assert layer(image).shape == (1, 4, 8, 8)
