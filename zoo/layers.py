"""Building blocks that two or more families share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

Shortcut = Literal["projection", "zero_pad", "none"]
Padding = Literal["end", "both"]


def drop_rate_of_head(drop_rate: float | None, small: bool) -> float:
    """Of the head of AlexNet and VGG: 0.5 where it is left open. Their small-image form has a head without dropout.

    Raises `ValueError` for a rate that this would leave out.
    """
    if small and drop_rate:
        raise ValueError("the head for small images has no dropout; leave the option out, or set it to 0")
    return 0.5 if drop_rate is None else drop_rate


class ConvNormAct(nn.Sequential):
    """Convolution, batch norm, ReLU: the block of nearly every network since 2015 (Ioffe and Szegedy 2015).

    Maps ``N×in_chans×H×W`` to ``N×out_chans×H/stride×W/stride``: padding keeps the size of the map (divided by
    ``stride``, rounded up) for odd kernels at any dilation.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: int = 1,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        act: type[nn.Module] | None = nn.ReLU,
        batch_norm: bool = True,
    ) -> None:
        padding = dilation * (kernel_size - 1) // 2
        layers: list[nn.Module] = [
            nn.Conv2d(in_chans, out_chans, kernel_size, stride, padding, dilation, groups, bias=bias),
            nn.BatchNorm2d(out_chans) if batch_norm else nn.Identity(),
        ]
        if act is not None:
            layers.append(act(inplace=True))
        super().__init__(*layers)


class DepthwiseSeparableConv(nn.Module):
    """A factorised 3×3 convolution: one filter per channel, then a 1×1 convolution that mixes the channels.

    k²C + C·C' weights instead of k²·C·C' (Sifre 2014). MobileNet puts batch norm and an activation after each
    half (``act``); Xception has nothing in between and leaves the norm to its block (``act=None``).
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        act: type[nn.Module] | None = nn.ReLU,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel_size - 1) // 2
        self.depthwise = nn.Conv2d(
            in_chans, in_chans, kernel_size, stride, padding, dilation, groups=in_chans, bias=False
        )
        self.norm1 = nn.Identity() if act is None else nn.BatchNorm2d(in_chans)
        self.act1 = nn.Identity() if act is None else act(inplace=True)
        self.pointwise = nn.Conv2d(in_chans, out_chans, 1, bias=False)
        self.norm2 = nn.Identity() if act is None else nn.BatchNorm2d(out_chans)
        self.act2 = nn.Identity() if act is None else act(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``N×in_chans×H×W`` to ``N×out_chans×H/stride×W/stride``."""
        x = self.act1(self.norm1(self.depthwise(x)))
        mixed: torch.Tensor = self.act2(self.norm2(self.pointwise(x)))
        return mixed


