"""VGG: depth from 3×3 convolutions alone (Simonyan, Zisserman 2014, arXiv:1409.1556).

Known for: two 3×3 convolutions see as much as one 5×5, with fewer weights; its features served a generation of tasks.

Parts are named as in torchvision, so its state dicts load. Batch norm (``_bn``) is not in the paper.
``kernel_size=5`` is the paper's comparison (section 2.3 and the end of 4.1): a single 5×5 convolution in place of each
pair of 3×3. ``width`` multiplies all channels, for machines on which the whole is too slow.

Small images (64 pixels or less): the convolutions are the same, the head is one linear layer on 512 features
(kuangliu/pytorch-cifar), since a head of 123 million parameters makes no sense on a 1×1 map.
"""

import functools

import torch
from torch import nn

from zoo.info import SMALL_INPUT_SIZE, Published, Register, ZooError
from zoo.layers import drop_rate_of_head, init_kaiming
from zoo.registry import register_model

PAPER = "Simonyan and Zisserman 2014, Very deep convolutional networks, arXiv:1409.1556"
SOURCE = "torchvision weights metadata"
SMALL_IMAGE = "the head is one linear layer on the 512 averaged features; the convolutions are the same"

# Table 1: convolutions in each of the five stages, by the network's depth.
DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Five stages of 3×3 convolutions, each ended by max-pooling, then the head."""

    def __init__(
        self,
        depth: int,
        batch_norm: bool,
        num_classes: int,
        input_size: int,
        in_chans: int,
        drop_rate: float | None,
        kernel_size: int = 3,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if width <= 0:
            raise ZooError(f"width={width} is not possible: expected a number above 0.")
        self.features = nn.Sequential()
        chans = in_chans
        for base_chans, convs in zip(WIDTHS, _convolutions(depth, kernel_size), strict=True):
            out_chans = max(int(base_chans * width), 1)
            for _ in range(convs):
                self.features.append(nn.Conv2d(chans, out_chans, kernel_size, padding=kernel_size // 2))
                if batch_norm:
                    self.features.append(nn.BatchNorm2d(out_chans))
                self.features.append(nn.ReLU(inplace=True))
                chans = out_chans
            self.features.append(nn.MaxPool2d(2, 2))
        small = input_size <= SMALL_INPUT_SIZE
        drop_rate = drop_rate_of_head(drop_rate, small)
        self.avgpool = nn.AdaptiveAvgPool2d(1 if small else 7)
        self.classifier: nn.Module
        if small:
            self.classifier = nn.Linear(chans, num_classes)
        else:
            self.classifier = nn.Sequential(
                nn.Linear(chans * 7 * 7, 4096),
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


def _convolutions(depth: int, kernel_size: int) -> tuple[int, ...]:
    """How many convolutions each stage has: as many as in table 1, or half as many of 5×5."""
    convs = DEPTHS[depth]
    if kernel_size == 3:
        return convs
    paired = [each for each, stages in DEPTHS.items() if all(count % 2 == 0 for count in stages)]
    if kernel_size != 5 or depth not in paired:
        raise ZooError(
            f"kernel_size={kernel_size} is not possible for the VGG of {depth} layers: expected 3, or 5 where all "
            f"convolutions come in pairs, each of which a 5×5 replaces: {', '.join(f'vgg{each}' for each in paired)}."
        )
    return tuple(count // 2 for count in convs)


_register_vgg: Register = functools.partial(register_model, paper=PAPER, year=2014, small_image=SMALL_IMAGE)


def _register(depth: int, *, params: int, gmacs: float) -> None:
    name = f"vgg{depth}"

    @_register_vgg(
        name=name,
        published=Published(params=params, gmacs=gmacs, source=SOURCE),
        weights=f"torchvision/{name}",
        recipe={"lr": 0.01, "weight_decay": 5e-4},
    )
    def build(
        num_classes: int = 1000,
        input_size: int = 224,
        in_chans: int = 3,
        drop_rate: float | None = None,
        batch_norm: bool = False,
        kernel_size: int = 3,
        width: float = 1.0,
    ) -> VGG:
        return VGG(depth, batch_norm, num_classes, input_size, in_chans, drop_rate, kernel_size, width)


def _register_bn(depth: int, *, params: int, gmacs: float, representative: bool = False) -> None:
    name = f"vgg{depth}_bn"

    @_register_vgg(
        name=name,
        published=Published(params=params, gmacs=gmacs, source=SOURCE),
        weights=f"torchvision/{name}",
        recipe={"lr": 0.05, "weight_decay": 5e-4},
        representative=representative,
    )
    def build(
        num_classes: int = 1000,
        input_size: int = 224,
        in_chans: int = 3,
        drop_rate: float | None = None,
        kernel_size: int = 3,
        width: float = 1.0,
    ) -> VGG:
        return VGG(depth, True, num_classes, input_size, in_chans, drop_rate, kernel_size, width)


_register(11, params=132_863_336, gmacs=7.609)
_register(13, params=133_047_848, gmacs=11.308)
_register(16, params=138_357_544, gmacs=15.47)
_register(19, params=143_667_240, gmacs=19.632)
_register_bn(11, params=132_868_840, gmacs=7.609)
_register_bn(13, params=133_053_736, gmacs=11.308)
_register_bn(16, params=138_365_992, gmacs=15.47, representative=True)
_register_bn(19, params=143_678_248, gmacs=19.632)
