"""DeepLab: dilated convolutions and a pyramid of dilation rates (Chen et al. 2017, arXiv:1706.05587).

Known for: maps stay large because the last stages dilate instead of striding, and `ASPP` sees them at several scales.

`deeplabv3_resnet50` and `_resnet101` segment: torchvision's networks, their parts under its names, with the auxiliary
head; the output is a dict of logit maps at the images' size, ``out`` and ``aux``, as there. `deeplabv3_resnet18` is the
same on basic blocks, which torchvision does not dilate, and by default without the auxiliary head.

`deeplab_resnet18` and `_resnet50` classify: the same dilated backbone and pyramid, then global average pooling and a
linear layer. No paper has that form; what larger maps buy at equal parameters is the question of Dilated Residual
Networks (Yu, Koltun, Funkhouser 2017, arXiv:1705.09914).

``output_stride`` 8, 16 or 32 is counted as in the papers, with the stem's factor of 4; it changes no parameter. 16 is
the default on ResNet-18 and of the classification form, 8 that of torchvision's networks.

The dilation rates are torchvision's (12, 24, 36) at output stride 8, and in proportion at others, as in the paper.
Departure: those of ResNet-18, of the classification form and of small images follow the map's size, (1, 2, 3) on 8×8
and in proportion, because a rate at or above the map's size degenerates to a 1×1 convolution.

Small images (64 pixels or less): ResNet's small-image stem, so that maps are four times as large as ``output_stride``
says: 8×8 at 32 pixels and output stride 16.
"""

import functools

import torch
from torch import nn

from zoo.architectures.fcn import FCNHead, SegmentationNet
from zoo.architectures.resnet import ResNetTrunk
from zoo.info import SMALL_INPUT_SIZE, Published, Register
from zoo.layers import ASPP, BasicBlock, Bottleneck, ConvNormAct
from zoo.registry import register_model

PAPER = "Chen et al. 2017, Rethinking atrous convolution for semantic image segmentation, arXiv:1706.05587"
SMALL_IMAGE = (
    "the stem is a 3×3 convolution with stride 1 and there is no max-pooling, so maps are four times as wide; "
    "the dilation rates shrink to the map"
)
RECIPE = {"lr": 0.1, "weight_decay": 5e-4}
DROP_RATE = 0.5
"""Of the pyramid, as in torchvision; the auxiliary head has its own. The option of that name sets both."""


def aspp_rates(input_size: int, output_stride: int) -> tuple[int, int, int]:
    """Dilation rates for the map that the backbone yields: (1, 2, 3) on 8×8 or less, else in proportion."""
    stem_factor = 4 if input_size <= SMALL_INPUT_SIZE else 1
    side = input_size * stem_factor / output_stride
    unit = max(1, round(side / 8))
    return unit, 2 * unit, 3 * unit


class DeepLabV3(SegmentationNet):
    """Dilated ResNet, ASPP head on its last stage, auxiliary head on the one before."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        num_classes: int,
        input_size: int,
        in_chans: int,
        output_stride: int,
        aux_loss: bool,
        drop_rate: float | None = None,
    ) -> None:
        small = input_size <= SMALL_INPUT_SIZE
        backbone = ResNetTrunk(block, depths, in_chans, small, output_stride)
        if block is BasicBlock or small:
            rates = aspp_rates(input_size, output_stride)
        else:
            unit = 96 // output_stride
            rates = (unit, 2 * unit, 3 * unit)
        features = backbone.num_features
        pyramid = ASPP(features, rates, drop_rate=DROP_RATE if drop_rate is None else drop_rate)
        super().__init__(
            backbone,
            nn.Sequential(pyramid, *ConvNormAct(256, 256, kernel_size=3), nn.Conv2d(256, num_classes, 1)),
            FCNHead(features // 2, num_classes, drop_rate) if aux_loss else None,
        )


_register: Register = functools.partial(register_model, paper=PAPER, year=2017, recipe=RECIPE, small_image=SMALL_IMAGE)


@_register(task="segmentation")
def deeplabv3_resnet18(
    num_classes: int = 21,
    input_size: int = 520,
    in_chans: int = 3,
    output_stride: int = 16,
    aux_loss: bool = False,
    drop_rate: float | None = None,
) -> DeepLabV3:
    """Segmentation on ResNet-18, small enough to be trained on a CPU."""
    return DeepLabV3(BasicBlock, (2, 2, 2, 2), num_classes, input_size, in_chans, output_stride, aux_loss, drop_rate)


def _register_torchvision(name: str, depths: tuple[int, int, int, int], *, params: int, gmacs: float) -> None:
    @_register(
        name=name,
        task="segmentation",
        published=Published(params=params, gmacs=gmacs, num_classes=21, source="torchvision weights metadata"),
        weights=f"torchvision/{name}",
    )
    def build(
        num_classes: int = 21,
        input_size: int = 520,
        in_chans: int = 3,
        output_stride: int = 8,
        aux_loss: bool = True,
        drop_rate: float | None = None,
    ) -> DeepLabV3:
        return DeepLabV3(Bottleneck, depths, num_classes, input_size, in_chans, output_stride, aux_loss, drop_rate)


_register_torchvision("deeplabv3_resnet50", (3, 4, 6, 3), params=42_004_074, gmacs=178.722)
_register_torchvision("deeplabv3_resnet101", (3, 4, 23, 3), params=60_996_202, gmacs=258.743)


class DeepLabClassifier(nn.Module):
    """Dilated ResNet, ASPP and a 3×3 convolution as in `DeepLabV3`, global average pooling, linear head."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        num_classes: int,
        input_size: int,
        in_chans: int,
        output_stride: int,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.backbone = ResNetTrunk(block, depths, in_chans, input_size <= SMALL_INPUT_SIZE, output_stride)
        self.aspp = ASPP(self.backbone.num_features, aspp_rates(input_size, output_stride), drop_rate=drop_rate)
        self.conv = ConvNormAct(256, 256, kernel_size=3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(256, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``N×C×H×W`` to logits ``N×num_classes``."""
        x = self.conv(self.aspp(self.backbone(x)["layer4"]))
        logits: torch.Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def _register_classifier(
    name: str,
    block: type[BasicBlock] | type[Bottleneck],
    depths: tuple[int, int, int, int],
    representative: bool = False,
) -> None:
    @_register(name=name, representative=representative)
    def build(
        num_classes: int = 1000,
        input_size: int = 224,
        in_chans: int = 3,
        output_stride: int = 16,
        drop_rate: float = DROP_RATE,
    ) -> DeepLabClassifier:
        return DeepLabClassifier(block, depths, num_classes, input_size, in_chans, output_stride, drop_rate)


_register_classifier("deeplab_resnet18", BasicBlock, (2, 2, 2, 2), representative=True)
_register_classifier("deeplab_resnet50", Bottleneck, (3, 4, 6, 3))