class ZeroPadShortcut(nn.Module):
    """The shortcut without parameters (He et al. 2015, option A): every ``stride``-th pixel, new channels zero.

    The paper does not say where the new channels go: ``padding="end"`` puts them after the old ones, ``"both"`` half
    before and half after, as akamaster/pytorch_resnet_cifar10 does.
    """

    def __init__(self, in_chans: int, out_chans: int, stride: int, padding: Padding = "end") -> None:
        super().__init__()
        self.subsample = nn.AvgPool2d(kernel_size=1, stride=stride)
        self.extra_chans = out_chans - in_chans
        self.padding: Padding = padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``N×in_chans×H×W`` to ``N×out_chans×H/stride×W/stride``."""
        before = self.extra_chans // 2 if self.padding == "both" else 0
        return F.pad(self.subsample(x), (0, 0, 0, 0, before, self.extra_chans - before))


class _ResidualBlock(nn.Module):
    """What the two residual blocks share: the shortcut around them. Names of parts are torchvision's."""

    def __init__(self, in_chans: int, out_chans: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.has_shortcut = shortcut != "none"
        self.downsample: nn.Module | None = None
        if self.has_shortcut and (stride != 1 or in_chans != out_chans):
            self.downsample = (
                ConvNormAct(in_chans, out_chans, stride=stride, act=None)
                if shortcut == "projection"
                else ZeroPadShortcut(in_chans, out_chans, stride)
            )

    def add_shortcut(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The block's sum: its convolutions' output plus its input, brought to the same shape."""
        if not self.has_shortcut:
            return residual
        return residual + (x if self.downsample is None else self.downsample(x))


class BasicBlock(_ResidualBlock):
    """Two 3×3 convolutions around which the input is added (He et al. 2015, figure 5 left).

    Where shapes differ the shortcut is a 1×1 convolution (``"projection"``) or subsampling with zero channels
    (``"zero_pad"``); ``"none"`` leaves the shortcut out and gives the paper's plain network.
    """

    expansion = 1

    def __init__(
        self, in_chans: int, width: int, stride: int = 1, dilation: int = 1, shortcut: Shortcut = "projection"
    ) -> None:
        super().__init__(in_chans, width, stride, shortcut)
        self.conv1 = nn.Conv2d(in_chans, width, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``N×in_chans×H×W`` to ``N×width×H/stride×W/stride``."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        total: torch.Tensor = self.relu(self.add_shortcut(out, x))
        return total


class Bottleneck(_ResidualBlock):
    """1×1, 3×3, 1×1 convolutions around which the input is added (He et al. 2015, figure 5 right).

    The stride sits on the 3×3 convolution, not on the first 1×1 as in the paper: "ResNet v1.5", which is what
    torchvision and nearly all published weights are.
    """

    expansion = 4

    def __init__(
        self, in_chans: int, width: int, stride: int = 1, dilation: int = 1, shortcut: Shortcut = "projection"
    ) -> None:
        out_chans = width * self.expansion
        super().__init__(in_chans, out_chans, stride, shortcut)
        self.conv1 = nn.Conv2d(in_chans, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_chans, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_chans)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``N×in_chans×H×W`` to ``N×4·width×H/stride×W/stride``."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        total: torch.Tensor = self.relu(self.add_shortcut(out, x))
        return total


class ImagePooling(nn.Sequential):
    """The image-level branch of `ASPP`: global average, 1×1 convolution, spread over the map again."""

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), *ConvNormAct(in_chans, out_chans))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``N×in_chans×H×W`` to ``N×out_chans×H×W``, constant over the map."""
        pooled = x
        for layer in self:
            pooled = layer(pooled)
        return F.interpolate(pooled, size=x.shape[-2:], mode="bilinear", align_corners=False)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: the same map seen at several dilations at once (Chen et al. 2017).

    Branches side by side: a 1×1 convolution, one dilated 3×3 convolution per rate, and the pooled image; their
    concatenation is projected to ``out_chans``. Rates at or above the map's size degenerate to 1×1 convolutions:
    only the centre of their kernel sees more than padding.
    """

    def __init__(self, in_chans: int, rates: Sequence[int], out_chans: int = 256, drop_rate: float = 0.5) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [
                ConvNormAct(in_chans, out_chans),
                *(ConvNormAct(in_chans, out_chans, kernel_size=3, dilation=rate) for rate in rates),
                ImagePooling(in_chans, out_chans),
            ]
        )
        self.project = nn.Sequential(*ConvNormAct(len(self.convs) * out_chans, out_chans), nn.Dropout(drop_rate))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``N×in_chans×H×W`` to ``N×out_chans×H×W``."""
        out: torch.Tensor = self.project(torch.cat([branch(x) for branch in self.convs], dim=1))
        return out


def init_kaiming(model: nn.Module) -> None:
    """He et al. 2015 (arXiv:1502.01852): convolutions normal with variance 2/fan_out, norms 1 and 0.

    Linear layers keep PyTorch's uniform(±1/sqrt(fan_in)), biases of convolutions become 0. For a
    grouped convolution the fan-out is that of one group, which PyTorch's own function ignores: it would leave depthwise
    weights close to zero.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels // module.groups * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
