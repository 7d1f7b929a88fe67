"""Xception: depthwise separable convolutions with residuals throughout (Chollet 2016, arXiv:1610.02357).

Known for: Inception's idea taken to its end. It beat Inception-v3 at equal size and became DeepLab-v3+'s backbone.

Checked against timm's ``legacy_xception``, whose weights are a port of the author's: no activation between the halves
of a separable convolution, and 3×3 max-pooling with padding 1 where Keras pads "same". Parts are named as there, but
a separable convolution's halves are ``depthwise`` and ``pointwise`` (`Xception.reference_keys`).

Small images (64 pixels or less): the stem and block 3 have stride 1 and the stem pads, so the middle flow works on 8×8
maps at 32 pixels (weiaicunzai/pytorch-cifar100, which also keeps a 3×3 max-pooling with stride 1 in block 3; without
stride there is no pooling here). No weight changes its shape.
"""

from typing import ClassVar

import torch
from torch import nn

from zoo.info import SMALL_INPUT_SIZE, Published
from zoo.layers import DepthwiseSeparableConv, init_kaiming
from zoo.registry import register_model


class XceptionBlock(nn.Module):
    """Separable convolutions, each after a ReLU and before a batch norm, with a shortcut around them.

    ``widths`` are the channels after each convolution. With ``stride`` 2 max-pooling ends the block; the shortcut is
    a 1×1 convolution where shapes differ.
    """

    def __init__(self, in_chans: int, widths: tuple[int, ...], stride: int = 1, relu_first: bool = True) -> None:
        super().__init__()
        self.rep = nn.Sequential()
        chans = in_chans
        for index, width in enumerate(widths):
            if index > 0 or relu_first:
                self.rep.append(nn.ReLU(inplace=index > 0))  # the first one's input goes to the shortcut as well
            self.rep.append(DepthwiseSeparableConv(chans, width, act=None))
            self.rep.append(nn.BatchNorm2d(width))
            chans = width
        self.projects = stride != 1 or chans != in_chans
        if stride != 1:
            self.rep.append(nn.MaxPool2d(3, stride, 1))
        if self.projects:
            self.skip = nn.Conv2d(in_chans, chans, 1, stride, bias=False)
            self.skipbn = nn.BatchNorm2d(chans)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``N×in_chans×H×W`` to ``N×widths[-1]×H/stride×W/stride``."""
        out: torch.Tensor = self.rep(x)
        return out + (self.skipbn(self.skip(x)) if self.projects else x)


class Xception(nn.Module):
    """Entry flow (stem and blocks 1–3), middle flow (4–11), exit flow (12 and two convolutions), linear head."""

    # Regular expressions over timm's names; ours on the right.
    reference_keys: ClassVar[dict[str, str]] = {r"^(block\d+\.rep\.\d+|conv[34])\.conv1\.": r"\1.depthwise."}

    def __init__(self, num_classes: int, input_size: int, in_chans: int, drop_rate: float) -> None:
        super().__init__()
        small = input_size <= SMALL_INPUT_SIZE
        padding = 1 if small else 0
        self.conv1 = nn.Conv2d(in_chans, 32, 3, stride=1 if small else 2, padding=padding, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=padding, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.block1 = XceptionBlock(64, (128, 128), stride=2, relu_first=False)
        self.block2 = XceptionBlock(128, (256, 256), stride=2)
        self.block3 = XceptionBlock(256, (728, 728), stride=1 if small else 2)
        for index in range(4, 12):
            self.add_module(f"block{index}", XceptionBlock(728, (728, 728, 728)))
        self.block12 = XceptionBlock(728, (728, 1024), stride=2)
        self.conv3 = DepthwiseSeparableConv(1024, 1536, act=None)
        self.bn3 = nn.BatchNorm2d(1536)
        self.conv4 = DepthwiseSeparableConv(1536, 2048, act=None)
        self.bn4 = nn.BatchNorm2d(2048)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(drop_rate)
        self.fc = nn.Linear(2048, num_classes)
        init_kaiming(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``N×C×H×W`` to logits ``N×num_classes``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        for index in range(1, 13):
            x = self.get_submodule(f"block{index}")(x)
        x = self.relu(self.bn3(self.conv3(x)))
        x = self.relu(self.bn4(self.conv4(x)))
        logits: torch.Tensor = self.fc(self.dropout(self.pool(x).flatten(1)))
        return logits


@register_model(
    paper="Chollet 2016, Xception: deep learning with depthwise separable convolutions, arXiv:1610.02357",
    year=2016,
    published=Published(params=22_855_952, gmacs=8.357, source="the paper, table 3 (22,855,952); timm legacy_xception"),
    weights="timm/legacy_xception",
    recipe={"lr": 0.05, "weight_decay": 1e-4},
    small_image="the strides of the stem and of block 3 are 1, and the stem pads",
    representative=True,
)
def xception(num_classes: int = 1000, input_size: int = 299, in_chans: int = 3, drop_rate: float = 0.0) -> Xception:
    """The network of figure 5."""
    return Xception(num_classes, input_size, in_chans, drop_rate)
