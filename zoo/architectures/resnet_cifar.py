"""ResNet for CIFAR-10 (He, Zhang, Ren, Sun 2015, arXiv:1512.03385, section 4.2), and the plain networks beside it.

Known for: the experiment itself. With shortcuts 56 layers are better than 20, without them they are worse.

6n+2 layers: a 3×3 stem, three stages of n basic blocks with 16, 32 and 64 channels, global average pooling, a linear
layer. All shortcuts are free of parameters: where the shape changes, every second pixel and zeros for the new channels
(option A). The plain networks (``plain20``, ``plain56``) are the same without shortcuts, hence with the same count.
No departure; the zeros come after the old channels, which the paper leaves open.

32×32 is the canonical size; nothing changes at any other.
"""

import torch
from torch import nn

from zoo.layers import BasicBlock, Shortcut, init_kaiming
from zoo.registry import Published, register_model

PAPER = "He et al. 2015, Deep residual learning for image recognition, arXiv:1512.03385, section 4.2"
SOURCE = "the paper's table 6, rounded there; to the digit: akamaster/pytorch_resnet_cifar10's networks"
SMALL_IMAGE = "nothing changes: the network is made for 32×32 images"
RECIPE = {"lr": 0.1, "weight_decay": 1e-4}


class CifarResNet(nn.Module):
    """Stem, three stages of basic blocks, global average pooling, linear head.

    ``depth`` is 6n+2, n the blocks of a stage.
    """

    def __init__(self, depth: int, num_classes: int, in_chans: int, shortcut: Shortcut = "zero_pad") -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._stage(16, 16, blocks, 1, shortcut)
        self.layer2 = self._stage(16, 32, blocks, 2, shortcut)
        self.layer3 = self._stage(32, 64, blocks, 2, shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        init_kaiming(self)

    @staticmethod
    def _stage(in_chans: int, width: int, blocks: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
        first = BasicBlock(in_chans, width, stride, shortcut=shortcut)
        return nn.Sequential(first, *(BasicBlock(width, width, shortcut=shortcut) for _ in range(blocks - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``N×C×H×W`` to logits ``N×num_classes``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: torch.Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


@register_model(
    paper=PAPER,
    year=2015,
    published=Published(params=269_722, num_classes=10, source=SOURCE),
    recipe=RECIPE,
    small_image=SMALL_IMAGE,
    representative=True,
)
def resnet20(num_classes: int = 10, input_size: int = 32, in_chans: int = 3) -> CifarResNet:
    """20 layers."""
    del input_size  # fully convolutional
    return CifarResNet(20, num_classes, in_chans)


@register_model(
    paper=PAPER,
    year=2015,
    published=Published(params=464_154, num_classes=10, source=SOURCE),
    recipe=RECIPE,
    small_image=SMALL_IMAGE,
)
def resnet32(num_classes: int = 10, input_size: int = 32, in_chans: int = 3) -> CifarResNet:
    """32 layers."""
    del input_size  # fully convolutional
    return CifarResNet(32, num_classes, in_chans)


@register_model(
    paper=PAPER,
    year=2015,
    published=Published(params=658_586, num_classes=10, source=SOURCE),
    recipe=RECIPE,
    small_image=SMALL_IMAGE,
)
def resnet44(num_classes: int = 10, input_size: int = 32, in_chans: int = 3) -> CifarResNet:
    """44 layers."""
    del input_size  # fully convolutional
    return CifarResNet(44, num_classes, in_chans)


@register_model(
    paper=PAPER,
    year=2015,
    published=Published(params=853_018, num_classes=10, source=SOURCE),
    recipe=RECIPE,
    small_image=SMALL_IMAGE,
)
def resnet56(num_classes: int = 10, input_size: int = 32, in_chans: int = 3) -> CifarResNet:
    """56 layers."""
    del input_size  # fully convolutional
    return CifarResNet(56, num_classes, in_chans)


@register_model(
    paper=PAPER,
    year=2015,
    published=Published(params=1_727_962, num_classes=10, source=SOURCE),
    recipe=RECIPE,
    small_image=SMALL_IMAGE,
)
def resnet110(num_classes: int = 10, input_size: int = 32, in_chans: int = 3) -> CifarResNet:
    """110 layers."""
    del input_size  # fully convolutional
    return CifarResNet(110, num_classes, in_chans)


@register_model(
    paper=PAPER,
    year=2015,
    published=Published(params=269_722, num_classes=10, source=SOURCE),
    recipe=RECIPE,
    small_image=SMALL_IMAGE,
)
def plain20(num_classes: int = 10, input_size: int = 32, in_chans: int = 3) -> CifarResNet:
    """20 layers, no shortcuts."""
    del input_size  # fully convolutional
    return CifarResNet(20, num_classes, in_chans, "none")


@register_model(
    paper=PAPER,
    year=2015,
    published=Published(params=853_018, num_classes=10, source=SOURCE),
    recipe=RECIPE,
    small_image=SMALL_IMAGE,
)
def plain56(num_classes: int = 10, input_size: int = 32, in_chans: int = 3) -> CifarResNet:
    """56 layers, no shortcuts."""
    del input_size  # fully convolutional
    return CifarResNet(56, num_classes, in_chans, "none")
