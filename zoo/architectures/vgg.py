"""VGG: depth from 3×3 convolutions alone (Simonyan, Zisserman 2014, arXiv:1409.1556).

Known for: two 3×3 convolutions see what one 5×5 sees with fewer weights; its features served a generation of tasks.

Parts are named as in torchvision, so its state dicts load, those with batch norm (``_bn``, not in the paper) too.

Small images (64 pixels or less): the convolutions are the same, the head is one linear layer on 512 features
(kuangliu/pytorch-cifar), as 123 million head parameters make no sense of a 1×1 map.
"""

import torch
from torch import nn

from zoo.layers import init_kaiming
from zoo.registry import SMALL_INPUT_SIZE, Published, register_model

PAPER = "Simonyan and Zisserman 2014, Very deep convolutional networks, arXiv:1409.1556"
SOURCE = "torchvision weights metadata"
SMALL_IMAGE = "the head is one linear layer on the 512 averaged features; the convolutions are the same"
BN_RECIPE = {"lr": 0.05, "weight_decay": 5e-4}
PLAIN_RECIPE = {"lr": 0.01, "weight_decay": 5e-4}

# Table 1: convolutions in each of the five stages, by the network's depth.
DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Five stages of 3×3 convolutions, each ended by max-pooling, then the head."""

    def __init__(
        self, depth: int, batch_norm: bool, num_classes: int, input_size: int, in_chans: int, drop_rate: float
    ) -> None:
        super().__init__()
        self.features = nn.Sequential()
        chans = in_chans
        for width, convs in zip(WIDTHS, DEPTHS[depth], strict=True):
            for _ in range(convs):
                self.features.append(nn.Conv2d(chans, width, 3, padding=1))
                if batch_norm:
                    self.features.append(nn.BatchNorm2d(width))
                self.features.append(nn.ReLU(inplace=True))
                chans = width
            self.features.append(nn.MaxPool2d(2, 2))
        small = input_size <= SMALL_INPUT_SIZE
        self.avgpool = nn.AdaptiveAvgPool2d(1 if small else 7)
        self.classifier: nn.Module
        if small:
            self.classifier = nn.Linear(512, num_classes)
        else:
            self.classifier = nn.Sequential(
                nn.Linear(512 * 7 * 7, 4096),
                nn.ReLU(inplace=True),
                nn.Dropout(drop_rate),
                nn.Linear(4096, 4096),
                nn.ReLU(inplace=True),
                nn.Dropout(drop_rate),
                nn.Linear(4096, num_classes),
            )
        init_kaiming(self)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``N×C×H×W`` to logits ``N×num_classes``."""
        logits: torch.Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


@register_model(
    paper=PAPER,
    year=2014,
    published=Published(params=132_863_336, gmacs=7.609, source=SOURCE),
    weights="torchvision/vgg11",
    recipe=PLAIN_RECIPE,
    small_image=SMALL_IMAGE,
)
def vgg11(
    num_classes: int = 1000,
    input_size: int = 224,
    in_chans: int = 3,
    drop_rate: float = 0.5,
    batch_norm: bool = False,
) -> VGG:
    """11 weight layers, configuration A."""
    return VGG(11, batch_norm, num_classes, input_size, in_chans, drop_rate)


@register_model(
    paper=PAPER,
    year=2014,
    published=Published(params=133_047_848, gmacs=11.308, source=SOURCE),
    weights="torchvision/vgg13",
    recipe=PLAIN_RECIPE,
    small_image=SMALL_IMAGE,
)
def vgg13(
    num_classes: int = 1000,
    input_size: int = 224,
    in_chans: int = 3,
    drop_rate: float = 0.5,
    batch_norm: bool = False,
) -> VGG:
    """13 weight layers, configuration B."""
    return VGG(13, batch_norm, num_classes, input_size, in_chans, drop_rate)


@register_model(
    paper=PAPER,
    year=2014,
    published=Published(params=138_357_544, gmacs=15.47, source=SOURCE),
    weights="torchvision/vgg16",
    recipe=PLAIN_RECIPE,
    small_image=SMALL_IMAGE,
)
def vgg16(
    num_classes: int = 1000,
    input_size: int = 224,
    in_chans: int = 3,
    drop_rate: float = 0.5,
    batch_norm: bool = False,
) -> VGG:
    """16 weight layers, configuration D."""
    return VGG(16, batch_norm, num_classes, input_size, in_chans, drop_rate)


@register_model(
    paper=PAPER,
    year=2014,
    published=Published(params=143_667_240, gmacs=19.632, source=SOURCE),
    weights="torchvision/vgg19",
    recipe=PLAIN_RECIPE,
    small_image=SMALL_IMAGE,
)
def vgg19(
    num_classes: int = 1000,
    input_size: int = 224,
    in_chans: int = 3,
    drop_rate: float = 0.5,
    batch_norm: bool = False,
) -> VGG:
    """19 weight layers, configuration E."""
    return VGG(19, batch_norm, num_classes, input_size, in_chans, drop_rate)


@register_model(
    paper=PAPER,
    year=2014,
    published=Published(params=132_868_840, gmacs=7.609, source=SOURCE),
    weights="torchvision/vgg11_bn",
    recipe=BN_RECIPE,
    small_image=SMALL_IMAGE,
)
def vgg11_bn(num_classes: int = 1000, input_size: int = 224, in_chans: int = 3, drop_rate: float = 0.5) -> VGG:
    """11 weight layers, configuration A with batch norm."""
    return VGG(11, True, num_classes, input_size, in_chans, drop_rate)


@register_model(
    paper=PAPER,
    year=2014,
    published=Published(params=133_053_736, gmacs=11.308, source=SOURCE),
    weights="torchvision/vgg13_bn",
    recipe=BN_RECIPE,
    small_image=SMALL_IMAGE,
)
def vgg13_bn(num_classes: int = 1000, input_size: int = 224, in_chans: int = 3, drop_rate: float = 0.5) -> VGG:
    """13 weight layers, configuration B with batch norm."""
    return VGG(13, True, num_classes, input_size, in_chans, drop_rate)


@register_model(
    paper=PAPER,
    year=2014,
    published=Published(params=138_365_992, gmacs=15.47, source=SOURCE),
    weights="torchvision/vgg16_bn",
    recipe=BN_RECIPE,
    small_image=SMALL_IMAGE,
    representative=True,
)
def vgg16_bn(num_classes: int = 1000, input_size: int = 224, in_chans: int = 3, drop_rate: float = 0.5) -> VGG:
    """16 weight layers, configuration D with batch norm."""
    return VGG(16, True, num_classes, input_size, in_chans, drop_rate)


@register_model(
    paper=PAPER,
    year=2014,
    published=Published(params=143_678_248, gmacs=19.632, source=SOURCE),
    weights="torchvision/vgg19_bn",
    recipe=BN_RECIPE,
    small_image=SMALL_IMAGE,
)
def vgg19_bn(num_classes: int = 1000, input_size: int = 224, in_chans: int = 3, drop_rate: float = 0.5) -> VGG:
    """19 weight layers, configuration E with batch norm."""
    return VGG(19, True, num_classes, input_size, in_chans, drop_rate)
