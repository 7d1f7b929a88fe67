"""ResNet for CIFAR-10 (He, Zhang, Ren, Sun 2015, arXiv:1512.03385, section 4.2), and the plain networks beside it.

Known for: the experiment itself. With shortcuts 56 layers are better than 20, without them they are worse.

6n+2 layers: a 3×3 stem, three stages of n basic blocks with 16, 32 and 64 channels, global average pooling, a linear
layer. All shortcuts are free of parameters: where the shape changes, every second pixel and zeros for the new channels
(option A). The plain networks (``plain20``, ``plain56``) are the same without shortcuts, hence with the same count.

No departure from the paper, but two choices that other code makes otherwise, as options:
- ``shortcut_padding``: the paper does not say where the zeros go. ``end``, after the old channels, is ours; ``both``,
  half before and half after, is that of akamaster/pytorch_resnet_cifar10. Weights for one do not work with the other,
  though all shapes agree; left open, ``end`` is built and loading takes what the weights are known to need.
- ``shortcut=projection``: 1×1 convolutions where the shape changes (option B), as in chenyaofo/pytorch-cifar-models.

32×32 is the canonical size; nothing changes at any other.
"""

from typing import get_args

import torch
from torch import nn

from zoo.info import Published, ZooError, did_you_mean
from zoo.layers import BasicBlock, Padding, Shortcut, ZeroPadShortcut, init_kaiming
from zoo.registry import register_model

PAPER = "He et al. 2015, Deep residual learning for image recognition, arXiv:1512.03385, section 4.2"
SOURCE = "the paper's table 6, rounded there; to the digit: akamaster/pytorch_resnet_cifar10's networks"
SMALL_IMAGE = "nothing changes: the network is made for 32×32 images"
RECIPE = {"lr": 0.1, "weight_decay": 1e-4}


class CifarResNet(nn.Module):
    """Stem, three stages of basic blocks, global average pooling, linear head.

    ``depth`` is 6n+2, n the blocks of a stage.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int,
        in_chans: int,
        shortcut: Shortcut = "zero_pad",
        shortcut_padding: Padding | None = None,
    ) -> None:
        super().__init__()
        _check_choice("shortcut", shortcut, get_args(Shortcut))
        if shortcut_padding is not None:
            _check_choice("shortcut_padding", shortcut_padding, get_args(Padding))
            if shortcut != "zero_pad":
                raise ZooError(f"shortcut_padding is of shortcut=zero_pad, and shortcut={shortcut}: leave it out.")
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
        for module in self.modules():
            if isinstance(module, ZeroPadShortcut):
                module.padding = shortcut_padding or "end"

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


def _check_choice(option: str, value: str, possible: tuple[str, ...]) -> None:
    if value not in possible:
        raise ZooError(
            f"{option}={value} is not possible: expected {' or '.join(possible)}.{did_you_mean(str(value), possible)}"
        )


def _register(depth: int, params: int, representative: bool = False) -> None:
    @register_model(
        name=f"resnet{depth}",
        paper=PAPER,
        year=2015,
        published=Published(params=params, num_classes=10, source=SOURCE),
        recipe=RECIPE,
        small_image=SMALL_IMAGE,
        representative=representative,
    )
    def build(
        num_classes: int = 10,
        input_size: int = 32,
        in_chans: int = 3,
        shortcut: Shortcut = "zero_pad",
        shortcut_padding: Padding | None = None,
    ) -> CifarResNet:
        del input_size  # fully convolutional
        return CifarResNet(depth, num_classes, in_chans, shortcut, shortcut_padding)


def _register_plain(depth: int, params: int) -> None:
    @register_model(
        name=f"plain{depth}",
        paper=PAPER,
        year=2015,
        published=Published(params=params, num_classes=10, source=SOURCE),
        recipe=RECIPE,
        small_image=SMALL_IMAGE,
    )
    def build(num_classes: int = 10, input_size: int = 32, in_chans: int = 3) -> CifarResNet:
        del input_size  # fully convolutional
        return CifarResNet(depth, num_classes, in_chans, "none")


_register(20, params=269_722, representative=True)
_register(32, params=464_154)
_register(44, params=658_586)
_register(56, params=853_018)
_register(110, params=1_727_962)
_register_plain(20, params=269_722)
_register_plain(56, params=853_018)
