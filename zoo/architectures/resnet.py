"""ResNet: residual learning (He, Zhang, Ren, Sun 2015, arXiv:1512.03385), the ImageNet networks of table 1.

Known for: identity shortcuts, which made networks of a hundred layers trainable. Still the yardstick.

Departure from the paper, shared with torchvision and all of its weights: in a bottleneck the stride sits on the 3×3
convolution ("v1.5"). Parts are named as in torchvision, so its state dicts load as they are.

Small images (64 pixels or less): the stem is one 3×3 convolution with stride 1 and no max-pooling, the rest is the
same; the convention of kuangliu/pytorch-cifar and of the cutout paper's code (uoguelph-mlrg/Cutout).
"""

import torch
from torch import nn

from zoo.info import SMALL_INPUT_SIZE, Published, ZooError
from zoo.layers import BasicBlock, Bottleneck, init_kaiming
from zoo.registry import register_model

PAPER = "He et al. 2015, Deep residual learning for image recognition, arXiv:1512.03385"
SMALL_IMAGE = "the stem is a 3×3 convolution with stride 1 and there is no max-pooling, so maps are four times as wide"
SOURCE = "torchvision weights metadata"


class ResNetTrunk(nn.Module):
    """Stem and four stages: everything of a ResNet but its head.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: blocks of each stage.
        in_chans: channels of the images.
        small: the small-image stem.
        output_stride: 32, 16 or 8; below 32 the last stages dilate instead of striding. It is counted with the
            canonical stem's stride of 4; the small stem leaves that factor away.
        zero_init_residual: start each block as the identity (last norm's scale 0).
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        in_chans: int,
        small: bool,
        output_stride: int = 32,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ZooError(f"output_stride={output_stride} is not possible: expected 8, 16 or 32.")
        self.conv1 = (
            nn.Conv2d(in_chans, 64, 3, 1, 1, bias=False) if small else nn.Conv2d(in_chans, 64, 7, 2, 3, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)

        stages: list[nn.Sequential] = []
        chans, reached, dilation = 64, 4, 1
        for index, depth in enumerate(depths):
            width, stride, before = 64 << index, 1 if index == 0 else 2, dilation
            if reached * stride > output_stride:
                stride, dilation = 1, dilation * stride
            reached *= stride
            # The first block still reads maps of the stage before, hence with its dilation.
            blocks = [block(chans, width, stride, before)]
            chans = width * block.expansion
            blocks += [block(chans, width, dilation=dilation) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.num_features = chans
        """Channels of the last map."""

        init_kaiming(self)
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, BasicBlock | Bottleneck):
                    nn.init.zeros_((module.bn3 if isinstance(module, Bottleneck) else module.bn2).weight)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images ``N×C×H×W`` to the maps of the last two stages, ``layer3`` and ``layer4``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return {"layer3": x, "layer4": self.layer4(x)}


class ResNet(ResNetTrunk):
    """Stem, four stages, global average pooling, linear head."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        num_classes: int,
        input_size: int,
        in_chans: int,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__(
            block, depths, in_chans, small=input_size <= SMALL_INPUT_SIZE, zero_init_residual=zero_init_residual
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(self.num_features, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Images ``N×C×H×W`` to logits ``N×num_classes``."""
        logits: torch.Tensor = self.fc(self.avgpool(super().forward(x)["layer4"]).flatten(1))
        return logits


def _register(
    name: str,
    block: type[BasicBlock] | type[Bottleneck],
    depths: tuple[int, int, int, int],
    *,
    params: int,
    gmacs: float,
    lr: float,
    representative: bool = False,
) -> None:
    @register_model(
        name=name,
        paper=PAPER,
        year=2015,
        published=Published(params=params, gmacs=gmacs, source=SOURCE),
        weights=f"torchvision/{name}",
        recipe={"lr": lr, "weight_decay": 5e-4},
        small_image=SMALL_IMAGE,
        representative=representative,
    )
    def build(
        num_classes: int = 1000, input_size: int = 224, in_chans: int = 3, zero_init_residual: bool = False
    ) -> ResNet:
        return ResNet(block, depths, num_classes, input_size, in_chans, zero_init_residual)


_register("resnet18", BasicBlock, (2, 2, 2, 2), params=11_689_512, gmacs=1.814, lr=0.1, representative=True)
_register("resnet34", BasicBlock, (3, 4, 6, 3), params=21_797_672, gmacs=3.664, lr=0.1)
_register("resnet50", Bottleneck, (3, 4, 6, 3), params=25_557_032, gmacs=4.089, lr=0.05)
_register("resnet101", Bottleneck, (3, 4, 23, 3), params=44_549_160, gmacs=7.801, lr=0.05)
_register("resnet152", Bottleneck, (3, 8, 36, 3), params=60_192_808, gmacs=11.514, lr=0.05)
